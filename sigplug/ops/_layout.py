"""Where the sets of a power mean lie in memory, for the kernels."""
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .power_mean import Dims, Sets


@dataclass(frozen=True)
class Layout:
    """An input as a stack of matrices: each column is a set, or several.

    Attributes:
        order (tuple[int, ...], optional): The dims of the input in the order
            of its memory; None where they are in order.
        result_shape (tuple[int, ...]): Shape of the result.
        memory_shape (tuple[int, ...]): The same in the order of the memory.
        groups (int): Number of matrices; of segments for ragged sets.
        members (int): Rows of each matrix; 0 for ragged sets.
        columns (int): Columns of each matrix.
    """

    order: tuple[int, ...] | None
    result_shape: tuple[int, ...]
    memory_shape: tuple[int, ...]
    groups: int
    members: int
    columns: int

    def arrange(self, x: Tensor) -> Tensor:
        """Return an input or a result contiguous, in memory order."""
        if self.order is not None:
            x = x.permute(self.order)
        return x.contiguous()

    def put_back(self, x: Tensor) -> Tensor:
        """Undo :meth:`arrange`."""
        if self.order is None:
            return x
        return x.permute([self.order.index(d) for d in range(x.dim())])

    def power(self, p: Tensor,
              device: torch.device) -> tuple[Tensor, int, int]:
        """Return the powers and their steps.

        The one of a result lies at ``group * step[0] + column * step[1]``.
        """
        p = p.to(device)
        if p.numel() == 1:
            return p, 0, 0
        if p.dim() < len(self.result_shape) and not self.members:
            # One row is the same for all segments.
            return p.expand(self.result_shape[1:]).contiguous(), 0, 1
        return self.arrange(p.expand(self.result_shape)), self.columns, 1


def lay_out(x: Tensor, sets: Sets, short: int = 0) -> Layout:
    """Find an order in which the pooled dims lie beside each other.

    Rows of at most ``short`` members are copied to lie side by side.
    """
    if isinstance(sets, Dims):
        return lay_out_dims(x.shape, x.stride(), sets.dims, short)
    shape = (sets.num, *x.shape[1:])
    return Layout(None, shape, shape, sets.num, 0, math.prod(shape[1:]))


@functools.lru_cache(maxsize=1024)
def lay_out_dims(shape: torch.Size, strides: tuple[int, ...],
                 dims: tuple[int, ...], short: int = 0) -> Layout:
    """See :func:`lay_out`."""
    order = sorted(range(len(shape)), key=strides.__getitem__, reverse=True)
    places = [order.index(d) for d in dims]
    members = math.prod(shape[d] for d in dims)
    in_rows = max(places) == len(shape) - 1 and members <= short
    if in_rows or max(places) - min(places) >= len(places):
        # A copy. Short sets, such as windows, are best worked on side by side.
        rest = [d for d in order if d not in dims]
        order = [*dims, *rest] if members <= 64 else [*rest, *dims]
        places = [order.index(d) for d in dims]
    sizes = [shape[d] for d in order]
    result = tuple(1 if d in dims else n for d, n in enumerate(shape))
    return Layout(
        None if order == sorted(order) else tuple(order), result,
        tuple(result[d] for d in order), math.prod(sizes[:min(places)]),
        math.prod(sizes[min(places):max(places) + 1]),
        math.prod(sizes[max(places) + 1:]))

