"""Coarser pyramid levels by generalised-mean pooling."""
from collections.abc import Sequence

import torch
from torch import Tensor

from sigplug.models.layers.gem import GeM
from sigplug.models.layers.inner_neck import InnerNeck
from sigplug.ops._checks import check_integer
from sigplug.registry import register_everywhere


@register_everywhere
class GeMPyramid(InnerNeck):
    r"""Append pyramid levels, each the GeM of 2x2 cells of the one before.

    .. math::
        y_{i,j} = \Big(\frac{1}{4} \sum_{a,b=0}^{1}
            \max(x_{2i+a, 2j+b}, \epsilon)^p\Big)^{1/p}

    with the last row and column of an odd map counted twice. So a map of
    :math:`H` rows gives :math:`\lceil H/2 \rceil`, as in mmdet's ``FPN``,
    whose max pooling or strided convolutions it replaces. On positive maps
    ``p = 1`` equals ``avg_pool2d(x, 2, ceil_mode=True,
    count_include_pad=False)`` and a fixed ``p = inf`` ``max_pool2d(x, 2,
    ceil_mode=True)``. The clamp at ``eps`` acts as a ReLU in front of the
    first extra level, as ``relu_before_extra_convs`` of ``FPN`` does: the
    extra levels hold no negative values.

    It stands behind another neck in a list, or has it as ``inner``, which
    also loads the checkpoints of a model with that neck alone::

        neck=[dict(type='FPN', num_outs=3, ...),
              dict(type='sigplug.GeMPyramid', num_outs=5)]

    Source: the extra levels are those of `Focal Loss for Dense Object
    Detection <https://arxiv.org/abs/1708.02002>`_ (strided convolutions) and
    of `Feature Pyramid Networks <https://arxiv.org/abs/1612.03144>`_
    (subsampling).

    Args:
        num_outs (int): Number of levels that are returned.
        p (float): The (initial) power, shared by all extra levels. See
            :class:`GeM`, as for the next three.
        eps (float): Lower clamp of the input.
        p_trainable (bool): Whether ``p`` is trained.
        p_range (tuple[float, float]): Range in which ``p`` is used.
        inner (dict | list[dict], optional): Config of the neck whose levels
            come first. Defaults to None.

    Examples:
        >>> outs = GeMPyramid(num_outs=3)([torch.rand(2, 8, 7, 10)])
        >>> [tuple(out.shape) for out in outs]
        [(2, 8, 7, 10), (2, 8, 4, 5), (2, 8, 2, 3)]
    """

    def __init__(self,
                 num_outs: int,
                 p: float = 3.0,
                 eps: float = 1e-6,
                 p_trainable: bool = True,
                 p_range: tuple[float, float] = (1.0, 50.0),
                 inner: dict | list[dict] | None = None) -> None:
        super().__init__(inner)
        check_integer('num_outs', num_outs, 1)
        self.num_outs = num_outs
        self.gem = GeM(
            p,
            eps,
            p_trainable=p_trainable,
            kernel_size=2,
            p_range=p_range)

    def forward(self,
                inputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
        """Append the extra levels to the levels as they are.

        Returns:
            tuple[Tensor] | list[Tensor]: A list if they came in one.

        Raises:
            ValueError: There are more than ``num_outs``, or none.
        """
        levels = self.compute_levels(inputs)
        outs = [levels] if isinstance(levels, Tensor) else list(levels)
        if not 1 <= len(outs) <= self.num_outs:
            raise ValueError(f'num_outs={self.num_outs} levels cannot be made '
                             f'of {len(outs)}: extra ones are appended, and '
                             'none is left out')
        while len(outs) < self.num_outs:
            outs.append(self.gem(_make_even(outs[-1])))
        return outs if isinstance(levels, list) else tuple(outs)

    def extra_repr(self) -> str:
        """Return the arguments that ``print(module)`` shows."""
        return f'num_outs={self.num_outs}'


def _make_even(x: Tensor) -> Tensor:
    """Repeat the last row and column where their number is odd.

    An exported program must fit both, so there is no branch on the parity.
    ``F.pad`` would leave half precision under autocast, and its compiled
    gradient behind a convolution has an unexpected memory format.
    """
    for dim in (2, 3):
        size = x.shape[dim]
        index = torch.arange(size + size % 2, device=x.device)
        x = x.index_select(dim, index.clamp(max=size - 1))
    return x
