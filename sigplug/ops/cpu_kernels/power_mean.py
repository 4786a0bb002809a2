"""The power mean by C++ kernels, see power_mean.h beside this file."""
import math
from collections.abc import Callable, Sequence
from ctypes import (
    POINTER,
    Array,
    Structure,
    c_float,
    c_int,
    c_int64,
    c_void_p,
)
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import Form
from ..power_mean import (
    Dims,
    Members,
    PowerLike,
    Segments,
    Sets,
    Windows,
    sum_to_power,
)
from .dtypes import DTYPES
from .library import count_threads, kernel, pointer


class _Powers(Structure):
    _fields_ = [('p', c_void_p), ('set_step', c_int64),
                ('column_step', c_int64)]


class _Sets(Structure):
    _fields_ = [('num', c_int64), ('columns', c_int64), ('members', c_int64),
                ('offsets', c_void_p), ('list', c_void_p)]


class _Windows(Structure):
    _fields_ = [('images', c_int64), ('columns', c_int64),
                ('extent', c_int64 * 3), ('kernel', c_int64 * 3),
                ('stride', c_int64 * 3), ('padding', c_int64 * 3),
                ('num', c_int64 * 3)]


_SIGNATURES = dict(
    power_mean_rows_forward=(c_int, c_void_p, c_void_p, c_int64, c_int64,
                             c_void_p, c_int64, c_float, c_void_p, c_int),
    power_mean_rows_backward=(c_int, c_void_p, c_void_p, c_int64, c_int64,
                              c_void_p, c_int64, c_float, c_void_p, c_void_p,
                              c_void_p, c_void_p, c_int),
    power_mean_columns_forward=(c_int, c_void_p, c_void_p, POINTER(_Sets),
                                POINTER(_Powers), c_float, c_void_p, c_int),
    power_mean_columns_backward=(c_int, c_void_p, c_void_p, POINTER(_Sets),
                                 POINTER(_Powers), c_float, c_void_p,
                                 c_void_p, c_void_p, c_void_p, c_int),
    power_mean_windows_forward=(c_int, c_void_p, POINTER(_Windows),
                                POINTER(_Powers), c_float, c_void_p, c_int),
    power_mean_windows_backward=(c_int, c_void_p, POINTER(_Windows),
                                 POINTER(_Powers), c_float, c_void_p,
                                 c_void_p, c_void_p, c_void_p, c_int),
    group_rows=(c_void_p, c_int64, c_int64, c_void_p, c_void_p),
)


def power_mean_forward(x: Tensor, p: PowerLike, sets: Sets, members: Members,
                       eps: float | None) -> Tensor:
    """See :func:`sigplug.ops.power_mean.power_mean_forward`."""
    plan = _PLANS[type(sets)](x, p, sets, members)
    y = plan.x.new_empty(math.prod(plan.result_shape), dtype=torch.float32)
    plan.kernel('forward')(
        DTYPES[x.dtype], plan.x.data_ptr(), *plan.arguments,
        _lower_clamp(eps), y.data_ptr(), count_threads(x))
    return plan.restore_result(y)


def power_mean_backward(
        grad_y: Tensor, x: Tensor, p: PowerLike, sets: Sets, members: Members,
        eps: float | None, y: Tensor, wants_x: bool,
        wants_p: bool) -> tuple[Tensor | None, Tensor | None]:
    """See :func:`sigplug.ops.power_mean.power_mean_backward`."""
    plan = _PLANS[type(sets)](x, p, sets, members)
    y, grad_y = plan.arrange_result(y), plan.arrange_result(grad_y.float())
    grad_x = grad_p = None
    if wants_x and plan.adds_gradients:
        grad_x = torch.zeros_like(plan.x, dtype=torch.float32)
    elif wants_x:
        grad_x = torch.empty_like(plan.x)
    if wants_p:
        grad_p = torch.empty_like(y)
    plan.kernel('backward')(
        DTYPES[x.dtype], plan.x.data_ptr(), *plan.arguments,
        _lower_clamp(eps), y.data_ptr(), grad_y.data_ptr(), pointer(grad_x),
        pointer(grad_p), count_threads(x))
    if grad_x is not None:
        grad_x = _undo(grad_x, plan.order).to(x.dtype)
    if grad_p is not None and isinstance(p, Tensor):
        grad_p = sum_to_power(plan.restore_result(grad_p), p)
    return grad_x, grad_p


