"""Targets of CenterPoint's head, of :func:`sigplug.ops.center_targets`."""
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from sigplug.ops import center_targets, covered_cells

GRID_KEYS = ('grid_size', 'voxel_size', 'point_cloud_range',
             'out_size_factor')
# The entries of train_cfg that the targets need.
TARGET_KEYS = (*GRID_KEYS, 'max_objs', 'dense_reg', 'min_radius',
               'gaussian_overlap')


def head_targets(
    batch_gt_instances_3d: list[InstanceData],
    cfg: dict[str, Any] | None,
    num_classes: list[int],
    box_size: int,
    norm_bbox: bool = True
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Return the targets of mmdet3d's loop over boxes, without the loop.

    Args:
        batch_gt_instances_3d (list[InstanceData]): ``bboxes_3d`` (at least
            ``box_size`` values) and ``labels_3d`` of each sample.
        cfg (dict, optional): The ``train_cfg`` of the head.
        num_classes (list[int]): The number of classes of each task.
        box_size (int): The number of box values that are learnt, 7 or 9.
        norm_bbox (bool): Learn the logarithm of the size.

    Returns:
        tuple[list[Tensor]]: One entry per task, with ``K`` the largest
        number of objects: heatmaps ``(B, classes, H, W)``, boxes
        ``(B, K, box_size + 1)``, indices of the cells ``(B, K)`` int64 and
        masks ``(B, K)`` uint8.

    Raises:
        ValueError: ``cfg`` lacks a value, or the boxes have too few.
    """
    cfg = cfg or {}
    absent = [key for key in TARGET_KEYS if cfg.get(key) is None]
    if absent:
        raise ValueError(f'the losses need {", ".join(absent)} in train_cfg, '
                         f'but it is {cfg!r}')
    boxes = _boxes(batch_gt_instances_3d, box_size)
    targets = center_targets(
        boxes, [gt.labels_3d for gt in batch_gt_instances_3d], num_classes,
        **{key: cfg[key] for key in GRID_KEYS},
        gaussian_overlap=cfg['gaussian_overlap'],
        min_radius=cfg['min_radius'],
        max_objs=cfg['max_objs'] * cfg['dense_reg'],
        oriented=cfg.get('oriented_gaussians', False))
    heatmap, index, mask, offset, objects = targets
    assert not (index is None or mask is None or offset is None
                or objects is None)
    encoded = torch.where(mask.unsqueeze(3),
                          _encode(objects, offset, norm_bbox), 0)
    return (list(heatmap.split(num_classes, dim=1)), list(encoded.unbind(1)),
            list(index.unbind(1)), list(mask.to(torch.uint8).unbind(1)))


class CenterHeadTargets:
    """Targets of mmdet3d's ``CenterHead`` alone, for boxes of 9 values."""

    train_cfg: dict[str, Any]
    num_classes: list[int]
    norm_bbox: bool

    def get_targets(
        self, batch_gt_instances_3d: list[InstanceData]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Return what mmdet3d's method does; see ``head_targets``."""
        return head_targets(batch_gt_instances_3d, self.train_cfg,
                            self.num_classes, 9, self.norm_bbox)


def label_weights(batch_gt_instances_3d: list[InstanceData],
                  cfg: dict[str, Any], ignore_label: int) -> Tensor:
    """Return 0 for cells inside of a box of ``ignore_label``, and 1 else.

    The map is of float32, ``(B, 1, H, W)``.
    """
    regions = []
    for gt, values in zip(batch_gt_instances_3d,
                          _boxes(batch_gt_instances_3d, 7), strict=True):
        # NaN holds no cell; a choice of boxes would wait for a GPU.
        chosen = (gt.labels_3d == ignore_label).unsqueeze(1)
        regions.append(torch.where(chosen, values, torch.nan))
    return 1 - covered_cells(
        regions, **{key: cfg[key] for key in GRID_KEYS}).unsqueeze(1).float()


def _boxes(batch_gt_instances_3d: list[InstanceData],
           size: int) -> list[Tensor]:
    """Return the boxes of each sample, gravity centre first."""
    boxes = []
    for gt in batch_gt_instances_3d:
        values = gt.bboxes_3d.tensor
        if values.shape[1] < size:
            raise ValueError(
                f'the head predicts {size} box values, but gt bboxes_3d have '
                f"{values.shape[1]}: remove 'vel' from common_heads or give "
                'boxes with a velocity')
        values = torch.cat(
            (gt.bboxes_3d.gravity_center, values[:, 3:size]), dim=1)
        boxes.append(values.float().to(gt.labels_3d.device))
    return boxes


def _encode(boxes: Tensor, offset: Tensor, norm_bbox: bool) -> Tensor:
    """Return the regression targets: offset, z, size, sin, cos[, vx, vy]."""
    size, yaw = boxes[..., 3:6], boxes[..., 6:7]
    return torch.cat((offset, boxes[..., 2:3],
                      size.log() if norm_bbox else size, yaw.sin(), yaw.cos(),
                      boxes[..., 7:]), dim=-1)
