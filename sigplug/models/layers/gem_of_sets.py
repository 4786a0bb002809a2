"""Generalised means of tokens and of ragged sets, as layers."""
from collections.abc import Sequence

from torch import Tensor

from sigplug.ops import generalized_mean, segment_generalized_mean
from sigplug.ops._checks import check_integer
from sigplug.registry import register_everywhere

from .learnable_power import LearnablePower


@register_everywhere
class TokenGeM(LearnablePower):
    r"""Generalised-mean pooling of tokens, also of padded sequences.

    .. math::
        y_c = \Big(\frac{1}{|M|} \sum_{t \in M}
            \max(x_{t, c}, \epsilon)^{p_g}\Big)^{1/p_g}

    over the tokens :math:`M` of a sequence that its mask takes, with one
    :math:`p_g` for each group of neighbouring channels. See
    :func:`sigplug.ops.generalized_mean`.

    Source: Ko et al., `Group Generalized Mean Pooling for Vision Transformer
    <https://arxiv.org/abs/2212.04114>`_.

    Args:
        p (float | Sequence[float]): The (initial) power; a sequence holds one
            for each group. Defaults to 3.0.
        eps (float): See :class:`sigplug.models.GeM`, as for ``p_trainable``
            and ``p_range``.
        groups (int): Number of groups, of equally many channels; the number
            of channels gives one ``p`` per channel. Defaults to 1.

    Examples:
        >>> taken = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
        >>> TokenGeM(groups=4)(torch.rand(2, 5, 8), taken).shape
        torch.Size([2, 8])
    """

    def __init__(self,
                 p: float | Sequence[float] = 3.0,
                 eps: float = 1e-6,
                 p_trainable: bool = True,
                 groups: int = 1,
                 p_range: tuple[float, float] = (1.0, 50.0)) -> None:
        check_integer('groups', groups, 1)
        super().__init__(p, eps, p_trainable, groups, p_range)
        self.groups = groups

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool the tokens of each sequence.

        Args:
            x (Tensor): Tokens, shape ``(N, T, C)``.
            mask (Tensor, optional): True for the tokens that take part,
                boolean, shape ``(N, T)``. A sequence without one gives 0.
                Defaults to None, all of them.

        Returns:
            Tensor: Shape ``(N, C)``, in the dtype of ``x``.

        Raises:
            ValueError: ``x`` is not as described, or its channels cannot be
                divided into the groups.
        """
        if x.dim() != 3 or x.shape[2] % self.groups:
            raise ValueError(
                'x must be tokens of the shape (N, T, C), with C a multiple '
                f'of groups={self.groups}, but has {tuple(x.shape)}')
        p = self.power()
        if isinstance(p, Tensor) and self.groups > 1:
            p = p.repeat_interleave(x.shape[2] // self.groups)
        return generalized_mean(
            x, p, 1, eps=self.eps,
            mask=None if mask is None else mask.unsqueeze(2))

    def extra_repr(self) -> str:
        """Return the arguments that ``print(module)`` shows."""
        return f'{super().extra_repr()}, groups={self.groups}'


class SegmentGeM(LearnablePower):
    """Generalised mean of ragged sets, such as the points of each cell.

    See :func:`sigplug.ops.segment_generalized_mean`. The arguments are those
    of :class:`sigplug.models.GeM`.

    Examples:
        >>> SegmentGeM()(torch.rand(3, 8), torch.tensor([0, 0, 2]), 4).shape
        torch.Size([4, 8])
    """

    def forward(self, x: Tensor, index: Tensor, num_segments: int) -> Tensor:
        """Reduce the elements ``(K, C)`` of the sets ``index``, ``(K, )``.

        Returns:
            Tensor: Shape ``(num_segments, C)``, 0 for a set without elements.
        """
        return segment_generalized_mean(
            x, index, num_segments, self.power(), eps=self.eps)
