"""Pillar features on the map of all cells, for a whole batch at once."""
from typing import Any

from mmdet3d.models.middle_encoders import (
    PointPillarsScatter as _PointPillarsScatter,
)
from torch import Tensor

from sigplug.registry import MODELS


@MODELS.register_module()
class PointPillarsScatter(_PointPillarsScatter):
    """mmdet3d's ``PointPillarsScatter`` without its loop over samples.

    It gives the same map, and waits once for a GPU in place of twice for each
    sample: for the batch size, which mmdet3d's detectors pass as a tensor.

    Args:
        *args: Those of mmdet3d's ``PointPillarsScatter``.
        channels_last (bool): Lay the features of a cell side by side
            (``torch.channels_last``), as convolutions want them: those behind
            keep that format, and are some 1.4 times as fast on a CPU.
            :class:`sigplug.CenterHead` takes it; a head that calls ``view``
            on its maps does not. Defaults to False.
        **kwargs: Those of mmdet3d's ``PointPillarsScatter``.
    """

    def __init__(self, *args: Any, channels_last: bool = False,
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.channels_last = channels_last

    def forward_batch(self, voxel_features: Tensor, coors: Tensor,
                      batch_size: int | Tensor) -> Tensor:
        """Scatter the features ``(N, C)`` of pillars to their cells.

        ``coors`` are ``(sample, z, y, x)``, ``(N, 4)``. The map is
        ``(batch_size, C, ny, nx)``, 0 without a pillar.
        """
        sample, _, y, x = coors.long().unbind(1)
        shape = int(batch_size), self.ny, self.nx
        if self.channels_last:
            canvas = voxel_features.new_zeros(*shape, self.in_channels)
            canvas[sample, y, x] = voxel_features
            return canvas.permute(0, 3, 1, 2)
        canvas = voxel_features.new_zeros(
            shape[0], self.in_channels, *shape[1:])
        canvas[sample, :, y, x] = voxel_features
        return canvas
