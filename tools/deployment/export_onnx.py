"""Export the dense part of a detector to ONNX, and check it by onnxruntime.

That is all that works on maps of fixed channels: of a CenterPoint, the
backbone, the neck and the head, from the scattered canvas to the maps that
are decoded; of mmdet's CenterNets, from the normalised image. Batch, height
and width stay open. See docs/deployment.md.
"""
import argparse
import inspect
import json
import logging
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from sigplug.engine import cli, preflight, process
from sigplug.errors import UserError

# Largest error that is accepted; of values beyond 1, relative to the largest.
TOLERANCE = 1e-4
# The maps that a task of CenterHead may predict, in the order of its losses.
BRANCHES = ('heatmap', 'reg', 'height', 'dim', 'rot', 'vel')

# True if torch has an exporter built on torch.export; older versions trace the
# model instead.
EXPORTS_PROGRAMS = 'dynamic_shapes' in inspect.signature(
    torch.onnx.export).parameters


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE.onnx',
        help='what to write (default: the checkpoint with the suffix .onnx)')
    parser.add_argument(
        '--heatmap',
        choices=['logits', 'probability'],
        default='logits',
        help='what the heatmaps hold: logits, as the head and its decoder '
        'have them, or their plain sigmoid (default: logits)')
    parser.add_argument(
        '--opset',
        type=int,
        default=18,
        help='version of the ONNX operators (default: 18)')
    cli.add_cfg_options(parser)
    args = cli.parse_args(parser)
    if args.out is None and '://' in args.checkpoint:
        parser.error('a checkpoint from the net needs --out')
    if args.out is None:
        args.out = Path(args.checkpoint).with_suffix('.onnx')
    if args.out.suffix != '.onnx':
        parser.error(f'--out must end with .onnx, got {str(args.out)!r}')
    if args.opset < 17:
        parser.error(f'--opset must be at least 17, got {args.opset}')
    return args


