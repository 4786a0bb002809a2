"""Options and layers that the voxel encoders share."""
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sigplug.models.layers import SegmentGeM
from sigplug.ops._checks import check_flag


class GeMEncoder:
    """Take the options of the generalised mean, in front of upstream's class.

    See :class:`GeMPillarFeatureNet`, where they are described.
    """

    def __init__(self,
                 *args: Any,
                 p: float | Sequence[float] = 3.0,
                 eps: float = 1e-6,
                 p_trainable: bool = True,
                 per_channel: bool = False,
                 p_range: tuple[float, float] = (1.0, 50.0),
                 **kwargs: Any) -> None:
        if 'mode' in kwargs:
            raise ValueError(
                f"mode={kwargs['mode']!r} does not apply to "
                f'{type(self).__name__}: p=1 is the mean and a fixed p=inf '
                'the maximum')
        check_flag('per_channel', per_channel)
        super().__init__(*args, **kwargs)
        self._add_gems(lambda channels: SegmentGeM(
            p, eps, p_trainable, channels if per_channel else None, p_range))

    def _add_gems(self, make_gem: Callable[[int], SegmentGeM]) -> None:
        """Make the reduction of each layer, from its number of channels."""
        raise NotImplementedError


def activate_points(x: Tensor, linear: nn.Linear, norm: nn.Module) -> Tensor:
    """Apply a linear layer, a batch norm and a ReLU to points ``(K, C)``.

    Raises:
        ValueError: There are more or fewer values than the layer takes.
    """
    if x.shape[1] != linear.in_features:
        raise ValueError(
            'in_channels must be the number of values of each point: with '
            f'those that the encoder adds there are {x.shape[1]}, but the '
            f'layer takes {linear.in_features}')
    x = linear(x)
    if norm.training and len(x) == 1:
        # A batch norm refuses to take statistics of a single point.
        return F.relu(norm(x.expand(2, -1))[:1])
    return F.relu(norm(x))
