"""Quantise an exported detector to INT8, and keep its pillar encoder.

Convolutions compute with 8-bit integers, between QuantizeLinear and
DequantizeLinear nodes. Their ranges come from training samples. The first
convolution and the last ones, whose outputs are the maps, stay in float32, as
does the pillar encoder. tools/deployment/test_onnx.py says what that costs.
"""
import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from exported import write_description
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import set_random_seed

from sigplug.cli import arguments, explain, preflight, process
from sigplug.deploy import Detector
from sigplug.deploy.folder import DENSE, ENCODER
from sigplug.engine.bev_frame import space_evenly
from sigplug.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, for its training set')
    parser.add_argument(
        'folder', type=Path, help='what export_onnx.py has written in float32')
    parser.add_argument(
        '--out', type=Path, metavar='FOLDER',
        help='what to write (default: FOLDER with _int8 at its end)')
    parser.add_argument(
        '--num', type=int, default=64,
        help='training samples that give the ranges (default: 64)')
    parser.add_argument(
        '--keep', nargs='*', default=['first', 'last'],
        choices=['first', 'last'],
        help='convolutions that stay in float32 (default: first last)')
    arguments.add_cfg_options(parser)
    args = arguments.parse_args(parser)
    args.out = args.out or args.folder.with_name(f'{args.folder.name}_int8')
    if args.out.resolve() == args.folder.resolve():
        parser.error(f'--out {args.out} would replace the float32 model')
    return args


def find_kept(path: Path, keep: list[str]) -> list[str]:
    """Return the names of the convolutions that stay in float32."""
    import onnx
    graph = onnx.load(path).graph
    inputs = {value.name for value in graph.input}
    kept = [node.name for node in graph.node if node.op_type == 'Conv'
            and 'first' in keep and inputs & set(node.input)]
    # Back from each output to the convolutions that it comes from.
    makers = {name: node for node in graph.node for name in node.output}
    waiting = [value.name for value in graph.output if 'last' in keep]
    while waiting:
        node = makers.pop(waiting.pop(), None)
        if node and node.op_type == 'Conv':
            kept.append(node.name)
        elif node:
            waiting += node.input
    return kept


def read_maps(args: argparse.Namespace, detector: Detector
              ) -> Iterator[dict[str, np.ndarray]]:
    """Return the inputs of the network on samples of the training set."""
    cfg = preflight.load_config(args.config, args.cfg_options)
    if cfg.get('train_dataloader') is None:
        raise UserError(f'The config {args.config!r} has no train_dataloader, '
                        'which gives the samples.')
    preflight.check_data(cfg, 'train')
    preflight.check_stack(cfg)
    init_default_scope(cfg.get('default_scope', 'mmdet3d'))
    # Of the augmentations.
    set_random_seed(0)
    with (explain.explain_build_errors(cfg),
          explain.explain_data_errors(cfg.train_dataloader)):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        for index in space_evenly(args.num, len(dataset)):
            points = dataset[index]['inputs']['points'].numpy()
            canvas = detector.encode(points) if len(points) else None
            if canvas is not None:
                yield dict(spatial_features=canvas)


def main() -> None:
    args = parse_args()
    detector = Detector(args.folder)
    if detector.about['precision'] != 'float32':
        raise UserError(f'{args.folder} is in {detector.about["precision"]}: '
                        'give one in float32.')
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        maps = read_maps(args, detector)

        def get_next(self):
            return next(self.maps, None)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
        written = Path(folder)
        quantize_static(
            args.folder / DENSE, written / DENSE, Reader(),
            op_types_to_quantize=['Conv'], per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            nodes_to_exclude=find_kept(args.folder / DENSE, args.keep))
        shutil.copy(args.folder / ENCODER, written)
        write_description(written, dict(
            detector.about, precision='int8',
            calibration=dict(samples=args.num, kept=args.keep)))
        shutil.copytree(written, args.out, dirs_exist_ok=True)
    size = (args.out / DENSE).stat().st_size / 2**20
    print(f'{args.out}: {DENSE} is {size:.2f} MiB')


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
