"""Voxelise batches, including samples without points."""
import math
from typing import Any

import torch
from mmdet3d.models.data_preprocessors import (
    Det3DDataPreprocessor as _Det3DDataPreprocessor,
)
from torch import Tensor

from sigplug.ops.hard_voxelize import voxelize_batch
from sigplug.registry import MODELS

# mmcv's CPU form fills a table of all cells: with more, a sort is faster.
MANY_CELLS = 10**7


@MODELS.register_module()
class Det3DDataPreprocessor(_Det3DDataPreprocessor):
    """mmdet3d's preprocessor, faster and also for samples without points.

    Hard voxels come from :func:`sigplug.ops.hard_voxelize` on CUDA, and on a
    CPU where the grid is fine: the same voxels in the same order, for the
    whole batch at once. It waits once for the device; mmcv numbers the voxels
    in a single thread. ``deterministic=False`` in ``voxel_layer`` keeps mmcv's
    own form.

    mmdet3d's detectors take the size of a batch from its last cell: without
    any cell they raise an ``IndexError``, and where the last sample has none
    its result is missing. Here such a batch gets a cell without points. The
    voxel encoders of sigplug reduce it to zeros, as an empty map has them;
    those of mmdet3d for hard voxels stay finite.

    A sample without points is marked by ``no_points=True`` in the
    ``metainfo`` of its data sample; :class:`sigplug.CenterHead` predicts
    nothing for it.

    Args:
        *args: Those of mmdet3d's ``Det3DDataPreprocessor``.
        non_blocking (bool): Copy the batch to a GPU without waiting for each
            of its tensors. Defaults to True; upstream's default is False.
        **kwargs: Those of mmdet3d's ``Det3DDataPreprocessor``.
    """

    def __init__(self, *args: Any, non_blocking: bool = True,
                 **kwargs: Any) -> None:
        super().__init__(*args, non_blocking=non_blocking, **kwargs)

    def voxelize(self, points: list[Tensor],
                 data_samples: list | None) -> dict[str, Tensor]:
        """Voxelise the points ``(M, C)`` of each sample, as upstream does.

        ``coors`` always ends in a row of the last sample.
        """
        for sample, own in zip(data_samples or (), points):
            if len(own) == 0:
                sample.set_metainfo(dict(no_points=True))
        last = len(points) - 1
        if self._sorts(points):
            cells, is_full = self._voxelize_by_sort(points)
        else:
            cells = super().voxelize(points, data_samples)
            coors = cells['coors']
            # Of dynamic voxels, which has a row for each point, the last row
            # is known; of mmcv's hard voxels, this would wait for a GPU.
            is_full = len(points[last]) > 0 if (
                self.voxel_type == 'dynamic') else (
                    len(coors) > 0 and int(coors[-1, 0]) == last)
        if is_full:
            return cells
        for name, value in cells.items():
            # No point, by which mmdet3d's encoders divide; a point out of
            # range, in dynamic voxelisation: part of no cell.
            fill = -1 if name == 'num_points' or (
                name == 'coors' and self.voxel_type == 'dynamic') else 0
            row = value.new_full((1, *value.shape[1:]), fill)
            if name == 'coors':
                row[:, 0].fill_(last)
            cells[name] = torch.cat((value, row))
        return cells

    def _sorts(self, points: list[Tensor]) -> bool:
        """Return whether a sort gives the voxels faster than mmcv does."""
        if self.voxel_type != 'hard' or not self.voxel_layer.deterministic:
            return False
        return points[0].is_cuda or math.prod(
            self.voxel_layer.grid_shape) > MANY_CELLS

    def _voxelize_by_sort(
            self, points: list[Tensor]) -> tuple[dict[str, Tensor], bool]:
        """Return upstream's hard voxels, and if the last sample has any."""
        layer = self.voxel_layer
        voxels, coors, counts, num_voxels = voxelize_batch(
            points, layer.voxel_size, layer.point_cloud_range,
            layer.max_num_points, layer.max_voxels[not self.training])
        # Not new_tensor() of a list, which waits for a GPU.
        size, origin = (
            torch.tensor(values, dtype=voxels.dtype).to(
                voxels.device, non_blocking=True)
            for values in (layer.voxel_size, layer.point_cloud_range[:3]))
        centers = (coors[:, 1:].flip(1) + 0.5) * size + origin
        return dict(voxels=voxels, coors=coors, num_points=counts,
                    voxel_centers=centers), num_voxels[-1] > 0