@dataclass
class _Plan:
    """Which kernel computes a power mean, and on what memory.

    Attributes:
        name (str): ``'rows'``, ``'columns'`` or ``'windows'``.
        x (Tensor): The input without gaps.
        order (tuple[int, ...]): The dims of the input in the order of ``x``.
        result_shape (tuple[int, ...]): In the order of the input.
        unit_dims (int): Dims of size 1 behind those of the result.
        adds_gradients (bool): Whether elements belong to several sets.
        arguments (tuple): Of the kernel, between those of all kernels.
        owners (tuple): Tensors that the arguments point into.
    """

    name: str
    x: Tensor
    order: tuple[int, ...]
    result_shape: tuple[int, ...]
    unit_dims: int = 0
    adds_gradients: bool = False
    arguments: tuple = ()
    owners: tuple = ()

    def kernel(self, direction: str) -> Callable[..., bool]:
        """The kernel of the forward or the backward pass."""
        name = f'power_mean_{self.name}_{direction}'
        return kernel(name, *_SIGNATURES[name])

    def arrange_result(self, y: Tensor) -> Tensor:
        """A result, or what broadcasts to one, as the kernels take it."""
        y = y.view(y.shape[:y.dim() - self.unit_dims])
        return y.expand(self.result_shape).permute(self.order).contiguous()

    def restore_result(self, y: Tensor) -> Tensor:
        """The inverse of ``arrange_result``."""
        y = y.view([self.result_shape[d] for d in self.order])
        return _undo(y, self.order)[(..., ) + (None, ) * self.unit_dims]

    def power(self, p: PowerLike) -> tuple[Tensor, int]:
        """One value, or one for each result."""
        if not isinstance(p, Tensor):
            return self.x.new_tensor(p, dtype=torch.float64), 0
        p = p.detach().double()
        return (p, 0) if p.numel() == 1 else (self.arrange_result(p), 1)


def _plan_dims(x: Tensor, p: PowerLike, sets: Dims,
               mask: Tensor | None) -> _Plan:
    """Rows where the pooled dims are the last ones in memory, or columns."""
    order = tuple(sorted(range(x.dim()), key=x.stride, reverse=True))
    places = [order.index(d) for d in sets.dims]
    if max(places) - min(places) >= len(places):
        # Apart from each other: bring them to the end.
        order = (*(d for d in order if d not in sets.dims), *sets.dims)
        places = [x.dim() - 1]
    pooled = math.prod(x.shape[d] for d in sets.dims)
    columns = math.prod(x.shape[d] for d in order[max(places) + 1:])
    plan = _Plan(
        'rows' if columns == 1 else 'columns', x.permute(order).contiguous(),
        order, tuple(1 if d in sets.dims else size
                     for d, size in enumerate(x.shape)))
    if mask is not None:
        mask = mask.permute(order).contiguous()
    p, step = plan.power(p)
    num = math.prod(plan.result_shape)
    if columns == 1:
        plan.arguments = pointer(mask), num, pooled, p.data_ptr(), step
    else:
        columns_of_sets = _Sets(num // max(columns, 1), columns, pooled, None,
                                None)
        powers = _Powers(p.data_ptr(), step * columns, step)
        plan.arguments = pointer(mask), columns_of_sets, powers
    plan.owners = mask, p
    return plan


def _plan_segments(x: Tensor, p: PowerLike, sets: Segments,
                   index: Tensor) -> _Plan:
    """Columns of the rows of each segment."""
    plan = _Plan('columns', x.contiguous(), tuple(range(x.dim())),
                 (sets.num, *x.shape[1:]))
    index = index.contiguous()
    offsets = index.new_empty(sets.num + 1)
    rows = torch.empty_like(index)
    in_order = kernel('group_rows', *_SIGNATURES['group_rows'])(
        index.data_ptr(), len(index), sets.num, offsets.data_ptr(),
        rows.data_ptr())
    grouped = None if in_order else rows
    if isinstance(p, Tensor) and p.numel() > 1:
        # The same for all segments.
        p, step = p.detach().double().expand(x.shape[1:]).contiguous(), 1
    else:
        p, step = plan.power(p)
    plan.arguments = (None,
                      _Sets(sets.num, math.prod(x.shape[1:]), 0,
                            offsets.data_ptr(), pointer(grouped)),
                      _Powers(p.data_ptr(), 0, step))
    plan.owners = offsets, grouped, p
    return plan


def _plan_windows(x: Tensor, p: PowerLike, sets: Windows, _: None) -> _Plan:
    """The pixels of each window, with the channels as columns."""
    first = x.dim() - len(sets.kernel)
    extent = x.shape[first:]
    num = [(size + 2 * margin - kernel) // step + 1
           for size, kernel, step, margin in zip(
               extent, sets.kernel, sets.stride, sets.padding, strict=True)]
    order = (*range(first - 1), *range(first, x.dim()), first - 1)
    plan = _Plan('windows', x.permute(order).contiguous(), order,
                 (*x.shape[:first], *num), unit_dims=len(sets.kernel),
                 adds_gradients=True)
    columns = x.shape[first - 1]
    p, step = plan.power(p)

    def three(entries: Sequence[int], default: int) -> Array:
        missing = 3 - len(entries)
        return (c_int64 * 3)(*[default] * missing, *entries)

    windows = _Windows(
        math.prod(x.shape[:first - 1]), columns, three(extent, 1),
        three(sets.kernel, 1), three(sets.stride, 1), three(sets.padding, 0),
        three(num, 1))
    plan.arguments = windows, _Powers(p.data_ptr(), step * columns, step)
    plan.owners = (p, )
    return plan


_PLANS: dict[type, Callable[..., _Plan]] = {
    Dims: _plan_dims,
    Windows: _plan_windows,
    Segments: _plan_segments,
}


def _undo(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """The inverse of ``x.permute(order)``."""
    return x.permute([order.index(d) for d in range(len(order))])


def _lower_clamp(eps: float | None) -> float:
    return -math.inf if eps is None else eps


FORM = Form('power_mean', power_mean_forward, power_mean_backward)
