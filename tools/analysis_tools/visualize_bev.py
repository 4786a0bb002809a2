"""Draw samples from above with their ground truth and predictions.

Without a checkpoint the data alone is drawn.
"""
import argparse
import copy
import sys
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS, init_default_scope

from sigplug.cli import arguments, build, explain, preflight, process
from sigplug.engine.bev_frame import (
    HeatmapReader,
    draw_sample,
    predictions,
    space_evenly,
)
from sigplug.errors import UserError
from sigplug.visualization import save_png


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'checkpoint', nargs='?', help='checkpoint file; none: data alone')
    parser.add_argument(
        '--out-dir', type=Path, required=True,
        help='folder of the pictures, bev_<index>.png')
    parser.add_argument(
        '--split', choices=('val', 'train'), default='val',
        help='where the samples are from; those for training are drawn '
        'without augmentation (default: val)')
    parser.add_argument(
        '--num', type=int, default=4,
        help='number of samples, evenly spaced over the split (default: 4)')
    parser.add_argument(
        '--indices', type=int, nargs='+', metavar='INDEX',
        help='draw these samples of the split instead')
    parser.add_argument(
        '--score-thr', type=float, default=0.3,
        help='draw predictions with at least this score (default: 0.3)')
    parser.add_argument(
        '--bev-range', type=float, nargs=4,
        metavar=('X_MIN', 'Y_MIN', 'X_MAX', 'Y_MAX'),
        help='what to draw, in metres around the LiDAR (default: the range of '
        'the heatmap, else of the data)')
    parser.add_argument(
        '--no-heatmap', action='store_true',
        help='leave out the heatmap (only heads like CenterHead have one)')
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('WIDTH', 'HEIGHT'),
        help='pixels of a picture (default: 1530 x 1200 for a square range)')
    parser.add_argument(
        '--device', default=get_device(),
        help='where the model runs (default: %(default)s)')
    arguments.add_cfg_options(parser)
    return arguments.parse_args(parser)


def dataset_config(cfg: Config, split: str) -> ConfigDict:
    """Return the config of a split with the pipeline of the validation."""
    for name in ('val', split):
        if cfg.get(f'{name}_dataloader') is None:
            raise UserError(
                f'The config {cfg.filename!r} has no {name}_dataloader.')
    dataset, source = (cfg[f'{name}_dataloader'].dataset
                       for name in ('val', split))
    dataset = copy.deepcopy(dataset)
    # Inside wrappers like CBGSDataset.
    while 'dataset' in dataset:
        dataset = dataset.dataset
    while 'dataset' in source:
        source = source.dataset
    for key in ('data_root', 'data_prefix', 'ann_file'):
        if key in source:
            dataset[key] = source[key]
    # Otherwise samples without an object would be replaced by others.
    dataset.test_mode = True
    # The evaluator and what it reads are not needed here.
    loader = {f'{split}_dataloader': dict(dataset=dataset)}
    preflight.check_data(Config(loader), split)
    return dataset


def main() -> None:
    args = parse_args()
    cfg = preflight.load_config(args.config, args.cfg_options)
    dataset_cfg = dataset_config(cfg, args.split)
    if args.checkpoint:
        preflight.check_checkpoint(args.checkpoint, 'checkpoint')
    preflight.check_stack(cfg)
    init_default_scope(cfg.get('default_scope', 'mmdet3d'))
    model = reader = None
    with (explain.explain_build_errors(cfg),
          explain.explain_data_errors(dataset_cfg)):
        dataset = DATASETS.build(dataset_cfg)
        if args.checkpoint:
            model = build.build_model(cfg, args.checkpoint, args.device)
    if model is not None and not args.no_heatmap:
        reader = HeatmapReader.attach(model)
        if reader is None:
            raise UserError(f'{type(model).__name__} has no heatmap like that '
                            'of CenterHead: use --no-heatmap.')
    indices = args.indices or space_evenly(args.num, len(dataset))
    outside = [index for index in indices if not 0 <= index < len(dataset)]
    if outside:
        raise UserError(
            f'--indices {" ".join(map(str, outside))}: the split '
            f'{args.split!r} has the samples 0 to {len(dataset) - 1}.')
    for index in indices:
        data = dataset[index]
        title, found = f'{args.split} sample {index}', {}
        if model is not None:
            title += f': predictions with score \u2265 {args.score_thr:g}'
            with torch.no_grad():
                result, = model.test_step(pseudo_collate([data]))
            found = predictions(result, args.score_thr)
        if reader is not None:
            found |= reader.read()
        path = args.out_dir / f'bev_{index:04d}.png'
        save_png(draw_sample(
            dataset, index, data['inputs']['points'], found, title,
            args.bev_range, args.size), path)
        print(path, flush=True)


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
