"""Targets of a heatmap head for all boxes of a batch at once."""
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import (
    check_device,
    check_flag,
    check_float_tensor,
    check_integer,
    check_integer_tensor,
    check_positive,
    check_shape,
    check_weight,
)
from .gaussian_heatmap import gaussian_heatmap, gaussian_radius

# In cells: a peak that is flat over any map; it still fits an int32.
MAX_RADIUS = 2**24
# Bounds the memory of covered_cells, some 20 bytes each.
CELLS_AT_ONCE = 2**22


class CenterTargets(NamedTuple):
    """Targets of a batch, from :func:`center_targets`.

    ``B`` samples, ``C`` classes, ``T`` tasks, ``K`` objects of each. A place
    without an object holds zeros. All but the heatmaps are None without
    ``max_objs``.
    """

    #: Float32, ``(B, C, H, W)``.
    heatmaps: Tensor
    #: The cell of each object, ``y * W + x``, int64, ``(B, T, K)``.
    indices: Tensor | None = None
    #: Where there is an object, bool, ``(B, T, K)``.
    masks: Tensor | None = None
    #: Centre minus cell, x and y in cells, float32, ``(B, T, K, 2)``.
    offsets: Tensor | None = None
    #: The boxes as they were given, float32, ``(B, T, K, D)``.
    boxes: Tensor | None = None


def center_targets(boxes: Sequence[Tensor],
                   labels: Sequence[Tensor],
                   num_classes: int | Sequence[int],
                   *,
                   grid_size: Sequence[int],
                   voxel_size: Sequence[float],
                   point_cloud_range: Sequence[float],
                   out_size_factor: int = 1,
                   gaussian_overlap: float = 0.1,
                   min_radius: int = 2,
                   max_objs: int | None = None,
                   oriented: bool = False) -> CenterTargets:
    r"""Return CenterPoint's targets, without a loop over boxes or samples.

    A box becomes a peak of its class in the cell of its centre, and that cell
    gets an offset. It is left out if its label is no class, its extent in x
    or y is not positive, its centre lies outside the map, or ``max_objs``
    boxes of its task come before it, in the order of the classes. All values
    are those of mmdet3d 1.4 (``CenterHead.get_targets_single``). For
    ``oriented``, its yaw has to be finite, too.

    ``oriented`` draws an ellipse along the box instead of a round peak, with
    :math:`\sigma = \max(\text{extent}, 2 r_{\min} + 1) / 6` in cells along
    and across the yaw, up to :math:`3 \sigma` of the longer axis. A long
    vehicle then is positive over its body, and not in a circle around a
    centre that may have no points.

    No shape depends on the values, so that nothing waits for a GPU (beyond
    :func:`gaussian_heatmap`).

    Args:
        boxes (Sequence[Tensor]): The boxes of each sample, ``(N, D)``: x, y,
            z, extents along x, y and z (at a yaw of 0) and, for ``oriented``,
            the yaw from x to y; any further values.
        labels (Sequence[Tensor]): Their classes, ``(N, )``.
        num_classes (int | Sequence[int]): The number of classes, of each task
            if there are several.
        grid_size (Sequence[int]): Voxels along x and y.
        voxel_size (Sequence[float]): Their size along x and y.
        point_cloud_range (Sequence[float]): Starts with the smallest x and y.
        out_size_factor (int): Voxels per cell of the map. Defaults to 1.
        gaussian_overlap (float): See :func:`gaussian_radius`.
            Defaults to 0.1.
        min_radius (int): Smallest radius in cells. Defaults to 2.
        max_objs (int, optional): Objects per task and sample. Defaults to
            None, the heatmaps alone.
        oriented (bool): Draw ellipses; cells are taken as square.
            Defaults to False.

    Returns:
        CenterTargets: The heatmaps and, with ``max_objs``, the objects.

    Examples:
        >>> box = torch.tensor([[2.5, 1.0, 0.0, 1.0, 1.0, 1.0]])
        >>> targets = center_targets(
        ...     [box], [torch.tensor([0])], 1, grid_size=(4, 4),
        ...     voxel_size=(1, 1), point_cloud_range=(0, 0), max_objs=1)
        >>> targets.heatmaps.argmax(), targets.indices, targets.offsets
        (tensor(6), tensor([[[6]]]), tensor([[[[0.5000, 0.0000]]]]))
    """
    check_flag('oriented', oriented)
    check_integer('min_radius', min_radius, 0)
    _check_boxes(boxes, 7 if oriented else 6)
    tasks = [num_classes] if isinstance(num_classes, int) else [*num_classes]
    for count in tasks:
        check_integer('num_classes', count, 1)
    width, height = _map_size(grid_size, voxel_size, out_size_factor)
    flat, all_labels, sample = _flatten(boxes, labels)
    num_all, batch = sum(tasks), len(boxes)

    # All samples are drawn at once, as channels of one heatmap. Labels of no
    # class come last.
    num_channels = batch * num_all
    known = (all_labels >= 0) & (all_labels < num_all)
    channel, order = torch.where(
        known, sample * num_all + all_labels, num_channels).sort(stable=True)
    flat = flat[order]
    center, extent = _to_cells(
        flat, voxel_size, point_cloud_range, out_size_factor)
    # Compared as floats: a NaN has no integer value.
    drawn = ((channel < num_channels) & (extent > 0).all(1)
             & (center > -1).all(1)
             & (center[:, 0] < width) & (center[:, 1] < height))
    if max_objs is not None:
        # The place of a box among those of its sample and task.
        check_integer('max_objs', max_objs, 1)
        # By comparisons: a table would have to be copied to a GPU.
        task = torch.zeros_like(channel)
        for first in itertools.accumulate(tasks[:-1]):
            task += channel % num_all >= first
        group = channel // num_all * len(tasks) + task
        slot = torch.arange(len(group), device=group.device)
        slot = slot - torch.searchsorted(group, group)
        drawn = drawn & (slot < max_objs)

    cell, ellipses = center.int(), None
    if oriented:
        drawn = drawn & flat[:, 6].isfinite()
        sigma = extent.clamp(min=2 * min_radius + 1) / 6
        ellipses = torch.cat((sigma, flat[:, 6:7]), 1)
        radius = (3 * sigma.amax(1)).ceil()
    else:
        radius = gaussian_radius(
            extent[:, 1], extent[:, 0], min_overlap=gaussian_overlap)
    radius = radius.nan_to_num().clamp(min_radius, MAX_RADIUS).int()
    heatmap = gaussian_heatmap(
        cell, torch.where(drawn, radius, -1),
        channel.clamp(max=num_channels - 1), num_channels, (height, width),
        ellipses=ellipses).view(batch, num_all, height, width)
    if max_objs is None:
        return CenterTargets(heatmap)

    # Boxes that are not drawn go to one more place, which is cut off.
    shape = batch, len(tasks), max_objs
    num_places = batch * len(tasks) * max_objs
    place = torch.where(drawn, group * max_objs + slot, num_places)

    def scatter(values: Tensor) -> Tensor:
        places = values.new_zeros(num_places + 1, *values.shape[1:])
        places[place] = values
        return places[:-1].view(*shape, *values.shape[1:])

    return CenterTargets(
        heatmap, scatter(cell[:, 1].long() * width + cell[:, 0]),
        scatter(torch.ones_like(drawn)), scatter(center - cell),
        scatter(flat))


