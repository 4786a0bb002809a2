"""Time a training iteration of CenterPoint configs, stage by stage.

The models of one group train in turn on the same batch: points and boxes of
the config's data set where it is there, else of a small synthetic one that is
made for it. The results are written to --out as JSON, CSV, Markdown and a
picture.
"""
import argparse
import copy
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import report_performance
import torch
from benchmarking import (
    add_common_arguments,
    check_common_arguments,
    describe,
    no_garbage_collection,
    quartiles,
)
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope
from tqdm import tqdm

from sigplug.engine import preflight, process
from sigplug.errors import UserError

REPEAT = 15
FOLDER = Path(__file__).resolve().parents[2] / 'configs/centerpoint'
GENERATOR = Path(__file__).resolve().parents[1] / (
    'dataset_converters/create_synthetic_nuscenes.py')
QUICKSTART = [
    str(FOLDER / f'centerpoint_pillar04_second_secfpn_{kind}_'
        '1xb4-onecycle-8e_nus-mini-3d.py') for kind in ('stock', 'gem')
]
FULL_SIZE = [
    'mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_'
    '8xb4-cyclic-20e_nus-3d.py',
    str(FOLDER / 'centerpoint_pillar02_second_secfpn_gem_'
        '8xb4-cyclic-20e_nus-3d.py')
]
SCENE = 'scene-0061'
# Methods of the model's parts that make up a stage.
STAGES = (
    ('data_preprocessor', 'forward', 'voxelise'),
    ('pts_voxel_encoder', 'forward', 'encoder'),
    ('pts_middle_encoder', 'forward', 'scatter'),
    ('pts_backbone', 'forward', 'backbone'),
    ('pts_neck', 'forward', 'neck'),
    ('pts_bbox_head', 'forward', 'head'),
    ('pts_bbox_head', 'get_targets', 'targets'),
    ('pts_bbox_head', 'loss_by_feat', 'loss'),
)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'configs', nargs='*', metavar='CONFIG',
        help='configs of one group, the stock one first; also as '
        'mmdet3d::centerpoint/... (default: the quickstart and its stock '
        'twin, then the full-size pillar model and its stock base)')
    parser.add_argument(
        '--batch-size', type=int, metavar='N',
        help='samples in the batch (default: that of the config, 1 with '
        '--quick)')
    add_common_arguments(parser, REPEAT)
    args = parser.parse_args()
    check_common_arguments(parser, args, REPEAT)
    if args.batch_size is None and args.quick:
        args.batch_size = 1
    if args.batch_size is not None and args.batch_size < 1:
        parser.error(f'--batch-size must be at least 1, got '
                     f'{args.batch_size}')
    args.groups = [args.configs] if args.configs else [QUICKSTART]
    if not args.configs and not args.quick:
        args.groups.append(FULL_SIZE)
    return args


class Stopwatch:
    """Seconds by stage; a stage inside another one counts for itself only.

    Args:
        sync (Callable): Waits for the device.
    """

    def __init__(self, sync: Callable[[], None]) -> None:
        self.sync = sync
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        self.sync()
        start = perf_counter()
        self._inner.append(0.0)
        yield
        self.sync()
        took = perf_counter() - start
        self.seconds[name] += took - self._inner.pop()
        if self._inner:
            self._inner[-1] += took

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Time each call of a method as a stage."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return original(*args, **kwargs)

        setattr(owner, method, timed)


class Trainee:
    """A model and its optimizer, stage by stage under a stopwatch."""

    def __init__(self, path: str, cfg: Config, device: torch.device) -> None:
        self.name = Path(path.rpartition('::')[2]).stem
        self.label = 'sigplug' if 'sigplug.' in str(cfg.model) else 'stock'
        torch.manual_seed(0)
        self.model = MODELS.build(cfg.model)
        self.model.init_weights()
        self.model.to(device).train()
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.clock = Stopwatch(
            partial(torch.cuda.synchronize, device)
            if device.type == 'cuda' else lambda: None)
        for part, method, name in STAGES:
            owner = getattr(self.model, part, None)
            if hasattr(owner, method):
                self.clock.watch(owner, method, name)

    def step(self, batch: dict[str, Any]) -> tuple[float, dict[str, float]]:
        """One iteration: its loss, and seconds by stage and in all."""
        batch = copy.deepcopy(batch)
        self.clock.seconds.clear()
        start = perf_counter()
        with self.clock.stage('other'):
            inputs = self.model.data_preprocessor(batch, True)
            losses = self.model(**inputs, mode='loss')
            loss, _ = self.model.parse_losses(losses)
            with self.clock.stage('backward'):
                self.optimizer.backward(loss)
            with self.clock.stage('optimizer'):
                self.optimizer.step()
                self.optimizer.zero_grad()
        total = perf_counter() - start
        return loss.item(), dict(self.clock.seconds, iteration=total)


