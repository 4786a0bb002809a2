"""Voxelise batches, also of samples without points."""
import math

import torch
from mmdet3d.models.data_preprocessors import (
    Det3DDataPreprocessor as _Det3DDataPreprocessor,
)
from torch import Tensor

from sigplug.ops import hard_voxelize
from sigplug.registry import MODELS

# mmcv's CPU form fills a table of all cells: with more, a sort is faster.
MANY_CELLS = 10**7


@MODELS.register_module()
class Det3DDataPreprocessor(_Det3DDataPreprocessor):
    """mmdet3d's preprocessor, faster and also for samples without points.

    Hard voxels come from :func:`sigplug.ops.hard_voxelize` on CUDA, and on a
    CPU where the grid is fine: the same voxels in the same order, for the
    whole batch at once. ``deterministic=False`` in ``voxel_layer`` keeps
    mmcv's own form.

    mmdet3d's detectors take the size of a batch from its last cell: without
    any cell they raise an ``IndexError``, and where the last sample has none
    its result is missing. Here such a batch gets a cell without points, which
    the voxel encoders of sigplug reduce to zeros, as an empty map has them.
    Do not use it with mmdet3d's encoders: they divide by the number of
    points.

    A sample without points is marked by ``no_points=True`` in the
    ``metainfo`` of its data sample; :class:`sigplug.CenterHead` predicts
    nothing for it. The arguments are those of mmdet3d's
    ``Det3DDataPreprocessor``.
    """

    def voxelize(self, points: list[Tensor],
                 data_samples: list | None) -> dict[str, Tensor]:
        """Voxelise the points of each sample.

        Args:
            points (list[Tensor]): Points of each sample, ``(M, C)``.
            data_samples (list[Det3DDataSample], optional): Their data
                samples.

        Returns:
            dict[str, Tensor]: As upstream's; ``coors`` always ends in a row
            of the last sample.
        """
        for sample, own in zip(data_samples or (), points):
            if len(own) == 0:
                sample.set_metainfo(dict(no_points=True))
        cells = (self._voxelize_by_sort(points) if self._sorts(points) else
                 super().voxelize(points, data_samples))
        last, coors = len(points) - 1, cells['coors']
        # This waits for a GPU; upstream waits for this number as well.
        if len(coors) and int(coors[-1, 0]) == last:
            return cells
        for name, value in cells.items():
            cells[name] = torch.cat((value, value.new_zeros(
                1, *value.shape[1:])))
        # A point out of range, in dynamic voxelisation: part of no cell.
        cells['coors'][-1] = -1 if self.voxel_type == 'dynamic' else 0
        cells['coors'][-1, 0] = last
        return cells

    def _sorts(self, points: list[Tensor]) -> bool:
        """Return whether a sort gives the voxels faster than mmcv does."""
        if self.voxel_type != 'hard' or not self.voxel_layer.deterministic:
            return False
        return points[0].is_cuda or math.prod(
            self.voxel_layer.grid_shape) > MANY_CELLS

    def _voxelize_by_sort(self, points: list[Tensor]) -> dict[str, Tensor]:
        """Return what upstream's hard voxelisation does."""
        layer = self.voxel_layer
        voxels, coors, counts = hard_voxelize(
            points, layer.voxel_size, layer.point_cloud_range,
            layer.max_num_points, layer.max_voxels[not self.training])
        centers = (coors[:, [3, 2, 1]] + 0.5) * voxels.new_tensor(
            layer.voxel_size) + voxels.new_tensor(layer.point_cloud_range[:3])
        return dict(voxels=voxels, coors=coors, num_points=counts,
                    voxel_centers=centers)
