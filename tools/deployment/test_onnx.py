"""Evaluate exported detectors by onnxruntime, beside the PyTorch model.

All run in turn on each sample of the config's test set, one at a time and
with the same number of threads, and get the evaluation of the config. The
table has their metrics and the differences from PyTorch, the frames with the
same boxes, the median time of each step, and the sizes.
"""
import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exported import box_distances
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import nn
from tqdm import tqdm

from sigplug.cli import arguments, build, explain, preflight, process
from sigplug.cli.machine import describe_machine, list_versions
from sigplug.cli.results import summarize_nuscenes, write_json
from sigplug.deploy import Detections, Detector
from sigplug.deploy.folder import checksum
from sigplug.errors import UserError

# Boxes that are as near as this in every value are the same.
SAME = 1e-3
STEPS = ('encode', 'network', 'decode')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'folders', nargs='+', metavar='FOLDER',
        help='what export_onnx.py or quantize_onnx.py has written')
    parser.add_argument(
        '--checkpoint',
        help='of the PyTorch model (default: the one that was exported)')
    parser.add_argument(
        '--out', type=Path, metavar='FILE.json',
        help='also write the results to this file')
    arguments.add_cfg_options(parser)
    return arguments.parse_args(parser)


class TimedModel:
    """mmdet3d's CenterPoint, with the time of each step."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.marks: list[float] = []
        for part in (model.pts_middle_encoder, model.pts_bbox_head):
            part.register_forward_hook(
                lambda *_: self.marks.append(time.perf_counter()))

    def __call__(self, batch: dict) -> tuple[Detections, np.ndarray, Any]:
        """Return the boxes, the milliseconds and the data sample."""
        self.marks = [time.perf_counter()]
        sample, = self.model.test_step(batch)
        self.marks.append(time.perf_counter())
        found = sample.pred_instances_3d
        return Detections(
            found.bboxes_3d.tensor.numpy(), found.scores_3d.numpy(),
            found.labels_3d.numpy()), 1e3 * np.diff(self.marks), sample


def detect(detector: Detector,
           points: np.ndarray) -> tuple[Detections, np.ndarray]:
    marks = [time.perf_counter()]
    # A frame without points has no boxes.
    canvas = detector.encode(points) if len(points) else None
    marks.append(time.perf_counter())
    outputs = {} if canvas is None else detector.infer(canvas)
    marks.append(time.perf_counter())
    found = detector.decode(outputs)
    marks.append(time.perf_counter())
    return found, 1e3 * np.diff(marks)


def same_boxes(a: Detections, b: Detections) -> bool:
    """Return whether each box of one is among those of the other."""
    if len(a.boxes) != len(b.boxes):
        return False
    nearest = box_distances(a, b).min(axis=1, initial=np.inf)
    return bool((nearest <= SAME).all())


def find_checkpoint(args: argparse.Namespace,
                    detectors: dict[str, Detector]) -> str:
    """Return the checkpoint that all the folders come from."""
    path = args.checkpoint or next(iter(detectors.values())).about[
        'checkpoint']
    if '://' in path:
        raise UserError(f'The model was exported from {path}: download this '
                        'file and give it as --checkpoint.')
    preflight.check_checkpoint(path, '--checkpoint')
    for folder, detector in detectors.items():
        # Of a checkpoint from the net it is not known.
        digest = detector.about['checkpoint_sha256']
        if digest not in (None, checksum(path)):
            raise UserError(
                f'{folder} was exported from another checkpoint than '
                f'{path!r}: {detector.about["checkpoint"]!r} as it was then.')
    return path


def evaluate(cfg: Config, model: nn.Module,
             detectors: dict[str, Detector]) -> dict[str, dict]:
    loader = Runner.build_dataloader(cfg.test_dataloader)
    timed = TimedModel(model)
    names = ['PyTorch', *detectors]
    evaluators = {name: Evaluator(cfg.test_evaluator) for name in names}
    times: dict[str, list] = {name: [] for name in names}
    same = dict.fromkeys(names, 0)
    for batch in tqdm(loader, leave=False):
        points = batch['inputs']['points'][0].numpy().copy()
        wanted, ms, sample = timed(batch)
        for name in names:
            found = wanted
            if name != 'PyTorch':
                found, ms = detect(detectors[name], points)
                sample = to_sample(sample, found)
            same[name] += same_boxes(wanted, found)
            times[name].append(ms)
            evaluators[name].process([sample], batch)
    results = {}
    for name, evaluator in evaluators.items():
        evaluator.dataset_meta = loader.dataset.metainfo
        metrics = evaluator.evaluate(len(loader.dataset))
        table = np.array(times[name])
        results[name] = dict(
            summarize_nuscenes(metrics),
            same_frames=same[name], frames=len(table),
            milliseconds=dict(
                zip(STEPS, np.median(table, axis=0).round(2).tolist()),
                total=round(float(np.median(table.sum(axis=1))), 2)))
    return results


def to_sample(like: Any, found: Detections) -> Any:
    sample = like.clone()
    boxes = like.pred_instances_3d.bboxes_3d
    sample.pred_instances_3d = InstanceData(
        bboxes_3d=type(boxes)(found.boxes, box_dim=found.boxes.shape[1]),
        scores_3d=torch.from_numpy(found.scores),
        labels_3d=torch.from_numpy(found.labels))
    return sample


def report(results: dict[str, dict]) -> None:
    """Print a table, with the differences from the first column."""
    runs = list(results.values())
    metrics = [dict(mAP=run['mAP'], NDS=run['NDS'], **{
        f'AP {name}': ap for name, ap in run['class_AP'].items()})
        for run in runs]

    def row(name: str, values: Iterable[str]) -> None:
        print(f'{name:24s}' + ''.join(f'{value:>22s}' for value in values))

    row('', (name[-20:] for name in results))
    for key, base in metrics[0].items():
        row(key, (f'{values[key]:.4f} ({values[key] - base:+.4f})'
                  for values in metrics))
    row(f'frames equal to {SAME:g}', (
        f'{run["same_frames"]}/{run["frames"]}' for run in runs))
    for step in (*STEPS, 'total'):
        row(f'ms {step}', (f'{run["milliseconds"][step]:.1f}' for run in runs))
    row('MiB of models', (f'{run["mib"]:.2f}' for run in runs))


@torch.no_grad()
def main() -> None:
    args = parse_args()
    cfg = preflight.load_config(args.config, args.cfg_options)
    if 'NuScenesMetric' not in str(cfg.get('test_evaluator')):
        raise UserError('test_evaluator of the config has no NuScenesMetric, '
                        'whose mAP and NDS this tool compares.')
    detectors = {
        folder: Detector(folder, threads=torch.get_num_threads())
        for folder in args.folders}
    checkpoint = find_checkpoint(args, detectors)
    preflight.check_data(cfg, 'test')
    preflight.check_stack(cfg)
    init_default_scope(cfg.get('default_scope', 'mmdet3d'))
    # One sample at a time, without workers that share the cores.
    cfg.test_dataloader.update(
        batch_size=1, num_workers=0, persistent_workers=False)
    with (explain.explain_build_errors(cfg),
          explain.explain_data_errors(cfg.test_dataloader)):
        model = build.build_model(cfg, checkpoint, 'cpu')
        results = evaluate(cfg, model, detectors)
    results['PyTorch']['mib'] = Path(checkpoint).stat().st_size / 2**20
    for folder in detectors:
        results[folder]['mib'] = sum(
            path.stat().st_size for path in Path(folder).glob('*.onnx')
        ) / 2**20
    report(results)
    if args.out:
        write_json(args.out, dict(
            config=args.config, checkpoint=checkpoint,
            threads=torch.get_num_threads(), machine=describe_machine(),
            versions=list_versions(), results=results))


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
