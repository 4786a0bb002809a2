"""Targets of CenterPoint's head, for all boxes of a batch at once."""
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from sigplug.ops import gaussian_heatmap, gaussian_radius

# The entries of train_cfg that the targets need.
TARGET_KEYS = ('grid_size', 'voxel_size', 'point_cloud_range',
               'out_size_factor', 'max_objs', 'dense_reg', 'min_radius',
               'gaussian_overlap')

# In cells: a peak that is flat over any map; it still fits an int32.
MAX_RADIUS = 2**24


def center_targets(
    batch_gt_instances_3d: list[InstanceData],
    cfg: dict[str, Any] | None,
    num_classes: list[int],
    task_of_class: Tensor,
    box_size: int,
    norm_bbox: bool = True
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Return the targets of mmdet3d's loop over boxes, without the loop.

    A box becomes a peak of its class in the cell of its centre, and the
    regression target of that cell. It is left out if its size is not
    positive, its centre lies outside the map, or ``max_objs`` boxes of its
    task come before it.

    No shape depends on the values, so that nothing waits for a GPU (beyond
    :func:`sigplug.ops.gaussian_heatmap`).

    Args:
        batch_gt_instances_3d (list[InstanceData]): ``bboxes_3d`` (at least
            ``box_size`` values) and ``labels_3d`` of each sample.
        cfg (dict, optional): The ``train_cfg`` of the head.
        num_classes (list[int]): The number of classes of each task.
        task_of_class (Tensor): The task of each class, on the device of the
            labels.
        box_size (int): The number of box values that are learnt, 7 or 9.
        norm_bbox (bool): Learn the logarithm of the size. Defaults to True.

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
    batch_size = len(batch_gt_instances_3d)
    num_tasks, num_all = len(num_classes), sum(num_classes)
    max_objs = cfg['max_objs'] * cfg['dense_reg']
    width, height = (int(size) // cfg['out_size_factor']
                     for size in cfg['grid_size'][:2])

    # All samples are drawn at once, as channels of one heatmap. Labels of no
    # class come last.
    boxes, labels, sample = _flatten(batch_gt_instances_3d, box_size)
    num_channels = batch_size * num_all
    known = (labels >= 0) & (labels < num_all)
    channel, order = torch.where(
        known, sample * num_all + labels, num_channels).sort(stable=True)
    boxes = boxes[order]

    # The place of a box among those of its sample and task, in the order of
    # the classes.
    group = channel // num_all * num_tasks + task_of_class[channel % num_all]
    slot = torch.arange(len(group), device=group.device)
    slot = slot - torch.searchsorted(group, group)

    center, extent = _to_cells(boxes, cfg)
    # Compared as floats: a NaN has no integer value.
    drawn = ((channel < num_channels) & (slot < max_objs)
             & (extent > 0).all(1) & (center > -1).all(1)
             & (center[:, 0] < width) & (center[:, 1] < height))
    cell = center.int()
    radius = gaussian_radius(
        extent[:, 1], extent[:, 0], min_overlap=cfg['gaussian_overlap'])
    radius = radius.nan_to_num().clamp(cfg['min_radius'], MAX_RADIUS).int()
    heatmap = gaussian_heatmap(
        cell, torch.where(drawn, radius, -1),
        channel.clamp(max=num_channels - 1), num_channels,
        (height, width)).view(batch_size, num_all, height, width)

    # Boxes that are not drawn go to one more place, which is cut off.
    num_places = batch_size * num_tasks * max_objs
    place = torch.where(drawn, group * max_objs + slot, num_places)

    def scatter(values: Tensor) -> list[Tensor]:
        places = values.new_zeros(num_places + 1, *values.shape[1:])
        places[place] = values
        return list(places[:-1].view(batch_size, num_tasks, max_objs,
                                     *values.shape[1:]).unbind(1))

    return (list(heatmap.split(num_classes, dim=1)),
            scatter(_encode(boxes, center - cell, norm_bbox)),
            scatter(cell[:, 1].long() * width + cell[:, 0]),
            scatter(torch.ones_like(place, dtype=torch.uint8)))


def _flatten(batch_gt_instances_3d: list[InstanceData],
             size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (gravity centre first), labels and sample of a batch."""
    boxes, labels, samples = [], [], []
    for sample, gt in enumerate(batch_gt_instances_3d):
        values = gt.bboxes_3d.tensor
        if values.shape[1] < size:
            raise ValueError(
                f'the head predicts {size} box values, but gt bboxes_3d have '
                f"{values.shape[1]}: remove 'vel' from common_heads or give "
                'boxes with a velocity')
        values = torch.cat(
            (gt.bboxes_3d.gravity_center, values[:, 3:size]), dim=1)
        boxes.append(values.float().to(gt.labels_3d.device))
        labels.append(gt.labels_3d.long())
        samples.append(torch.full_like(labels[-1], sample))
    return torch.cat(boxes), torch.cat(labels), torch.cat(samples)


def _to_cells(boxes: Tensor, cfg: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return centres (x, y) and extents (length, width) in cells."""
    # With Python numbers: a tensor of them would have to be copied to the
    # GPU, where its quotients also differ from upstream's in the last bit.
    centers, extents = [], []
    for axis in range(2):
        voxel, factor = cfg['voxel_size'][axis], cfg['out_size_factor']
        origin = cfg['point_cloud_range'][axis]
        centers.append((boxes[:, axis] - origin) / voxel / factor)
        extents.append(boxes[:, 3 + axis] / voxel / factor)
    return torch.stack(centers, dim=1), torch.stack(extents, dim=1)


def _encode(boxes: Tensor, offset: Tensor, norm_bbox: bool) -> Tensor:
    """Return the regression targets: offset, z, size, sin, cos[, vx, vy]."""
    size, yaw = boxes[:, 3:6], boxes[:, 6:7]
    return torch.cat((offset, boxes[:, 2:3],
                      size.log() if norm_bbox else size, yaw.sin(), yaw.cos(),
                      boxes[:, 7:]), dim=1)
