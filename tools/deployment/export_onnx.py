"""Export a detector to ONNX, and check it by onnxruntime.

A CenterPoint of pillars becomes a folder for sigplug.deploy: the pillar
encoder, the backbone with neck and head, and deploy.json. Of other detectors,
and with --out FILE.onnx, what works on maps of fixed channels becomes one
file: of a CenterPoint from the map of features on, of mmdet's CenterNets from
the normalised image on. Batch, pillars, height and width stay open. See
docs/deployment.md.
"""
import argparse
import copy
import inspect
import json
import logging
import os
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detector_parts import dense_part, pillar_encoder
from exported import PACKAGES, box_distances, describe, write_description
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from sigplug.cli import arguments, build, explain, preflight, process
from sigplug.deploy import Detections
from sigplug.deploy.folder import DENSE, ENCODER
from sigplug.errors import UserError

# Largest error that is accepted; of values beyond 1, relative to the largest.
TOLERANCE = dict(float32=1e-4, float16=3e-2)

# True if torch has an exporter built on torch.export; older versions trace the
# model instead.
EXPORTS_PROGRAMS = 'dynamic_shapes' in inspect.signature(
    torch.onnx.export).parameters


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out', type=Path, metavar='PATH',
        help='a folder; or, ending with .onnx, a file of the dense part alone '
        '(default: the checkpoint without its suffix, or, of an image '
        'detector, with the suffix .onnx)')
    parser.add_argument(
        '--heatmap', choices=['logits', 'probability'], default='logits',
        help='what the heatmaps hold: logits, as the head and its decoder '
        'have them, or their plain sigmoid (default: logits)')
    parser.add_argument(
        '--decode', action='store_true',
        help='decode the best cells to boxes, scores and labels inside the '
        'model; thresholds and NMS stay outside')
    parser.add_argument(
        '--precision', choices=list(TOLERANCE), default='float32',
        help='of backbone, neck and head (default: float32)')
    parser.add_argument(
        '--opset', type=int, default=18,
        help='version of the ONNX operators (default: 18)')
    arguments.add_cfg_options(parser)
    args = arguments.parse_args(parser)
    if args.out is None and '://' in args.checkpoint:
        parser.error('a checkpoint from the net needs --out')
    if args.decode and args.heatmap == 'probability':
        parser.error('--decode leaves no heatmap for --heatmap probability')
    if args.opset < 17:
        parser.error(f'--opset must be at least 17, got {args.opset}')
    return args


def export(part: nn.Module, path: Path, precision: str, opset: int) -> None:
    """Write a part, with the axes open that it names."""
    x, wanted = part.sample(2, 0)
    if precision == 'float16':
        part = copy.deepcopy(part).half()
    if EXPORTS_PROGRAMS:
        # Multiples, without which torch cannot tell that levels meet again.
        axes = {axis: part.divisor * torch.export.Dim(name)
                if axis > 1 and part.divisor > 1 else name
                for axis, name in part.axes.items()}
        options = dict(dynamo=True, dynamic_shapes=(axes, ),
                       external_data=False, verbose=False)
    else:
        options = dict(dynamic_axes={part.input_name: part.axes, **{
            name: {axis: f'{name}.{of}' if axis else of
                   for axis, of in part.axes.items() if axis < y.dim()}
            for name, y in wanted.items()}})
    # It warns about operators of torchvision, which are not used.
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # Of branches on sizes, which the check with other sizes covers.
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        torch.onnx.export(
            part, (x, ), str(path), input_names=[part.input_name],
            output_names=list(wanted), opset_version=opset, **options)


def check_standard(model: Any, opset: int) -> None:
    """Check for standard operators."""
    import onnx
    onnx.checker.check_model(model, full_check=True)
    custom = {f'{node.domain}::{node.op_type}' for node in model.graph.node
              if node.domain not in ('', 'ai.onnx')}
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if custom or versions.get('') != opset:
        raise UserError(
            f'torch {torch.__version__} cannot export this model to opset '
            f'{opset} of the standard operators: it came to opset '
            f'{versions.get("")}, with {sorted(custom) or "no"} others. Try '
            'another --opset.')


