"""Generated scans and batches, of the size that nuScenes has."""
import math
from typing import Any

import torch
from torch import Tensor

# Points of ten sweeps, and boxes of a crowded sample.
POINTS, BOXES = 250_000, 40


def make_points(count: int, seed: int = 0, channels: int = 5) -> Tensor:
    """Return ``(x, y, z, intensity, age)`` of a scan around a sensor.

    Dense near it, up to 50 m away; shape ``(count, channels)``.
    """
    random = torch.Generator().manual_seed(seed)
    radius, angle, z, intensity, sweep = torch.rand(
        5, count, generator=random)
    radius, angle = 2 + 48 * radius**2, 2 * math.pi * angle
    return torch.stack([
        radius * angle.cos(), radius * angle.sin(), 4 * z - 3,
        255 * intensity, 0.05 * (10 * sweep).floor()
    ], dim=1)[:, :channels].contiguous()


def make_batch(samples: int, points: int, channels: int = 5,
               num_classes: int = 10, num_boxes: int = BOXES
               ) -> dict[str, Any]:
    """Return a batch as a data loader of mmdet3d does."""
    from mmdet3d.structures import (
        Box3DMode,
        Det3DDataSample,
        LiDARInstance3DBoxes,
    )
    from mmengine.structures import InstanceData
    random = torch.Generator().manual_seed(0)
    data_samples = []
    for _ in range(samples):
        boxes = torch.rand(num_boxes, 9, generator=random)
        boxes[:, :2] = 96 * boxes[:, :2] - 48
        boxes[:, 2] = -1
        boxes[:, 3:6] = 0.5 + 4 * boxes[:, 3:6]
        boxes[:, 6] = math.pi * (2 * boxes[:, 6] - 1)
        sample = Det3DDataSample(metainfo=dict(
            box_type_3d=LiDARInstance3DBoxes, box_mode_3d=Box3DMode.LIDAR))
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
            labels_3d=torch.randint(num_classes, (num_boxes, ),
                                    generator=random))
        data_samples.append(sample)
    return dict(
        inputs=dict(points=[make_points(points, seed, channels)
                            for seed in range(samples)]),
        data_samples=data_samples)