def load_config(path: str) -> Config:
    """A config of ours or of a user, or one that comes with mmdet3d."""
    return get_config(path) if '::' in path else preflight.load_config(path)


def dataset_config(cfg: Config) -> dict[str, Any]:
    """The data set of a config without what repeats its samples."""
    dataset = cfg.train_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return copy.deepcopy(dataset)


def load_batch(cfg: Config, batch_size: int) -> tuple[dict[str, Any], str]:
    """A batch as the data loader makes it, and where it is from."""
    dataset = dataset_config(cfg)
    if (Path(dataset.data_root) / dataset.ann_file).is_file():
        return collate(dataset, batch_size), f'`{dataset.data_root}`'
    # Samples of other scenes cannot be pasted in.
    dataset.pipeline = [step for step in dataset.pipeline
                        if step['type'] != 'ObjectSample']
    sweeps = max(step.get('sweeps_num', 1) for step in dataset.pipeline)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / 'data'
        subprocess.run(
            [sys.executable, GENERATOR, '--out', root, '--scenes', SCENE,
             '--samples-per-scene', str(max(2, batch_size + 1)),
             '--intermediate-sweeps', str(min(sweeps, 9)), '--workers', '1'],
            check=True)
        dataset.update(data_root=f'{root}/',
                       ann_file='nuscenes_infos_train.pkl')
        return collate(dataset, batch_size), 'the synthetic data set'


def collate(dataset: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """The last samples of a data set, whose earlier sweeps are there."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    samples = DATASETS.build(dataset)
    if len(samples) < batch_size:
        raise UserError(
            f'--batch-size {batch_size}: the data set has only '
            f'{len(samples)} samples')
    return pseudo_collate([
        samples[i] for i in range(len(samples) - batch_size, len(samples))])


def describe_input(trainees: list[Trainee], batch: dict[str, Any],
                   source: str) -> str:
    """A sentence about the models and their batch."""
    points = sum(len(p) for p in batch['inputs']['points'])
    boxes = sum(len(sample.gt_instances_3d)
                for sample in batch['data_samples'])
    names = ', '.join(f'{t.label} is `{t.name}`' for t in trainees)
    return (f'{len(batch["data_samples"])} samples of {source} with {points} '
            f'points and {boxes} boxes; {names}.')


def run_group(paths: list[str],
              args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train the models of a group in turn."""
    configs = [load_config(path) for path in paths]
    size = args.batch_size or configs[0].train_dataloader.batch_size
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        batch, source = load_batch(configs[0], size)
        trainees = [Trainee(path, cfg, args.device)
                    for path, cfg in zip(paths, configs)]
        if len({t.label for t in trainees}) < len(trainees):
            for trainee in trainees:
                trainee.label = trainee.name
        for trainee in trainees:
            loss, _ = trainee.step(batch)
            if not np.isfinite(loss):
                raise SystemExit(f'error: the loss of {trainee.name} is '
                                 f'{loss}: nothing was timed')
        measured = {trainee: [] for trainee in trainees}
        with no_garbage_collection():
            for _ in tqdm(range(args.repeat), trainees[-1].name[:40]):
                for trainee in trainees:
                    measured[trainee].append(trainee.step(batch)[1])
    text = describe_input(trainees, batch, source)
    pair = trainees[-1].name
    rows = []
    for trainee, steps in measured.items():
        stages = {name: statistics.median(step[name] for step in steps)
                  for name in steps[0]}
        low, _, high = quartiles([step['iteration'] for step in steps])
        rows.append(dict(
            pair=pair, config=trainee.label, name=trainee.name, input=text,
            q1_s=low, q3_s=high, stages=stages))
    for row in rows:
        row['ratio'] = (rows[0]['stages']['iteration'] /
                        row['stages']['iteration'])
    return rows


def main() -> None:
    """Measure, print and write."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    # A line for each parameter that is initialised.
    MMLogger.get_instance('mmengine').setLevel('WARNING')
    about, rows = describe(args), []
    for group in args.groups:
        rows += run_group(group, args)
    measured = dict(about, rows=rows)
    texts = report_performance.training_texts(measured)
    print('\n\n'.join(texts.values()))
    paths = report_performance.write_results(measured, texts, args.out,
                                             report_performance.TRAINING)
    if args.page:
        paths += report_performance.write_page(args.out)
    for path in paths:
        print(path)


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
