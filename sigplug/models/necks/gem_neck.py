"""Generalised-mean pooling as a global neck."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sigplug.models.layers.gem import GeM
from sigplug.ops import gem_pool
from sigplug.ops._checks import check_flag, check_integer
from sigplug.registry import register_everywhere


@register_everywhere
class GeMNeck(GeM):
    r"""Global generalised-mean pooling of one or several feature maps.

    It replaces mmpretrain's ``GeneralizedMeanPooling``, with the same keyword
    arguments and checkpoints (parameter ``p`` of shape ``(1, )``, also stored
    when it is fixed). See :class:`sigplug.models.GeM`.

    ``p`` is shared by all channels and levels, or there is one per channel
    (an integer ``channels``), per level (``num_levels``), or per channel of
    each level (several ``channels``). It is one parameter in any case, with
    the values of the levels one behind the other.

    With several ``bins`` the map is also pooled in horizontal strips: strip
    :math:`i` of :math:`b` takes in the rows :math:`\lfloor iH/b \rfloor` to
    :math:`\lceil (i+1)H/b \rceil`, as in adaptive pooling, so that any height
    will do. The result is :math:`C \cdot \sum_b b` wide: the bins in their
    order, their strips from top to bottom, and of each strip all channels,
    ``out.view(N, -1, C)[:, s]`` being strip ``s``.

    Source: Radenović et al., `Fine-tuning CNN Image Retrieval with No Human
    Annotation <https://arxiv.org/abs/1711.02512>`_, eq. (3); the strips are
    those of `Horizontal Pyramid Matching <https://arxiv.org/abs/1804.05275>`_
    and of `GaitSet <https://arxiv.org/abs/1811.06186>`_, which pool them by
    the mean and the maximum.

    Args:
        p (float | Sequence[float]): The (initial) power; a sequence holds
            all values of the parameter. Defaults to 3.0.
        eps (float): See :class:`sigplug.models.GeM`, as for the next two.
        clamp (bool): Whether to clamp the input at ``eps``.
        p_trainable (bool): Whether ``p`` is trained.
        channels (int | Sequence[int], optional): Number of channels, for one
            ``p`` per channel; several numbers, one for each level, give each
            level its own. Defaults to None.
        p_range (tuple[float, float]): Range in which ``p`` is used.
            Defaults to (1.0, 50.0).
        num_levels (int, optional): Number of levels, for one ``p`` per level.
            Defaults to None.
        bins (Sequence[int]): Numbers of strips that the map is cut into along
            its first spatial dim. Defaults to (1, ), the whole map.
        keep_parts (bool): Whether to return the strips in a dim of their own,
            ``(N, C, sum(bins))``, as OpenGait's ``GeMHPP`` does.
            Defaults to False.

    Raises:
        TypeError: An argument is of another type.
        ValueError: An argument is out of its range, or both ``num_levels``
            and ``channels`` are given.

    Examples:
        >>> outs = GeMNeck()((torch.rand(2, 8, 4, 4), torch.rand(2, 16, 2, 2)))
        >>> [tuple(out.shape) for out in outs]
        [(2, 8), (2, 16)]
        >>> GeMNeck(bins=(1, 2, 4))(torch.rand(2, 8, 7, 5)).shape
        torch.Size([2, 56])
    """

    # mmpretrain stores it, and reports a checkpoint without it.
    stores_fixed_p = True

    def __init__(self,
                 p: float | Sequence[float] = 3.0,
                 eps: float = 1e-6,
                 clamp: bool = True,
                 p_trainable: bool = True,
                 channels: int | Sequence[int] | None = None,
                 p_range: tuple[float, float] = (1.0, 50.0),
                 num_levels: int | None = None,
                 bins: Sequence[int] = (1, ),
                 keep_parts: bool = False) -> None:
        if num_levels is not None and channels is not None:
            raise ValueError(
                f'num_levels={num_levels} and channels={channels} exclude '
                'each other: for one p per channel of each level give '
                'channels one number for each level')
        # The number of values of p for each level.
        sizes: list[int] | None = None
        if num_levels is not None:
            check_integer('num_levels', num_levels, 1)
            sizes = [1] * num_levels
        elif isinstance(channels, (tuple, list)):
            _check_counts('channels', channels)
            sizes = list(channels)
        _check_counts('bins', bins)
        check_flag('keep_parts', keep_parts)
        count: Any = sum(sizes) if sizes else channels
        super().__init__(
            p,
            eps,
            clamp,
            p_trainable,
            channels=count,
            p_range=p_range)
        self.channels = channels
        self.num_levels = num_levels
        self.bins = tuple(bins)
        self.keep_parts = keep_parts
        self._sizes = sizes

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> Any:
        """Pool each level to ``(N, C * sum(bins))``.

        Args:
            inputs (Tensor | Sequence[Tensor]): One feature map
                ``(N, C, *spatial)``, or a tuple or list of them.

        Returns:
            Tensor | tuple[Tensor]: One per level if a sequence was given; with
            ``keep_parts`` of the shape ``(N, C, sum(bins))``.

        Raises:
            ValueError: The number of levels, or of their channels, is not
                that of ``p``.
        """
        if isinstance(inputs, Tensor):
            return self._pool_levels((inputs, ))[0]
        return self._pool_levels(inputs)

    def _pool_levels(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        power = self.power()
        powers: Sequence[float | Tensor] = [power] * len(levels)
        if self._sizes is not None:
            if len(levels) != len(self._sizes):
                raise ValueError(f'p has values for {len(self._sizes)} '
                                 f'levels, but inputs has {len(levels)}')
            found = [x.shape[1] for x in levels]
            if self.channels is not None and found != self._sizes:
                raise ValueError('inputs must have the channels='
                                 f'{self._sizes}, but has {found}')
            if isinstance(power, Tensor):
                powers = power.split(self._sizes)
        return tuple(map(self._pool, levels, powers))

    def _pool(self, x: Tensor, p: float | Tensor) -> Tensor:
        """Pool one level, its strips side by side."""
        others = (1, ) * (x.dim() - 3)
        parts = torch.cat([
            gem_pool(x, p, eps=self.eps if self.clamp else None,
                     output_size=(b, *others)).flatten(2)
            for b in self.bins], 2)
        return parts if self.keep_parts else parts.transpose(1, 2).flatten(1)

    def extra_repr(self) -> str:
        """Return the arguments that ``print(module)`` shows."""
        return (f'{super().extra_repr()}, channels={self.channels}, '
                f'num_levels={self.num_levels}, bins={self.bins}, '
                f'keep_parts={self.keep_parts}')


def _check_counts(name: str, values: Sequence[int]) -> None:
    """Raise an error unless there are only positive integers."""
    if not isinstance(values, (tuple, list)) or not values:
        raise TypeError(f'{name} must be a tuple or list of integers, but '
                        f'got {values!r}')
    for value in values:
        check_integer(name, value, 1)
