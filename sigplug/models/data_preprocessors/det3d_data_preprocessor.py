"""Voxelise batches with samples that have no points."""
import torch
from mmdet3d.models.data_preprocessors import (
    Det3DDataPreprocessor as _Det3DDataPreprocessor,
)
from torch import Tensor

from sigplug.registry import MODELS


@MODELS.register_module()
class Det3DDataPreprocessor(_Det3DDataPreprocessor):
    """mmdet3d's preprocessor, also for samples without points.

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
        cells = super().voxelize(points, data_samples)
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