def covered_cells(boxes: Sequence[Tensor],
                  *,
                  grid_size: Sequence[int],
                  voxel_size: Sequence[float],
                  point_cloud_range: Sequence[float],
                  out_size_factor: int = 1) -> Tensor:
    """Return the cells whose middle lies inside of a box, seen from above.

    Regions without labels are given as boxes ``(N, D)`` of each sample, with
    a yaw; the loss then gets ``weight=~covered_cells(...).unsqueeze(1)``. The
    arguments are those of :func:`center_targets`.

    Returns:
        Tensor: A bool map of each sample, ``(B, H, W)``.
    """
    _check_boxes(boxes, 7)
    width, height = _map_size(grid_size, voxel_size, out_size_factor)
    covered = torch.zeros(
        len(boxes), height, width, dtype=torch.bool, device=boxes[0].device)
    at_once = max(CELLS_AT_ONCE // max(height * width, 1), 1)
    for cells, sample in zip(covered, boxes, strict=True):
        # Each box of a part takes a map.
        for values in sample.split(at_once):
            x, y = (point_cloud_range[axis] - values[:, axis, None]
                    + voxel_size[axis] * out_size_factor
                    * (torch.arange(count, device=values.device) + 0.5)
                    for axis, count in enumerate((width, height)))
            x, y = x.unsqueeze(1), y.unsqueeze(2)
            half, yaw = values[:, 3:5, None, None] / 2, values[:, 6:7, None]
            cos, sin = yaw.cos(), yaw.sin()
            cells |= (((x * cos + y * sin).abs() <= half[:, 0])
                      & ((y * cos - x * sin).abs() <= half[:, 1])).any(0)
    return covered


def _check_boxes(boxes: Sequence[Tensor], size: int) -> None:
    if len(boxes) == 0:
        raise ValueError('boxes must hold a tensor for each sample, but is '
                         'empty')
    for values in boxes:
        check_float_tensor('boxes', values)
        if values.dim() != 2 or values.shape[1] < size:
            raise ValueError(f'boxes must have the shape (N, {size} or more), '
                             f'but got {tuple(values.shape)}')
        check_device('boxes', values, boxes[0])


def _map_size(grid_size: Sequence[int], voxel_size: Sequence[float],
              out_size_factor: int) -> tuple[int, int]:
    """Check the grid and return the width and the height of the map."""
    check_integer('out_size_factor', out_size_factor, 1)
    for size in voxel_size[:2]:
        check_positive('voxel_size', size)
    for size in grid_size[:2]:
        check_weight('grid_size', size)
    width, height = (int(size) // out_size_factor for size in grid_size[:2])
    return width, height


def _flatten(boxes: Sequence[Tensor],
             labels: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the boxes, labels and samples of a batch."""
    if len(labels) != len(boxes):
        raise ValueError(f'labels must be those of {len(boxes)} samples, but '
                         f'are of {len(labels)}')
    samples = []
    for sample, (values, classes) in enumerate(
            zip(boxes, labels, strict=True)):
        check_integer_tensor('labels', classes)
        check_device('labels', classes, values)
        check_shape('labels', classes, values.shape[:1])
        samples.append(torch.full_like(classes, sample, dtype=torch.long))
    return (torch.cat([*boxes]).float(), torch.cat([*labels]).long(),
            torch.cat(samples))


def _to_cells(boxes: Tensor, voxel_size: Sequence[float],
              point_cloud_range: Sequence[float],
              factor: int) -> tuple[Tensor, Tensor]:
    """Return centres (x, y) and extents (along x, y) in cells."""
    # With Python numbers: a tensor of them would have to be copied to the
    # GPU, where its quotients also differ from upstream's in the last bit.
    centers, extents = [], []
    for axis in range(2):
        voxel, origin = voxel_size[axis], point_cloud_range[axis]
        centers.append((boxes[:, axis] - origin) / voxel / factor)
        extents.append(boxes[:, 3 + axis] / voxel / factor)
    return torch.stack(centers, dim=1), torch.stack(extents, dim=1)
