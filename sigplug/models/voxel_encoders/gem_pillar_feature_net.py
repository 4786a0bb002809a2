"""Pillar features reduced by a masked generalised mean."""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet3d.models.voxel_encoders.pillar_encoder import PillarFeatureNet
from mmdet3d.models.voxel_encoders.utils import (
    PFNLayer,
    get_paddings_indicator,
)
from torch import Tensor

from sigplug.models.layers.power import Power
from sigplug.ops import segment_generalized_mean
from sigplug.ops._checks import check_flag, check_positive, find_range
from sigplug.registry import MODELS

from ..arguments import name_arguments
from .encoder_checks import check_arguments


class GeMPFNLayer(PFNLayer):
    """mmdet3d's ``PFNLayer`` with a generalised mean as its reduction.

    Only real points are computed: padding enters neither the batch norm's
    statistics, as it does upstream, nor the reduction.

    Args:
        *args: Those of ``PFNLayer``.
        gem (Power): Owner of the power ``p``.
        eps (float): Lower clamp of the point features.
        **kwargs: Those of ``PFNLayer``.
    """

    def __init__(self, *args: Any, gem: Power, eps: float,
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gem = gem
        self.eps = eps

    def forward(self, inputs: Tensor, num_voxels: Tensor) -> Tensor:
        """Reduce the points of each pillar.

        Args:
            inputs (Tensor): Point features, shape ``(N, M, C_in)``.
            num_voxels (Tensor): Number of points in each pillar, ``(N, )``;
                the remaining rows are padding, which is excluded.

        Returns:
            Tensor: ``(N, 1, C)`` from the last layer; from the others
            ``(N, M, 2 C)``, each point beside the reduction, 0 at padding.
        """
        size, channels = inputs.shape[1:]
        if channels != self.linear.in_features:
            raise ValueError(
                f'in_channels makes {self.linear.in_features} values of each '
                f'point, but there are {channels}: count those of the points')
        mask = get_paddings_indicator(num_voxels, size)
        # The one place where a GPU is waited for: the number of points.
        row = mask.flatten().nonzero().squeeze(1)
        pillar = row.div(size, rounding_mode='floor')
        x = self.linear(inputs.flatten(0, 1).index_select(0, row))
        if self.training and len(x) == 1:
            # A batch norm refuses to take statistics of a single point.
            x = F.relu(self.norm(x.expand(2, -1)))[:1]
        else:
            x = F.relu(self.norm(x))
        pooled = segment_generalized_mean(
            x, pillar, len(inputs), self.gem.power(), eps=self.eps)
        if self.last_vfe:
            return pooled.unsqueeze(1)
        x = torch.cat([x, pooled.index_select(0, pillar)], dim=1)
        return x.new_zeros(mask.numel(), x.shape[1]).index_copy(
            0, row, x).view(*mask.shape, x.shape[1])


@MODELS.register_module()
class GeMPillarFeatureNet(PillarFeatureNet):
    r"""``PillarFeatureNet`` that reduces points by a generalised mean.

    .. math::
        y_c = \Big(\frac{1}{n} \sum_{i=1}^{n}
            \max(x_{i, c}, \epsilon)^p\Big)^{1/p}

    over the :math:`n` real points of a pillar. Padding is left out: upstream
    zeroes it *before* its Linear-BN-ReLU, after which it is no longer zero.
    The parameters keep upstream's names; a trained ``p`` is added as
    ``pfn_layers.*.gem.p``.

    Args:
        *args: Those of mmdet3d's ``PillarFeatureNet`` except ``mode``.
        p (float | Sequence[float]): The (initial) power of each layer.
            Defaults to 3.0.
        eps (float): Lower clamp of the point features. Defaults to 1e-6.
        p_trainable (bool): Whether ``p`` is trained. Defaults to True.
        per_channel (bool): One ``p`` per channel instead of one per layer.
            Defaults to False.
        p_range (tuple[float, float]): Smallest and largest value that is used
            of a trained ``p``. Defaults to (1.0, 50.0).
        **kwargs: Those of mmdet3d's ``PillarFeatureNet`` except ``mode``.

    Raises:
        ValueError: ``mode`` is given, or one of the arguments is out of its
            range.
    """

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
        check_positive('eps', eps)
        check_flag('per_channel', per_channel)
        norm_cfg = arguments.pop('norm_cfg', None) or dict(
            type='BN1d', eps=1e-3, momentum=0.01)
        super().__init__(norm_cfg=norm_cfg, **arguments)
        for i, layer in enumerate(self.pfn_layers):
            out_channels = layer.units * (1 if layer.last_vfe else 2)
            self.pfn_layers[i] = GeMPFNLayer(
                layer.linear.in_features,
                out_channels,
                norm_cfg=norm_cfg,
                last_layer=layer.last_vfe,
                gem=Power(p, p_trainable, layer.units if per_channel else None,
                          p_range),
                eps=eps)

    def forward(self, features: Tensor, num_points: Tensor, coors: Tensor,
                *args: Any, **kwargs: Any) -> Tensor:
        """Encode the points of each pillar.

        Args:
            features (Tensor): Points, shape ``(N, M, C_in)``, zeros behind
                the last one of each pillar.
            num_points (Tensor): Number of points in each pillar, ``(N, )``.
            coors (Tensor): The pillars, ``(sample, z, y, x)``, shape
                ``(N, 4)``.
            *args: What multi-modal detectors give besides; not needed.
            **kwargs: As ``args``.

        Returns:
            Tensor: Features of the pillars, shape ``(N, C)``.

        Raises:
            ValueError: The shapes do not fit together, or there are more
                points than rows for them.
        """
        if (features.dim() != 3 or num_points.shape != features.shape[:1]
                or coors.shape != (len(features), 4)):
            raise ValueError(
                'features, num_points and coors must have the shapes '
                '(N, M, C_in), (N, ) and (N, 4), but have '
                f'{tuple(features.shape)}, {tuple(num_points.shape)} and '
                f'{tuple(coors.shape)}')
        values = find_range(num_points)
        if values and not 0 <= values[0] <= values[1] <= features.shape[1]:
            raise ValueError(
                f'num_points must lie in [0, {features.shape[1]}], but has '
                f'values from {values[0]} to {values[1]}')
        return super().forward(features, num_points, coors, *args, **kwargs)
