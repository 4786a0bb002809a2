"""Where the sets of a power mean lie in memory, for the kernels."""
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ._checks import PowerLike
from .power_mean import Dims, Sets


@dataclass(frozen=True)
class Layout:
    """An input as a stack of matrices: each column is a set, or several.

    Attributes:
        x (Tensor): The input without gaps, in the order of its memory.
        order (tuple[int, ...]): The dims of the input in that order.
        result_shape (tuple[int, ...]): Shape of the result, in the order of
            the input.
        groups (int): Number of matrices; of segments for ragged sets.
        members (int): Rows of each matrix; unused for ragged sets.
        columns (int): Columns of each matrix.
    """

    x: Tensor
    order: tuple[int, ...]
    result_shape: tuple[int, ...]
    groups: int
    members: int
    columns: int

    def arrange(self, y: Tensor) -> Tensor:
        """Return what broadcasts to a result as ``(groups, columns)``."""
        y = y.expand(self.result_shape).permute(self.order)
        return y.reshape(self.groups, self.columns).contiguous()

    def restore(self, y: Tensor) -> Tensor:
        """Return a result of ``(groups, columns)`` in its own shape."""
        return self.put_back(y.view([self.result_shape[d]
                                     for d in self.order]))

    def put_back(self, x: Tensor) -> Tensor:
        """Return a tensor like ``x`` in the order of the input."""
        return x.permute([self.order.index(d) for d in range(x.dim())])

    def power(self, p: PowerLike) -> tuple[Tensor, int, int]:
        """Return the powers, in float64, and their steps.

        The one of a result lies at ``group * step[0] + column * step[1]``.
        """
        if not isinstance(p, Tensor):
            return torch.full((1, ), p, dtype=torch.float64,
                              device=self.x.device), 0, 0
        p = p.detach().to(self.x.device, torch.float64)
        if p.numel() == 1:
            return p.reshape(1), 0, 0
        if p.dim() < len(self.result_shape) and not self.members:
            # One row is the same for all segments.
            return p.expand(self.result_shape[1:]).contiguous(), 0, 1
        return self.arrange(p), self.columns, 1


def lay_out(x: Tensor, sets: Sets) -> Layout:
    """Arrange an input such that pooled dims lie beside each other."""
    if not isinstance(sets, Dims):
        shape = x.shape[1:]
        return Layout(x.contiguous(), tuple(range(x.dim())),
                      (sets.num, *shape), sets.num, 0, math.prod(shape))
    order = tuple(sorted(range(x.dim()), key=x.stride, reverse=True))
    places = [order.index(d) for d in sets.dims]
    if max(places) - min(places) >= len(places):
        order = (*(d for d in order if d not in sets.dims), *sets.dims)
        places = [x.dim() - len(places), x.dim() - 1]
    sizes = [x.shape[d] for d in order]
    return Layout(
        x.permute(order).contiguous(), order,
        tuple(1 if d in sets.dims else n for d, n in enumerate(x.shape)),
        math.prod(sizes[:min(places)]),
        math.prod(sizes[min(places):max(places) + 1]),
        math.prod(sizes[max(places) + 1:]))
