"""An iteration and a frame of CenterPoint, stage by stage."""
import copy
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import mmdet3d
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from sigplug.cli import preflight

from .data import POINTS, make_batch
from .timing import (
    between,
    error_text,
    extra_memory,
    mark,
    no_garbage_collection,
    quartiles,
    synchronize,
)

OWN = Path(__file__).resolve().parents[3] / 'configs/centerpoint'
MMDET3D = Path(mmdet3d.__file__).parent / '.mim/configs/centerpoint'
SMALL, CIRCLE, ROTATE, VOXEL = (
    'pillar04', 'pillar02, circle NMS', 'pillar02, rotated NMS',
    'voxel0075, circle NMS')
CONFIGS = {
    SMALL: OWN / ('centerpoint_pillar04_second_secfpn_stock_'
                  '1xb2-onecycle-5e_nus-mini-3d.py'),
    CIRCLE: MMDET3D / ('centerpoint_pillar02_second_secfpn_head-circlenms_'
                       '8xb4-cyclic-20e_nus-3d.py'),
    ROTATE: MMDET3D / ('centerpoint_pillar02_second_secfpn_'
                       '8xb4-cyclic-20e_nus-3d.py'),
    VOXEL: MMDET3D / ('centerpoint_voxel0075_second_secfpn_head-circlenms_'
                      '8xb4-cyclic-20e_nus-3d.py'),
}
# Each has all that the ones before it have.
KINDS = ('stock', '+ sigplug head', '+ voxels, scatter', '+ logits loss, GeM')
# Methods of the model's parts that make up a stage.
STAGES = (
    ('data_preprocessor', 'forward', 'voxelise'),
    ('pts_voxel_encoder', 'forward', 'encoder'),
    ('pts_middle_encoder', 'forward', 'middle encoder'),
    ('pts_backbone', 'forward', 'backbone'),
    ('pts_neck', 'forward', 'neck'),
    ('pts_bbox_head', 'forward', 'head'),
    ('pts_bbox_head', 'get_targets', 'targets'),
    ('pts_bbox_head', 'loss_by_feat', 'loss'),
    ('pts_bbox_head', 'predict_by_feat', 'decode + NMS'),
)
# A slow model is run for about so many seconds, but at least thrice.
SECONDS, ROUNDS = 3.0, 3


class Setting(NamedTuple):
    """A model and what it is given."""

    model: str
    samples: int = 1
    amp: bool = False
    points: int = POINTS


def find_settings(trains: bool, device: torch.device,
                  quick: bool) -> dict[str, Setting]:
    # mmcv's sparse convolutions need CUDA.
    if quick:
        found = [Setting(SMALL, 1, amp, 20_000) for amp in (False, True)]
    elif device.type == 'cpu':
        found = [Setting(SMALL, 4, False, 50_000), Setting(CIRCLE)]
    elif trains:
        found = [Setting(model, samples, amp) for samples in (4, 1)
                 for amp in (False, True) for model in (CIRCLE, VOXEL)]
    else:
        found = [Setting(model, 1, amp) for amp in (False, True)
                 for model in (CIRCLE, ROTATE, VOXEL)]
        found += [Setting(CIRCLE, 4), Setting(VOXEL, 4)]
    amp = ('bf16' if device.type == 'cpu' else 'fp16') + ' AMP'
    what = 'iteration' if trains else 'prediction'
    return {f'{each.model}, {what}, batch {each.samples}, '
            f'{amp if each.amp else "fp32"}': each for each in found}


def change(model: ConfigDict, kind: str) -> ConfigDict:
    """Return the config of a stock model with the parts of a kind."""
    model, level = copy.deepcopy(model), KINDS.index(kind)
    head, scatter = model.pts_bbox_head, model.pts_middle_encoder
    if level > 0:
        head.type = 'sigplug.CenterHead'
    if level > 1:
        model.data_preprocessor.type = 'sigplug.Det3DDataPreprocessor'
        if scatter.type == 'PointPillarsScatter':
            scatter.update(
                type='sigplug.PointPillarsScatter', channels_last=True)
    if level > 2:
        head.loss_cls.type = 'GaussianFocalLossWithLogits'
        if model.pts_voxel_encoder.type == 'PillarFeatureNet':
            model.pts_voxel_encoder.type = 'sigplug.GeMPillarFeatureNet'
    return model