def check_values(part: nn.Module, path: Path, tolerance: float) -> float:
    """Return the largest difference of onnxruntime from PyTorch."""
    import onnxruntime
    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    worst = 0.0
    # The traced size and others, with one sample and with several.
    for batch, step in ((2, 0), (1, 1), (3, 2)):
        x, outputs = part.sample(batch, step)
        found = dict(zip(outputs, map(torch.from_numpy, session.run(
            None, {part.input_name: x.numpy()})), strict=True))
        for name, wanted in outputs.items():
            scale = max(1.0, wanted.abs().max().item())
            error = float('inf')
            if found[name].shape == wanted.shape:
                error = difference(name, found, outputs, tolerance)
            if not error <= tolerance * scale:
                raise UserError(
                    f'What was exported is wrong and was not kept: {name} is '
                    f'off by {error:.3g} for an input of shape '
                    f'{tuple(x.shape)}, with values up to {scale:.3g}.')
            worst = max(worst, error / scale)
    return worst


def difference(name: str, found: dict[str, torch.Tensor],
               wanted: dict[str, torch.Tensor], tolerance: float) -> float:
    """Return how far an output is from what it should be.

    Boxes with nearly the same score come in any order: each is compared, with
    its score and label, to the nearest one. Those with nearly the lowest score
    may be missing.
    """
    task, dot, what = name.rpartition('.')
    if what not in ('boxes', 'labels'):
        return (found[name] - wanted[name]).abs().max().item()
    names = [f'{task}{dot}{part}' for part in ('boxes', 'scores', 'labels')]
    error = 0.0
    for i in range(len(wanted[name])):
        one, other = (Detections(*(values[key][i].numpy() for key in names))
                      for values in (found, wanted))
        sure = other.scores > other.scores[-1] + tolerance
        nearest = box_distances(one, other).min(axis=0)
        # Of the two, NaN.
        error = np.maximum(error, nearest[sure].max(initial=0))
    return float(error)


def check_packages() -> None:
    try:
        for name in PACKAGES:
            import_module(name)
    except ImportError as error:
        raise UserError(
            f'{error}. The export needs three more packages: pip install '
            f'{" ".join(PACKAGES)}') from error


def write_part(part: nn.Module, path: Path, precision: str, opset: int,
               about: dict[str, Any]) -> None:
    import onnx
    export(part, path, precision, opset)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in about.items() if value is not None})
    check_standard(model, opset)
    onnx.save(model, path)
    error = check_values(part, path, TOLERANCE[precision])
    print(f'{path.name}: {precision}, opset {opset}, '
          f'{path.stat().st_size / 2**20:.1f} MiB. Largest difference from '
          f'PyTorch: {error:.1e}')


def write(cfg: Config, model: nn.Module, checkpoint: dict,
          args: argparse.Namespace) -> None:
    """Export, check, and only then put the files in their place."""
    part = dense_part(model, 'boxes' if args.decode else args.heatmap)
    out = args.out
    whole = hasattr(model, 'pts_bbox_head')
    if out is None:
        out = Path(args.checkpoint).with_suffix('' if whole else '.onnx')
    elif out.suffix == '.onnx':
        whole = False
    elif not whole:
        raise UserError(f'--out must end with .onnx for {args.config!r}, an '
                        f'image detector of one file, but is {str(out)!r}.')
    about = dict(divisor=part.find_divisor(), heatmap=args.heatmap,
                 **part.describe(cfg, checkpoint))
    parts = {DENSE if whole else out.name: part}
    if whole:
        parts = {ENCODER: pillar_encoder(model), **parts}
        description = describe(cfg, model, args, about)
    target = out if whole else out.parent
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        for name, piece in parts.items():
            # A linear layer in float16 loses millimetres of coordinates.
            write_part(piece, Path(folder) / name,
                       'float32' if name == ENCODER else args.precision,
                       args.opset, about if piece is part else {})
        if whole:
            write_description(Path(folder), description)
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(Path(folder).iterdir()):
            os.replace(path, target / path.name)
    print(f'{out}: height and width are multiples of {part.divisor}')


@torch.no_grad()
def main() -> None:
    args = parse_args()
    cfg = preflight.load_config(args.config, args.cfg_options)
    checkpoint = preflight.check_checkpoint(args.checkpoint, 'checkpoint')
    check_packages()
    preflight.check_stack(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if cfg.get('model') is None:
        raise UserError(f'The config {args.config!r} has no model.')
    with explain.explain_build_errors(cfg):
        model = build.build_model(cfg, args.checkpoint, 'cpu')
    write(cfg, model, checkpoint, args)


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
