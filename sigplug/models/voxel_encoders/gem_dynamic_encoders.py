"""Dynamic pillars and voxels reduced by a generalised mean."""
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from mmdet3d.models.voxel_encoders.pillar_encoder import (
    DynamicPillarFeatureNet,
)
from mmdet3d.models.voxel_encoders.voxel_encoder import DynamicVFE
from torch import Tensor

from sigplug.ops._checks import check_flag, check_tensor
from sigplug.registry import MODELS

from ..arguments import name_arguments
from .encoder_checks import check_arguments
from .gem_dynamic_scatter import (
    Cells,
    CellScatter,
    GeMDynamicScatter,
    GeMLayerScatters,
)


class _GeMDynamicEncoder:
    """What is changed in both of upstream's dynamic encoders."""

    # What the names of upstream's layers begin with.
    kind: str
    # Upstream's own.
    cluster_scatter: Any
    training: bool

    def __init__(self,
                 *args: Any,
                 p: float | Sequence[float] = 3.0,
                 eps: float = 1e-6,
                 p_trainable: bool = True,
                 per_channel: bool = False,
                 p_range: tuple[float, float] = (1.0, 50.0),
                 **kwargs: Any) -> None:
        arguments = name_arguments(self, super().__init__, args, kwargs)
        check_arguments(self, arguments)
        check_flag('per_channel', per_channel)
        init = super().__init__
        usual = signature(init).parameters['in_channels'].default
        init(**arguments)
        self._point_channels = arguments.get('in_channels', usual)
        stock = self.cluster_scatter
        grid = stock.voxel_size, stock.point_cloud_range
        self.cluster_scatter = CellScatter(*grid, average_points=True)
        layers = getattr(self, f'{self.kind}_layers')
        scatters = GeMLayerScatters(
            GeMDynamicScatter(
                *grid, p, eps, p_trainable,
                linear.out_features if per_channel else None, p_range)
            for linear, *_ in layers)
        setattr(self, f'{self.kind}_scatter', scatters)

    def find_cells(self, features: Tensor,
                   coors: Tensor) -> tuple[Tensor, Cells]:
        """The points that lie in a cell, and the cells.

        Upstream carries the others along, into the batch norm's statistics.
        """
        check_tensor('features', features)
        check_tensor('coors', coors)
        if len(features) != len(coors):
            raise ValueError(
                'features and coors must have one row for each point, but '
                f'have {len(features)} and {len(coors)}')
        if features.dim() != 2 or features.shape[1] != self._point_channels:
            raise ValueError(
                f'features must have the shape (M, {self._point_channels}), '
                f'as in_channels says, but have {tuple(features.shape)}')
        cells = Cells(coors)
        if self.training and len(cells.rows) == 1:
            # A batch norm refuses to take statistics of a single point;
            # twice the point reduces to the same.
            twice = cells.rows.expand(2)
            cells = Cells(coors.index_select(0, twice))
            cells.rows = twice
        return features.index_select(0, cells.rows), cells

    def map_voxel_center_to_point(self, pts_coors: Cells, voxel_mean: Tensor,
                                  voxel_coors: Tensor) -> Tensor:
        """The features of its cell for each point.

        Upstream looks them up in a dense grid of all cells of all samples.

        Args:
            pts_coors (Cells): The cells.
            voxel_mean (Tensor): Features of each cell, shape ``(N, C)``.
            voxel_coors (Tensor): Not needed.

        Returns:
            Tensor: Shape ``(K, C)``.
        """
        return voxel_mean.index_select(0, pts_coors.index)


@MODELS.register_module()
class GeMDynamicPillarFeatureNet(_GeMDynamicEncoder, DynamicPillarFeatureNet):
    r"""``DynamicPillarFeatureNet`` that reduces by a generalised mean.

    .. math::
        y_c = \Big(\frac{1}{n} \sum_{i=1}^{n}
            \max(x_{i, c}, \epsilon)^p\Big)^{1/p}

    over all :math:`n` points of a pillar: none is cut off and none padded. It
    works on the CPU too. The parameters keep upstream's names; a trained
    ``p`` is added as ``pfn_scatter.*.gem.p``, one for each layer. Points that
    are out of range are left out from the start, also of the batch norm's
    statistics.

    Args:
        *args: Those of mmdet3d's ``DynamicPillarFeatureNet`` except ``mode``.
        p (float | Sequence[float]): The (initial) power of each layer.
            Defaults to 3.0.
        eps (float): Lower clamp of the point features. Defaults to 1e-6.
        p_trainable (bool): Whether ``p`` is trained. Defaults to True.
        per_channel (bool): One ``p`` per channel instead of one per layer.
            Defaults to False.
        p_range (tuple[float, float]): Smallest and largest value that is used
            of a trained ``p``. Defaults to (1.0, 50.0).
        **kwargs: Those of mmdet3d's ``DynamicPillarFeatureNet`` except
            ``mode``.

    Raises:
        ValueError: ``mode`` is given, or one of the arguments is out of its
            range.
    """

    kind = 'pfn'

    def forward(self, features: Tensor, coors: Tensor, *args: Any,
                **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Encode the points of each pillar.

        Args:
            features (Tensor): Points, shape ``(M, C_in)``.
            coors (Tensor): Pillar of each point, ``(sample, z, y, x)``, with
                a negative one if it is out of range, shape ``(M, 4)``.
            *args: What multi-modal detectors give besides; not needed.
            **kwargs: As ``args``.

        Returns:
            tuple[Tensor, Tensor]: Features of the pillars, shape ``(N, C)``,
            and their coordinates, ``(N, 4)``.
        """
        return super().forward(*self.find_cells(features, coors))


@MODELS.register_module()
class GeMDynamicVFE(_GeMDynamicEncoder, DynamicVFE):
    """``DynamicVFE`` that reduces points by a generalised mean.

    That of :class:`GeMDynamicPillarFeatureNet`, with the same arguments
    besides those of mmdet3d's ``DynamicVFE``; a trained ``p`` is named
    ``vfe_scatter.*.gem.p``.

    Raises:
        ValueError: ``mode`` is given, or one of the arguments is out of its
            range.
    """

    kind = 'vfe'

    def forward(self,
                features: Tensor,
                coors: Tensor,
                points: Sequence[Tensor] | None = None,
                *args: Any,
                **kwargs: Any) -> tuple[Tensor, Tensor] | Tensor:
        """Encode the points of each voxel.

        Args:
            features (Tensor): Points, shape ``(M, C_in)``.
            coors (Tensor): Voxel of each point, ``(sample, z, y, x)``, with
                a negative one if it is out of range, shape ``(M, 4)``.
            points (Sequence[Tensor], optional): The points of each sample,
                for a fusion layer. Defaults to None.
            *args: Those of ``DynamicVFE``.
            **kwargs: Those of ``DynamicVFE``.

        Returns:
            tuple[Tensor, Tensor] | Tensor: Features of the voxels, shape
            ``(N, C)``, and their coordinates, ``(N, 4)``; with
            ``return_point_feats`` the features of the points, ``(M, C)``, 0
            for those that are out of range.
        """
        found, cells = self.find_cells(features, coors)
        if self.fusion_layer is not None and points is not None:
            # The fusion layer pairs them with the rows that are found.
            sizes = cells[:, 0].bincount(minlength=len(points)).tolist()
            points = torch.cat(list(points)).index_select(
                0, cells.rows).split(sizes)
        y = super().forward(found, cells, points, *args, **kwargs)
        if not self.return_point_feats:
            return y
        return y.new_zeros(len(features), y.shape[1]).index_copy(
            0, cells.rows, y)