class DensePart(nn.Module):
    """Backbone, neck and head of a detector, without its decoder.

    Args:
        backbone (nn.Module): Takes the input.
        neck (nn.Module, optional): Takes the outputs of the backbone.
        head (nn.Module): Takes the outputs of the neck.
        probability (bool): Whether the heatmaps go through the sigmoid.
    """

    input_name = 'image'

    def __init__(self, backbone: nn.Module, neck: nn.Module | None,
                 head: nn.Module, probability: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.probability = probability

    @property
    def in_channels(self) -> int:
        """Return the channels of the input."""
        return next(layer.in_channels for layer in self.backbone.modules()
                    if isinstance(layer, nn.Conv2d))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps by name, heatmaps first."""
        x = self.backbone(x)
        if self.neck is not None:
            x = self.neck(x)
        maps = self.predict(x)
        if self.probability:
            for name in maps:
                if name.endswith('heatmap'):
                    maps[name] = maps[name].sigmoid()
        return maps

    def predict(self, x: Any) -> dict[str, Tensor]:
        """Return the maps of the head, with logits as heatmaps."""
        raise NotImplementedError

    def describe(self, cfg: Config, checkpoint: dict) -> dict[str, Any]:
        """Return the metadata that a decoder needs."""
        known = cfg.model.get('data_preprocessor') or {}
        return dict(
            classes=(checkpoint.get('meta') or {}).get(
                'dataset_meta', {}).get('classes'),
            **{key: known.get(key) for key in ('mean', 'std', 'bgr_to_rgb')})


class CenterPointPart(DensePart):
    """The dense part of mmdet3d's CenterPoint, from the canvas."""

    input_name = 'canvas'

    def predict(self, x: Any) -> dict[str, Tensor]:
        return {f'task{i}.{branch}': maps[branch]
                for i, (maps, ) in enumerate(self.head(x))
                for branch in BRANCHES if branch in maps}

    def describe(self, cfg: Config, checkpoint: dict) -> dict[str, Any]:
        coder = self.head.bbox_coder
        voxels = (cfg.model.get('data_preprocessor') or {}).get(
            'voxel_layer') or {}
        return dict(
            tasks=self.head.class_names,
            voxel_size=voxels.get('voxel_size', coder.voxel_size),
            point_cloud_range=voxels.get('point_cloud_range', coder.pc_range),
            out_size_factor=coder.out_size_factor,
            norm_bbox=self.head.norm_bbox)


class CenterNetPart(DensePart):
    """A model with mmdet's ``CenterNetHead``, which has one level."""

    def predict(self, x: Any) -> dict[str, Tensor]:
        x, = x
        # The stock head applies the sigmoid in its forward.
        return dict(
            heatmap=self.head.heatmap_head(x),
            wh=self.head.wh_head(x),
            offset=self.head.offset_head(x))


class CenterNetUpdatePart(DensePart):
    """A model with mmdet's ``CenterNetUpdateHead``, of several levels."""

    def predict(self, x: Any) -> dict[str, Tensor]:
        maps = {}
        for i, (logits, box) in enumerate(zip(*self.head(x))):
            maps |= {f'level{i}.heatmap': logits, f'level{i}.box': box}
        return maps

    def describe(self, cfg: Config, checkpoint: dict) -> dict[str, Any]:
        return dict(
            super().describe(cfg, checkpoint),
            strides=[list(stride)
                     for stride in self.head.prior_generator.strides])


def dense_part(model: nn.Module, probability: bool) -> DensePart:
    """Return the dense part of a known detector."""
    from mmdet.models.dense_heads import CenterNetHead, CenterNetUpdateHead
    parts = {CenterNetHead: CenterNetPart,
             CenterNetUpdateHead: CenterNetUpdatePart}
    prefix = ''
    if hasattr(model, 'pts_bbox_head'):
        from mmdet3d.models.dense_heads import CenterHead
        prefix, parts = 'pts_', {CenterHead: CenterPointPart}
    backbone, neck, head = (getattr(model, prefix + name, None)
                            for name in ('backbone', 'neck', 'bbox_head'))
    kind = next((part for head_type, part in parts.items()
                 if isinstance(head, head_type)), None)
    if kind is None:
        raise UserError(
            f'{type(model).__name__} with the head {type(head).__name__} has '
            'no dense part that this tool knows. It exports CenterPoint with '
            "a CenterHead (mmdet3d's or sigplug's), and image detectors with "
            'a CenterNetHead or a CenterNetUpdateHead.')
    part = kind(backbone, neck, head, probability).eval()
    refuse_deformable_convolution(part)
    return part


def refuse_deformable_convolution(part: nn.Module) -> None:
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
    names = [name for name, layer in part.named_modules()
             if isinstance(layer, (DeformConv2d, ModulatedDeformConv2d))]
    if names:
        raise UserError(
            f'{names[0]} is a deformable convolution, which ONNX runtimes '
            'lack. Train a model without, e.g. with separate_head=dict('
            "type='SeparateHead', ...) instead of DCNSeparateHead, or with "
            'use_dcn=False in CTResNetNeck.')


def sizes_of(divisor: int, step: int = 0) -> tuple[int, int]:
    """Return a height and width: odd multiples of the divisor."""
    factor = max(64 // divisor, 1) | 1
    return divisor * (factor + step), divisor * (factor + 2 + 3 * step)


def find_divisor(part: DensePart) -> int:
    """Return the number that divides all heights and widths.

    Levels of different strides only meet again where each of them divides
    evenly.
    """
    problem = None
    for divisor in (1, 2, 4, 8, 16, 32, 64, 128):
        try:
            part(torch.zeros(1, part.in_channels, *sizes_of(divisor)))
        except RuntimeError as error:
            problem = error
        else:
            return divisor
    raise UserError(
        'The backbone, neck and head do not fit each other, in no size of '
        f'the input with {part.in_channels} channels: {problem}') from problem


def export(part: DensePart, path: Path, divisor: int, opset: int) -> None:
    """Write the model, with batch, height and width open."""
    x = torch.zeros(2, part.in_channels, *sizes_of(divisor))
    names = list(part(x))
    axes = {0: 'batch', 2: 'height', 3: 'width'}
    if EXPORTS_PROGRAMS:
        options = dict(
            dynamo=True,
            dynamic_shapes=(axes, ),
            external_data=False,
            verbose=False)
    else:
        options = dict(dynamic_axes={part.input_name: axes, **{
            name: {0: 'batch', 2: f'{name}.height', 3: f'{name}.width'}
            for name in names}})
    # It warns about operators of torchvision, which are not used.
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    torch.onnx.export(
        part, (x, ), str(path), input_names=[part.input_name],
        output_names=names, opset_version=opset, **options)


def check_standard(model: Any, opset: int) -> int:
    """Check for standard operators without float64; return their number."""
    import onnx
    onnx.checker.check_model(model, full_check=True)
    nodes = model.graph.node
    custom = {f'{node.domain}::{node.op_type}' for node in nodes
              if node.domain not in ('', 'ai.onnx')}
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if custom or versions.get('') != opset:
        raise UserError(
            f'torch {torch.__version__} cannot export this model to opset '
            f'{opset} of the standard operators: it came to opset '
            f'{versions.get("")}, with {sorted(custom) or "no"} others. Try '
            'another --opset.')
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    types = {value.type.tensor_type.elem_type for value in values}
    types |= {tensor.data_type for tensor in graph.initializer}
    if onnx.TensorProto.DOUBLE in types:
        raise UserError(
            'The model computes in float64, which not all runtimes have: '
            'convert it by model.float() before it is saved.')
    return len(nodes)


def check_values(part: DensePart, path: Path, divisor: int) -> float:
    """Return the largest difference of onnxruntime from PyTorch."""
    import onnxruntime
    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    # The traced size and others, with one sample and with several.
    for batch, step in ((2, 0), (1, 1), (3, 2)):
        x = torch.randn(batch, part.in_channels, *sizes_of(divisor, step),
                        generator=generator)
        found = session.run(None, {part.input_name: x.numpy()})
        for (name, wanted), array in zip(part(x).items(), found, strict=True):
            scale = max(1.0, wanted.abs().max().item())
            error = float('inf')
            if array.shape == tuple(wanted.shape):
                error = (torch.from_numpy(array) - wanted).abs().max().item()
            if not error <= TOLERANCE * scale:
                raise UserError(
                    f'What was exported is wrong and was not kept: {name} is '
                    f'off by {error:.3g} for an input of shape '
                    f'{tuple(x.shape)}, with values up to {scale:.3g}.')
            worst = max(worst, error / scale)
    return worst


def check_packages() -> None:
    """Name the packages that only this tool needs."""
    try:
        for name in ('onnx', 'onnxruntime', 'onnxscript'):
            import_module(name)
    except ImportError as error:
        raise UserError(
            f'{error}. The export needs three packages more: pip install onnx '
            'onnxruntime onnxscript') from error


def write(part: DensePart, out: Path, opset: int,
          about: dict[str, Any]) -> None:
    """Export, check, and only then put the file in its place."""
    import onnx
    out.parent.mkdir(parents=True, exist_ok=True)
    divisor = find_divisor(part)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        path = Path(folder) / out.name
        export(part, path, divisor, opset)
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in dict(about, divisor=divisor).items()
            if value is not None})
        nodes = check_standard(model, opset)
        onnx.save(model, path)
        error = check_values(part, path, divisor)
        os.replace(path, out)
    print(f'{out}: opset {opset}, {nodes} nodes, '
          f'{out.stat().st_size / 2**20:.1f} MiB')
    for value in (*model.graph.input, *model.graph.output):
        shape = [dim.dim_param or str(dim.dim_value)
                 for dim in value.type.tensor_type.shape.dim]
        print(f'  {value.name:16s}({", ".join(shape)})')
    print(f'Height and width: multiples of {divisor}. Largest difference '
          f'from PyTorch: {error:.1e}')


@torch.no_grad()
def main() -> None:
    """Export."""
    args = parse_args()
    cfg = preflight.load_config(args.config, args.cfg_options)
    checkpoint = preflight.check_checkpoint(args.checkpoint, 'checkpoint')
    check_packages()
    preflight.check_stack(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if cfg.get('model') is None:
        raise UserError(
            f'The config {args.config!r} has no model.')
    with preflight.explain_registry_errors(cfg):
        model = cli.build_model(cfg, args.checkpoint, 'cpu')
    part = dense_part(model, args.heatmap == 'probability')
    write(part, args.out, args.opset, dict(
        part.describe(cfg, checkpoint), heatmap=args.heatmap))


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
