"""One training iteration of CenterPoint models, stage by stage."""
import copy
import random
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope

from sigplug.cli import preflight
from sigplug.errors import UserError

from .data import make_data
from .timing import no_garbage_collection, quartiles, synchronize

CONFIGS = Path(__file__).resolve().parents[3] / 'configs/centerpoint'
QUICKSTART = [
    str(CONFIGS / f'centerpoint_pillar04_second_secfpn_{kind}_'
        '1xb4-onecycle-8e_nus-mini-3d.py') for kind in ('stock', 'gem')
]
FULL_SIZE = [
    'mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_'
    '8xb4-cyclic-20e_nus-3d.py',
    str(CONFIGS / 'centerpoint_pillar02_second_secfpn_gem_'
        '8xb4-cyclic-20e_nus-3d.py')
]
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


class Trainee:
    """A model and its optimizer, whose stages are timed."""

    def __init__(self, path: str, cfg: Config, device: torch.device) -> None:
        self.name = Path(path.rpartition('::')[2]).stem
        self.label = 'sigplug' if 'sigplug.' in str(cfg.model) else 'stock'
        torch.manual_seed(0)
        self.device = device
        self.model = MODELS.build(cfg.model)
        self.model.init_weights()
        self.model.to(device).train()
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.seconds: dict[str, float] = defaultdict(float)
        for part, method, stage in STAGES:
            owner = getattr(self.model, part)
            setattr(owner, method, self.timed(getattr(owner, method), stage))

    def timed(self, call: Any, stage: str) -> Any:
        """Return a function that adds its seconds to a stage."""

        def run(*args: Any, **kwargs: Any) -> Any:
            synchronize(self.device)
            start = perf_counter()
            result = call(*args, **kwargs)
            synchronize(self.device)
            self.seconds[stage] += perf_counter() - start
            return result

        return run

    def step(self, batch: dict[str, Any]) -> dict[str, float]:
        """Run one iteration; return the seconds by stage and in total."""
        batch = copy.deepcopy(batch)
        self.seconds.clear()
        self.timed(self.iterate, 'iteration')(batch)
        seconds = dict(self.seconds)
        # The targets are made inside of the loss.
        seconds['loss'] -= seconds['targets']
        seconds['other'] = 2 * seconds['iteration'] - sum(seconds.values())
        return seconds

    def iterate(self, batch: dict[str, Any]) -> None:
        """Train with one batch."""
        inputs = self.model.data_preprocessor(batch, True)
        losses = self.model(**inputs, mode='loss')
        loss, _ = self.model.parse_losses(losses)
        if not loss.isfinite():
            raise UserError(f'the loss of {self.name} is {loss.item()}: '
                            'nothing was timed')
        self.timed(self.optimizer.backward, 'backward')(loss)
        self.timed(self.optimizer.step, 'optimizer')()
        self.optimizer.zero_grad()


def load_batch(cfg: Config, batch_size: int) -> dict[str, Any]:
    """Return a batch of a config's data set, on synthetic data."""
    dataset = cfg.train_dataloader.dataset
    # Inside wrappers that repeat the samples.
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset = copy.deepcopy(dataset)
    # Samples of other scenes cannot be pasted in.
    dataset.pipeline = [step for step in dataset.pipeline
                        if step['type'] != 'ObjectSample']
    sweeps = max(step.get('sweeps_num', 1) for step in dataset.pipeline)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / 'data'
        make_data(root, max(2, batch_size + 1), min(sweeps, 9))
        dataset.update(data_root=f'{root}/',
                       ann_file='nuscenes_infos_train.pkl')
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        samples = DATASETS.build(dataset)
        # The last ones, which have earlier sweeps.
        return pseudo_collate([samples[i] for i in range(
            len(samples) - batch_size, len(samples))])


def time_training(paths: list[str], repeat: int, device: torch.device,
                  batch_size: int | None = None) -> dict[str, Any]:
    """Train several models in turn on the same batch.

    Args:
        paths (list[str]): Their configs, the stock one first; also as
            ``mmdet3d::centerpoint/...``.
        repeat (int): Number of iterations of each.
        device (torch.device): Where they are trained.
        batch_size (int, optional): Samples in the batch; by default as in
            the first config.

    Returns:
        dict: The ``title``, a sentence about the ``input``, and ``rows``:
        for each model its ``config``, the median seconds of its ``stages``,
        and the ``quartiles`` of an iteration.
    """
    configs = [get_config(path) if '::' in path else
               preflight.load_config(path) for path in paths]
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        batch = load_batch(
            configs[0],
            batch_size or configs[0].train_dataloader.batch_size)
        trainees = [Trainee(path, cfg, device)
                    for path, cfg in zip(paths, configs)]
        for trainee in trainees:
            trainee.step(batch)
        with no_garbage_collection():
            rounds = [[trainee.step(batch) for trainee in trainees]
                      for _ in range(repeat)]
    rows = [dict(
        config=trainee.label,
        stages={name: statistics.median(step[name] for step in steps)
                for name in steps[0]},
        quartiles=quartiles([step['iteration'] for step in steps]))
        for trainee, steps in zip(trainees, zip(*rounds))]
    points = sum(map(len, batch['inputs']['points']))
    boxes = sum(len(s.gt_instances_3d) for s in batch['data_samples'])
    names = ', '.join(f'{t.label} is `{t.name}`' for t in trainees)
    return dict(
        title=trainees[-1].name, rows=rows,
        input=f'{len(batch["data_samples"])} samples of the synthetic data '
        f'set with {points} points and {boxes} boxes; {names}.')
