"""Points sorted into the voxels of a grid."""
from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import check_flag, check_float_tensor, check_integer, is_number
from ._dtypes import upcast_half


def hard_voxelize(
        points: Tensor | Sequence[Tensor], voxel_size: Sequence[float],
        point_cloud_range: Sequence[float], max_points: int, max_voxels: int,
        *, pad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Gather the points of each voxel, at most ``max_points`` of them.

    The result is that of mmcv's deterministic hard voxelisation, bit for bit
    and in its order: voxels in the order of their first points, of which the
    first ``max_voxels`` are kept, and in each its first ``max_points``
    points. A stable sort replaces the loop over the points (on CUDA mmcv
    numbers the voxels in a single thread). It waits once for the device, for
    the number of voxels, unless the result is padded. A point with a NaN is
    in no voxel, as on mmcv's CPU; on CUDA mmcv takes its cell along that axis
    for the first.

    Args:
        points (Tensor | Sequence[Tensor]): Points ``(x, y, z, ...)`` in
            metres, shape ``(N, C)``; or those of each sample of a batch.
        voxel_size (Sequence[float]): Extents along x, y, z in metres.
        point_cloud_range (Sequence[float]): ``(x_min, y_min, z_min, x_max,
            y_max, z_max)`` in metres.
        max_points (int): Points that are kept of a voxel.
        max_voxels (int): Voxels that are kept of a sample.
        pad (bool): Return ``max_voxels`` rows for each sample; those without
            a voxel have the coordinates -1 and no points. Nothing waits for
            the device then, as the shape is known. Defaults to False.

    Returns:
        tuple[Tensor, Tensor, Tensor]: The points of the voxels, shape
        ``(M, max_points, C)``, 0 where there is none; the coordinates of the
        voxels, ``(z, y, x)`` of shape ``(M, 3)`` or, of a batch,
        ``(sample, z, y, x)`` of shape ``(M, 4)``, int32; and their numbers of
        points, ``(M, )`` int32.

    Raises:
        TypeError: ``points`` is neither a floating point tensor nor a
            sequence of them.
        ValueError: An argument does not have the shape described.

    Examples:
        >>> points = torch.tensor([[0.6, 0.1, 0.1], [0.2, 0.1, 0.1],
        ...                        [0.7, 0.2, 0.3]])
        >>> voxels, coordinates, counts = hard_voxelize(
        ...     points, (0.5, 0.5, 1.0), (0, 0, 0, 1, 1, 1), 5, 10)
        >>> coordinates.tolist(), counts.tolist()
        ([[0, 0, 1], [0, 0, 0]], [2, 1])
    """
    batch = [points] if isinstance(points, Tensor) else list(points)
    voxels, coordinates, counts, _ = voxelize_batch(
        batch, voxel_size, point_cloud_range, max_points, max_voxels, pad)
    if isinstance(points, Tensor):
        coordinates = coordinates[:, 1:]
    return voxels, coordinates, counts


def voxelize_batch(
        batch: list[Tensor], voxel_size: Sequence[float],
        point_cloud_range: Sequence[float], max_points: int, max_voxels: int,
        pad: bool = False) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Return what :func:`hard_voxelize` does, and the rows per sample."""
    if not batch:
        raise ValueError('points must hold at least one sample, but is empty')
    for points in batch:
        check_float_tensor('points', points)
        if points.dim() != 2 or points.shape[1] < 3:
            raise ValueError('points must have the shape (N, C) with (x, y, '
                             f'z) first, but got {tuple(points.shape)}')
    check_integer('max_points', max_points, 1)
    check_integer('max_voxels', max_voxels, 1)
    check_flag('pad', pad)
    x = torch.cat(batch)
    grid, origin, size = _read_grid(voxel_size, point_cloud_range, x)
    cells, inside = _find_cells(x, grid, origin, size)
    lengths = [len(sample) for sample in batch]
    place = torch.arange(len(x), device=x.device)
    sample = torch.cat([place.new_full((n, ), i)
                        for i, n in enumerate(lengths)])

    # The points of a voxel, in their order, become neighbours.
    key = sample
    for axis in (2, 1, 0):
        key = key * grid[axis] + cells[:, axis]
    key = torch.where(inside, key, len(batch) * grid[0] * grid[1] * grid[2])
    key, order = key.sort(stable=True)
    starts = torch.ones_like(inside)
    starts[1:] = key[1:] != key[:-1]
    # By sums: on CUDA a running maximum takes a single block.
    run = starts.cumsum(0)
    start = place.new_zeros(len(x) + 1).index_put(
        (torch.where(starts, run, 0), ), place)[run]
    rank = place - start

    # Voxels are numbered by their first points, in each sample from 0 on.
    first, in_voxel = order[start], inside[order]
    is_first = torch.zeros_like(inside).index_put(
        (order, ), starts & in_voxel)
    found = torch.stack([part.sum() for part in is_first.split(lengths)])
    number = is_first.cumsum(0) - 1 - (found.cumsum(0) - found)[sample]
    fits = inside & (number < max_voxels)
    if pad:
        num_voxels = [max_voxels] * len(batch)
        before = sample * max_voxels
    else:
        kept = found.clamp(max=max_voxels)
        before = (kept.cumsum(0) - kept)[sample]
        # This waits for a GPU.
        num_voxels = kept.tolist()
    count = sum(num_voxels)

    # Points that are not kept go to one more row, which is cut off.
    row = torch.where(fits, number + before, count)
    voxel = row[first]
    in_voxel = fits[first] & in_voxel
    slot = torch.where(in_voxel & (rank < max_points),
                       voxel * max_points + rank, count * max_points)
    voxels = x.new_zeros(count * max_points + 1, x.shape[1])
    voxels[slot] = x[order]
    coordinates = torch.cat(
        [sample.unsqueeze(1), cells.flip(1)], dim=1).int()
    result = coordinates.new_full((count + 1, 4), -1)
    result[torch.where(is_first, row, count)] = coordinates
    counts = torch.zeros(count + 1, dtype=torch.int32, device=x.device)
    counts.index_add_(0, torch.where(in_voxel, voxel, count),
                      torch.ones_like(voxel, dtype=torch.int32))
    return (voxels[:-1].view(count, max_points, x.shape[1]), result[:-1],
            counts[:-1].clamp(max=max_points), num_voxels)


def _read_grid(
        voxel_size: Sequence[float], point_cloud_range: Sequence[float],
        points: Tensor) -> tuple[list[int], Tensor, Tensor]:
    """Return the number of voxels per axis, the origin and the voxel size."""
    for name, values, n in (('voxel_size', voxel_size, 3),
                            ('point_cloud_range', point_cloud_range, 6)):
        if len(values) != n or not all(map(is_number, values)):
            raise ValueError(f'{name} must be {n} numbers, but got {values}')
    # In float32, as mmcv rounds its grid.
    bounds = torch.tensor(point_cloud_range, dtype=torch.float32)
    size = torch.tensor(voxel_size, dtype=torch.float32)
    grid = ((bounds[3:] - bounds[:3]) / size).round().long().tolist()
    if min(grid) < 1:
        raise ValueError(f'voxel_size={tuple(voxel_size)} and '
                         f'point_cloud_range={tuple(point_cloud_range)} give '
                         f'a grid of {grid} voxels: each must be at least 1')
    # As tensors: on CUDA, a division by a number multiplies by its inverse.
    return (grid, bounds[:3].to(points.device, non_blocking=True),
            size.to(points.device, non_blocking=True))


def _find_cells(points: Tensor, grid: list[int], origin: Tensor,
                size: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cell ``(x, y, z)`` of each point, and whether it has one."""
    cells = ((upcast_half(points[:, :3]) - origin) / size).floor()
    # Compared as floats: a NaN has no integer value.
    last = torch.stack([cells[:, axis] < n for axis, n in enumerate(grid)], 1)
    inside = ((cells >= 0) & last).all(1)
    return torch.where(inside.unsqueeze(1), cells, 0).long(), inside
