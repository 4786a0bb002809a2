"""Dynamic pillars and voxels reduced by a generalised mean."""
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet3d.models.voxel_encoders.pillar_encoder import (
    DynamicPillarFeatureNet,
)
from mmdet3d.models.voxel_encoders.voxel_encoder import DynamicVFE
from torch import Tensor, nn

from sigplug.models.layers import SegmentGeM
from sigplug.registry import MODELS

from .encoder_layers import GeMEncoder, activate_points
from .points_by_cell import PointsByCell, sort_by_cell


class _GeMDynamicEncoder(GeMEncoder):
    """The common part of both encoders.

    Upstream's ``__init__`` builds the layers. Its ``forward`` is replaced: its
    scatters need CUDA, and its batch norm counts points out of range.
    """

    # Prefix of the names of upstream's layers: 'pfn' or 'vfe'.
    kind: str

    def _add_gems(self: Any, make_gem: Callable[[int], SegmentGeM]) -> None:
        del self.cluster_scatter
        layers = getattr(self, f'{self.kind}_layers')
        setattr(self, f'{self.kind}_scatter', nn.ModuleList(
            nn.ModuleDict(dict(gem=make_gem(linear.out_features)))
            for linear, *_ in layers))

    def _encode(
        self: Any,
        features: Tensor,
        coors: Tensor,
        fuse: Callable[[Tensor, PointsByCell], Tensor] | None = None
    ) -> tuple[PointsByCell, Tensor, Tensor]:
        """Run all layers over the points that lie in a cell.

        ``fuse`` changes the features of the points in the last layer.

        Returns:
            tuple: The cells, the features of their points ``(K, C)``, and
            those of the cells ``(N, C)``.
        """
        cells = sort_by_cell(coors)
        inputs = self._add_offsets(
            features.index_select(0, cells.rows), cells)
        layers = getattr(self, f'{self.kind}_layers')
        scatters = getattr(self, f'{self.kind}_scatter')
        for (linear, norm, _), scatter in zip(layers, scatters):
            x = activate_points(inputs, linear, norm)
            is_last = scatter is scatters[-1]
            if is_last and fuse is not None:
                x = fuse(x, cells)
            y = scatter['gem'](x, cells.index, len(cells.coors))
            if not is_last:
                inputs = torch.cat([x, y.index_select(0, cells.index)], 1)
        return cells, x, y

    def _add_offsets(self: Any, points: Tensor, cells: PointsByCell) -> Tensor:
        """Append to each point what upstream appends.

        That is its offset from the mean of its cell and from the centre of
        its cell, and its distance from the origin, as configured.
        """
        xyz = points[:, :3]
        parts = [points]
        if self._with_cluster_center:
            parts.append(xyz - cells.mean(xyz))
        if self._with_voxel_center:
            z, y, x = cells.coors[:, 1:].to(points.dtype).unbind(1)
            centers = torch.stack([
                x * self.vx + self.x_offset, y * self.vy + self.y_offset,
                z * self.vz + self.z_offset], dim=1)
            parts.append(xyz - centers.index_select(0, cells.index))
        if self._with_distance:
            parts.append(xyz.norm(dim=1, keepdim=True))
        return torch.cat(parts, dim=1)


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

    The arguments are those of mmdet3d's ``DynamicPillarFeatureNet`` except
    ``mode``, and ``p``, ``eps``, ``p_trainable``, ``per_channel`` and
    ``p_range`` as in :class:`GeMPillarFeatureNet`, with its errors.
    """

    kind = 'pfn'

    def forward(self, features: Tensor, coors: Tensor, *args: Any,
                **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Encode the points ``(M, C_in)`` of each pillar.

        ``coors`` are ``(sample, z, y, x)`` of each point, shape ``(M, 4)``,
        with a negative one if it is out of range. Further inputs, which
        multi-modal detectors give, are not needed.

        Returns:
            tuple[Tensor, Tensor]: Features of the pillars, shape ``(N, C)``,
            and their coordinates, ``(N, 4)``.
        """
        cells, _, y = self._encode(features, coors)
        return y, cells.coors


@MODELS.register_module()
class GeMDynamicVFE(_GeMDynamicEncoder, DynamicVFE):
    """``DynamicVFE`` that reduces points by a generalised mean.

    See :class:`GeMDynamicPillarFeatureNet`. The arguments besides the same
    five are those of mmdet3d's ``DynamicVFE`` except ``mode``; a trained
    ``p`` is named ``vfe_scatter.*.gem.p``.
    """

    kind = 'vfe'

    def forward(self,
                features: Tensor,
                coors: Tensor,
                points: Sequence[Tensor] | None = None,
                img_feats: Sequence[Tensor] | None = None,
                img_metas: Sequence[dict] | None = None,
                *args: Any,
                **kwargs: Any) -> tuple[Tensor, Tensor] | Tensor:
        """Encode the points ``(M, C_in)`` of each voxel.

        ``coors`` as for :class:`GeMDynamicPillarFeatureNet`; ``points`` of
        each sample, ``img_feats`` and ``img_metas`` are for a fusion layer.

        Returns:
            tuple[Tensor, Tensor] | Tensor: Features of the voxels, shape
            ``(N, C)``, and their coordinates, ``(N, 4)``; with
            ``return_point_feats`` the features of the points, ``(M, C)``, 0
            for those that are out of range.
        """
        clouds = list(points or ())

        def fuse(x: Tensor, cells: PointsByCell) -> Tensor:
            # The points in the order of x, which is sorted by sample first.
            sizes = coors[cells.rows, 0].bincount(minlength=len(clouds))
            found = torch.cat(clouds).index_select(0, cells.rows)
            return self.fusion_layer(
                img_feats, found.split(sizes.tolist()), x, img_metas)

        fuses = self.fusion_layer is not None and img_feats is not None
        cells, x, y = self._encode(features, coors, fuse if fuses else None)
        if self.return_point_feats:
            return x.new_zeros(len(features), x.shape[1]).index_copy(
                0, cells.rows, x)
        return y, cells.coors
