"""What the tools for exported detectors share."""
import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from detector_parts import pillar_encoder
from mmengine.config import Config
from torch import nn

from sigplug.cli.machine import list_versions
from sigplug.deploy import Detections, Detector
from sigplug.deploy.folder import (
    DENSE,
    DESCRIPTION,
    ENCODER,
    FORMAT,
    checksum,
)
from sigplug.errors import UserError

# What an export needs.
PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')


def write_description(folder: Path, about: dict[str, Any]) -> None:
    """Write ``deploy.json``, with the checksums of the models, and try it."""
    files = {name: checksum(folder / name) for name in (ENCODER, DENSE)}
    text = json.dumps(dict(about, format=FORMAT, files=files), indent=2)
    (folder / DESCRIPTION).write_text(f'{text}\n')
    Detector(folder)


def describe(cfg: Config, model: nn.Module, args: argparse.Namespace,
             about: dict[str, Any]) -> dict[str, Any]:
    head, layer = model.pts_bbox_head, model.data_preprocessor.voxel_layer
    coder = head.bbox_coder
    middle = model.pts_middle_encoder
    encoder = pillar_encoder(model)
    return dict(
        tasks=about['tasks'],
        points=describe_points(cfg, encoder.num_columns),
        voxels=dict(
            voxel_size=list(layer.voxel_size),
            point_cloud_range=list(layer.point_cloud_range),
            max_points=layer.max_num_points,
            max_voxels=layer.max_voxels[1]),
        encoder=encoder.describe(),
        map_size=[middle.ny, middle.nx],
        heatmap=args.heatmap,
        coder=dict(
            {key: getattr(coder, key) for key in (
                'pc_range', 'voxel_size', 'out_size_factor', 'max_num',
                'score_threshold', 'post_center_range')},
            norm_bbox=bool(head.norm_bbox)),
        box_size=9 if 'vel' in head.task_heads[0].heads else 7,
        nms={key: head.test_cfg.get(key) for key in (
            'nms_type', 'min_radius', 'nms_thr', 'score_threshold',
            'pre_max_size', 'post_max_size', 'post_center_limit_range')},
        divisor=about['divisor'],
        precision=args.precision,
        opset=args.opset,
        config=args.config,
        cfg_options=args.cfg_options or {},
        checkpoint=args.checkpoint,
        checkpoint_sha256=(None if '://' in args.checkpoint else
                           checksum(args.checkpoint)),
        versions=list_versions() | {
            name: import_module(name).__version__ for name in PACKAGES})


def describe_points(cfg: Config, num_columns: int) -> dict[str, Any]:
    """Return the columns of a file that the model takes.

    The time of merged sweeps, which is 0 for a single one, is None.
    """
    columns = None
    loader = cfg.get('test_dataloader') or dict(dataset=dict(pipeline=[]))
    for step in loader['dataset'].get('pipeline', []):
        kind = str(getattr(step['type'], '__name__', step['type']))
        use = step.get('use_dim')
        if isinstance(use, int):
            use = list(range(use))
        # The defaults are those of mmdet3d.
        if kind.endswith('LoadPointsFromFile'):
            load_dim = step.get('load_dim', 6)
            columns = list(use or [0, 1, 2])
            for key in ('shift_height', 'norm_intensity', 'norm_elongation'):
                if step.get(key):
                    raise UserError(
                        f'{kind} has {key}={step[key]}, which sigplug.deploy '
                        'does not compute: train without it.')
        elif kind.endswith('LoadPointsFromMultiSweeps') and columns:
            # It puts the time fifth.
            columns = [None if i == 4 else columns[i]
                       for i in use or (0, 1, 2, 4)]
    if columns is None:
        raise UserError('The config has no LoadPointsFromFile in '
                        'test_dataloader.dataset.pipeline, which tells what '
                        'the model takes of each point.')
    if len(columns) != num_columns:
        raise UserError(
            'test_dataloader.dataset.pipeline gives the columns '
            f'{columns} of a file (None: the time), but pts_voxel_encoder '
            f'takes {num_columns} values of each point.')
    return dict(load_dim=load_dim, columns=columns)


def box_distances(a: Detections, b: Detections) -> np.ndarray:
    """Return the largest difference in a value of each box to each other.

    A yaw counts by its sine and cosine, the score and the label as values.
    """
    rows = [np.concatenate([
        found.boxes[:, :6], np.sin(found.boxes[:, 6:7]),
        np.cos(found.boxes[:, 6:7]), found.boxes[:, 7:],
        found.scores[:, None], found.labels[:, None]], axis=1)
        for found in (a, b)]
    return np.abs(rows[0][:, None] - rows[1]).max(axis=2)
