"""Pillar features reduced by a generalised mean without the padding."""
from collections.abc import Callable
from typing import Any

import torch
from mmdet3d.models.voxel_encoders.pillar_encoder import PillarFeatureNet
from mmdet3d.models.voxel_encoders.utils import (
    PFNLayer,
    get_paddings_indicator,
)
from torch import Tensor, nn

from sigplug.models.layers import SegmentGeM
from sigplug.registry import MODELS

from .encoder_layers import GeMEncoder, activate_points


class GeMPFNLayer(nn.Module):
    """mmdet3d's ``PFNLayer`` with a generalised mean as its reduction.

    Only real points are computed: padding enters neither the batch norm's
    statistics, as it does upstream, nor the reduction.

    Args:
        stock (PFNLayer): The layer whose parts are taken over.
        gem (SegmentGeM): The reduction.
    """

    def __init__(self, stock: PFNLayer, gem: SegmentGeM) -> None:
        super().__init__()
        self.norm = stock.norm
        self.linear = stock.linear
        self.gem = gem
        self.last_vfe = stock.last_vfe

    def forward(self, inputs: Tensor, num_voxels: Tensor) -> Tensor:
        """Reduce the points ``(N, M, C_in)`` of each pillar.

        The first ``num_voxels``, ``(N, )``, are real; the rest is padding.

        Returns:
            Tensor: ``(N, 1, C)`` from the last layer; from the others
            ``(N, M, 2 C)``, each point beside the reduction, 0 at padding.
        """
        num_pillars, size, _ = inputs.shape
        mask = get_paddings_indicator(num_voxels, size)
        # The only wait for a GPU: for the number of points.
        row = mask.flatten().nonzero().squeeze(1)
        pillar = row.div(size, rounding_mode='floor')
        x = activate_points(
            inputs.flatten(0, 1).index_select(0, row), self.linear, self.norm)
        pooled = self.gem(x, pillar, num_pillars)
        if self.last_vfe:
            return pooled.unsqueeze(1)
        x = torch.cat([x, pooled.index_select(0, pillar)], dim=1)
        return x.new_zeros(mask.numel(), x.shape[1]).index_copy(
            0, row, x).view(*mask.shape, x.shape[1])


@MODELS.register_module()
class GeMPillarFeatureNet(GeMEncoder, PillarFeatureNet):
    r"""``PillarFeatureNet`` that reduces points by a generalised mean.

    .. math::
        y_c = \Big(\frac{1}{n} \sum_{i=1}^{n}
            \max(x_{i, c}, \epsilon)^p\Big)^{1/p}

    over the :math:`n` real points of a pillar. Padding is left out: upstream
    zeroes it *before* its Linear-BN-ReLU, after which it is no longer zero.
    The parameters keep upstream's names; a trained ``p`` is added as
    ``pfn_layers.*.gem.p``.

    Args:
        *args: Those of mmdet3d's ``PillarFeatureNet``.
        p (float | Sequence[float]): The (initial) power of each layer, see
            :class:`sigplug.models.GeM`. Defaults to 3.0.
        eps (float): Lower clamp of the point features. Defaults to 1e-6.
        p_trainable (bool): Whether ``p`` is trained. Defaults to True.
        per_channel (bool): One ``p`` per channel instead of one per layer.
            Defaults to False.
        p_range (tuple[float, float]): Range in which a trained ``p`` is used.
            Defaults to (1.0, 50.0).
        **kwargs: Those of mmdet3d's ``PillarFeatureNet`` except ``mode``.
    """

    def _add_gems(self: Any, make_gem: Callable[[int], SegmentGeM]) -> None:
        self.pfn_layers = nn.ModuleList(
            GeMPFNLayer(layer, make_gem(layer.units))
            for layer in self.pfn_layers)