class Detector:
    """A model whose stages are timed, in training and in inference."""

    def __init__(self, kind: str, cfg: Config, device: torch.device) -> None:
        self.kind, self.cfg, self.device = kind, cfg, device
        torch.manual_seed(0)
        self.model = MODELS.build(change(cfg.model, kind))
        if kind == KINDS[0]:
            self.model.init_weights()
        self.model.to(device)
        self.marks: list[tuple[str, Any, Any]] = []
        for part, method, stage in STAGES:
            owner = getattr(self.model, part)
            setattr(owner, method, self.timed(getattr(owner, method), stage))

    def start(self, state: dict[str, Any], trains: bool, amp: bool) -> None:
        """Take over weights, and train or predict from now on."""
        self.model.load_state_dict(state, strict=False)
        self.model.train(trains)
        self.amp, self.optimizer = amp, None
        if trains:
            wrapper = copy.deepcopy(self.cfg.optim_wrapper)
            if amp:
                wrapper.type = 'AmpOptimWrapper'
                if self.device.type == 'cpu':
                    wrapper.type = ('sigplug.engine.optim_wrapper.'
                                    'CPUAmpOptimWrapper')
            self.optimizer = build_optim_wrapper(self.model, wrapper)

    def timed(self, call: Callable, stage: str) -> Callable:
        """Return a function that notes when it begins and ends."""

        def run(*args: Any, **kwargs: Any) -> Any:
            begin = mark(self.device)
            result = call(*args, **kwargs)
            self.marks.append((stage, begin, mark(self.device)))
            return result

        return run

    def run(self, batch: dict[str, Any]) -> Any:
        """Train with a batch and return the loss, or predict its boxes."""
        if self.optimizer is None:
            with torch.no_grad(), torch.autocast(
                    self.device.type, enabled=self.amp):
                return self.model.test_step(batch)
        with self.optimizer.optim_context(self.model):
            losses = self.model(
                **self.model.data_preprocessor(batch, True), mode='loss')
        loss, _ = self.model.parse_losses(losses)
        self.timed(self.optimizer.backward, 'backward')(loss)
        self.timed(self.optimizer.step, 'optimizer')()
        self.optimizer.zero_grad()
        return loss.detach()

    def first(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Warm up; return loss or boxes, waits, and bytes beyond those held.

        ``waits`` counts by place where torch waits for a GPU.
        """
        result = self.run(copy.deepcopy(batch))
        about = dict(loss=float(result)) if self.optimizer else dict(
            boxes=sum(len(r.pred_instances_3d) for r in result))
        batch_1, batch_2 = copy.deepcopy(batch), copy.deepcopy(batch)
        return about | dict(
            waits=find_waits(lambda: self.run(batch_1), self.device),
            extra_bytes=extra_memory(lambda: self.run(batch_2), self.device))

    def step(self, batch: dict[str, Any]) -> dict[str, float]:
        """Run once; return the seconds by stage and in total."""
        batch = copy.deepcopy(batch)
        self.marks.clear()
        synchronize(self.device)
        self.timed(self.run, 'total')(batch)
        synchronize(self.device)
        seconds: dict[str, float] = defaultdict(float)
        for stage, begin, end in self.marks:
            seconds[stage] += between(begin, end)
        if 'targets' in seconds:
            # They are made inside of the loss.
            seconds['loss'] -= seconds['targets']
        seconds['other'] = 2 * seconds['total'] - sum(seconds.values())
        return dict(seconds)


def find_waits(step: Callable[[], Any],
               device: torch.device) -> dict[str, int]:
    """Count where a step waits for a GPU, as far as torch notices it."""
    if device.type != 'cuda':
        return {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    return dict(Counter(
        '/'.join(Path(warning.filename).parts[-2:]) + f':{warning.lineno}'
        for warning in caught
        if 'called a synchronizing' in str(warning.message)).most_common())


@lru_cache(maxsize=1)
def build(name: str, device: torch.device
          ) -> list[tuple[str, Detector | str, dict[str, Any]]]:
    """Build all kinds of a model, with equal weights; or say why not."""
    cfg = preflight.load_config(str(CONFIGS[name]))
    built, weights = [], {}
    for kind in KINDS:
        try:
            detector = Detector(kind, cfg, device)
        except Exception as error:
            built.append((kind, error_text(error), {}))
            continue
        weights = weights or detector.model.state_dict()
        detector.model.load_state_dict(weights, strict=False)
        built.append((kind, detector, copy.deepcopy(
            detector.model.state_dict())))
    return built


def measure(setting: Setting, trains: bool, repeat: int,
            device: torch.device) -> dict[str, Any]:
    """Run all kinds of a model in turn on the same batch.

    A row has the median seconds of the ``stages`` of a kind and the
    ``quartiles`` of the total, or an ``error``.
    """
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        rows, running = [], []
        for kind, detector, state in build(setting.model, device):
            rows.append(row := dict(config=kind))
            if isinstance(detector, str):
                row['error'] = detector
                continue
            model = detector.cfg.model
            batch = make_batch(
                setting.samples, setting.points,
                model.pts_voxel_encoder.get('in_channels', 5),
                sum(task['num_class'] for task in model.pts_bbox_head.tasks))
            try:
                detector.start(state, trains, setting.amp)
                row |= detector.first(batch)
            except Exception as error:
                row['error'] = error_text(error)
                continue
            running.append((row, detector))
        steps: list[list[dict[str, float]]] = []
        end = perf_counter() + SECONDS
        with no_garbage_collection():
            while len(steps) < repeat and (
                    len(steps) < ROUNDS or perf_counter() < end):
                steps.append([each.step(batch) for _, each in running])
    for (row, _), own in zip(running, zip(*steps)):
        row['stages'] = {name: statistics.median(step[name] for step in own)
                         for name in own[0]}
        row['quartiles'] = quartiles([step['total'] for step in own])
    return dict(rows=rows, rounds=len(steps), points=setting.points)
