"""The CPU backend: C++ kernels on the memory of tensors.

The functions have the names and arguments of the eager forms. The arithmetic
is in float32, but for sums and unusual numbers, which are in float64; the bits
of a result do not depend on the number of threads (but for those of
``torch.sigmoid``, which float32 takes from torch).
"""
import functools
import math
from collections.abc import Callable, Sequence
from ctypes import (
    CDLL,
    POINTER,
    Array,
    Structure,
    c_bool,
    c_float,
    c_int,
    c_int64,
    c_void_p,
)
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..clip_sigmoid import representable_bounds
from ..gaussian_focal_loss import LOG_EPS
from ..power_mean import (
    Dims,
    Members,
    PowerLike,
    Segments,
    Sets,
    Windows,
    sum_to_power,
)
from .library import load

# What can be computed, with the number that the kernels know it by.
DTYPES = {torch.float32: 0, torch.bfloat16: 1}

# With fewer elements, a further thread costs more than it gives.
_ELEMENTS_PER_THREAD = 8192


class _Focal(Structure):
    _fields_ = [('alpha', c_float), ('gamma', c_float),
                ('pos_weight', c_float), ('neg_weight', c_float),
                ('clips', c_bool), ('low', c_float), ('high', c_float),
                ('eps', c_float)]


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


class _Peaks(Structure):
    _fields_ = [('num', c_int64), ('centers', c_void_p),
                ('radii', c_void_p), ('labels', c_void_p)]


_SIGNATURES = dict(
    clip_sigmoid_forward=(c_int, c_void_p, c_int64, c_float, c_float,
                          c_void_p, c_int),
    clip_sigmoid_backward=(c_int, c_void_p, c_void_p, c_void_p, c_int64,
                           c_float, c_float, c_bool, c_void_p, c_int),
    gaussian_focal_loss_forward=(c_int, c_void_p, c_void_p, c_int64,
                                 POINTER(_Focal), c_void_p, c_int),
    gaussian_focal_loss_sums=(c_int, c_void_p, c_void_p, c_int64, c_int64,
                              POINTER(_Focal), c_void_p, c_void_p, c_int),
    gaussian_focal_loss_backward=(c_int, c_void_p, c_void_p, c_int64, c_int64,
                                  c_void_p, c_bool, POINTER(_Focal), c_void_p,
                                  c_int),
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
    knows_float16=(),
    gaussian_heatmap=(POINTER(_Peaks), c_int64, c_int64, c_void_p, c_int),
)


@functools.cache
def prepare() -> CDLL:
    """The library with its signatures; compiles it if need be."""
    kernels = load()
    for name, arguments in _SIGNATURES.items():
        function = getattr(kernels, name)
        function.argtypes, function.restype = arguments, c_bool
    kernels.gaussian_heatmap.restype = None
    # Older compilers have no 16-bit float.
    if kernels.knows_float16():
        DTYPES[torch.float16] = 2
    return kernels


def _threads(x: Tensor) -> int:
    return max(1, min(torch.get_num_threads(),
                      x.numel() // _ELEMENTS_PER_THREAD))


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def clip_sigmoid_forward(x: Tensor, low: float, high: float,
                         grad: str) -> Tensor:
    """See :func:`sigplug.ops.clip_sigmoid.clip_sigmoid_forward`."""
    if x.dtype == torch.float32:
        # torch's own sigmoid, to the bit: mmdet3d's gradient hangs on its
        # rounding, as 1 - y magnifies it.
        return torch.sigmoid(x).clamp_(low, high)
    x = x.contiguous()
    y = torch.empty_like(x)
    prepare().clip_sigmoid_forward(
        DTYPES[x.dtype], x.data_ptr(), x.numel(), low, high, y.data_ptr(),
        _threads(x))
    return y


def clip_sigmoid_backward(grad_y: Tensor, x: Tensor, low: float, high: float,
                          grad: str) -> Tensor:
    """See :func:`sigplug.ops.clip_sigmoid.clip_sigmoid_backward`."""
    x, grad_y = x.contiguous(), grad_y.to(x.dtype).contiguous()
    straight = grad == 'straight_through'
    if x.dtype == torch.float32 and not straight:
        sigmoid = torch.sigmoid(x)
        # Each element is read before it is written.
        grad_x = sigmoid
    else:
        sigmoid, grad_x = None, torch.empty_like(x)
    prepare().clip_sigmoid_backward(
        DTYPES[x.dtype], grad_y.data_ptr(), x.data_ptr(), _pointer(sigmoid),
        x.numel(), low, high, straight, grad_x.data_ptr(), _threads(x))
    return grad_x


def gaussian_focal_loss_forward(logits: Tensor, target: Tensor,
                                *arguments: Any) -> Tensor:
    """See ``gaussian_focal_loss_forward`` of the eager form."""
    logits, target = logits.contiguous(), target.float().contiguous()
    loss = torch.empty_like(logits, dtype=torch.float32)
    prepare().gaussian_focal_loss_forward(
        DTYPES[logits.dtype], logits.data_ptr(), target.data_ptr(),
        logits.numel(), _focal(*arguments), loss.data_ptr(), _threads(logits))
    return loss


def gaussian_focal_loss_sums(
        logits: Tensor, target: Tensor, rows: int,
        *arguments: Any,
        wants_slope: bool) -> tuple[Tensor, Tensor | None]:
    """Sum over each of ``rows`` equal pieces, and the slope of each cell.

    The slope shares most of the work with the loss. It is given in float32
    only: of a half type it would be larger than the input.
    """
    logits, target = logits.contiguous(), target.float().contiguous()
    sums = logits.new_empty(rows, dtype=torch.float64)
    wants_slope = wants_slope and logits.dtype == torch.float32
    slope = torch.empty_like(logits) if wants_slope else None
    prepare().gaussian_focal_loss_sums(
        DTYPES[logits.dtype], logits.data_ptr(), target.data_ptr(), rows,
        logits.numel() // max(rows, 1), _focal(*arguments), sums.data_ptr(),
        _pointer(slope), _threads(logits))
    return sums.float(), slope


def gaussian_focal_loss_backward(grad_loss: Tensor, logits: Tensor,
                                 target: Tensor,
                                 *arguments: Any) -> Tensor:
    """See ``gaussian_focal_loss_backward`` of the eager form.

    ``grad_loss`` may also hold one value for each of some equal pieces.
    """
    per_cell = grad_loss.shape == logits.shape
    rows = 1 if per_cell else grad_loss.numel()
    logits, target = logits.contiguous(), target.float().contiguous()
    grad_loss = grad_loss.float().contiguous()
    grad = torch.empty_like(logits)
    prepare().gaussian_focal_loss_backward(
        DTYPES[logits.dtype], logits.data_ptr(), target.data_ptr(), rows,
        logits.numel() // max(rows, 1), grad_loss.data_ptr(), per_cell,
        _focal(*arguments), grad.data_ptr(), _threads(logits))
    return grad


def _focal(alpha: float, gamma: float, pos_weight: float, neg_weight: float,
           clip: float | None) -> _Focal:
    low, high = (0.0, 1.0) if clip is None else representable_bounds(
        clip, 1 - clip, torch.float32)
    return _Focal(alpha, gamma, pos_weight, neg_weight, clip is not None, low,
                  high, LOG_EPS)


def power_mean_forward(x: Tensor, p: PowerLike, sets: Sets, members: Members,
                       eps: float | None) -> Tensor:
    """See :func:`sigplug.ops.power_mean.power_mean_forward`."""
    plan = _PLANS[type(sets)](x, p, sets, members)
    y = plan.x.new_empty(math.prod(plan.result_shape), dtype=torch.float32)
    plan.kernel('forward')(
        DTYPES[x.dtype], plan.x.data_ptr(), *plan.arguments,
        _lower_clamp(eps), y.data_ptr(), _threads(x))
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
        _lower_clamp(eps), y.data_ptr(), grad_y.data_ptr(), _pointer(grad_x),
        _pointer(grad_p), _threads(x))
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
        return getattr(prepare(), f'power_mean_{self.name}_{direction}')

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
        plan.arguments = _pointer(mask), num, pooled, p.data_ptr(), step
    else:
        columns_of_sets = _Sets(num // max(columns, 1), columns, pooled, None,
                                None)
        powers = _Powers(p.data_ptr(), step * columns, step)
        plan.arguments = _pointer(mask), columns_of_sets, powers
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
    in_order = prepare().group_rows(index.data_ptr(), len(index), sets.num,
                                    offsets.data_ptr(), rows.data_ptr())
    grouped = None if in_order else rows
    if isinstance(p, Tensor) and p.numel() > 1:
        # The same for all segments.
        p, step = p.detach().double().expand(x.shape[1:]).contiguous(), 1
    else:
        p, step = plan.power(p)
    plan.arguments = (None,
                      _Sets(sets.num, math.prod(x.shape[1:]), 0,
                            offsets.data_ptr(), _pointer(grouped)),
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


def gaussian_heatmap(centers: Tensor, radii: Tensor, labels: Tensor,
                     num_classes: int, size: tuple[int, int]) -> Tensor:
    """See :func:`sigplug.ops.gaussian_heatmap`."""
    centers, radii, labels = (
        x.long().contiguous() for x in (centers, radii, labels))
    heatmap = centers.new_zeros(num_classes, *size, dtype=torch.float32)
    peaks = _Peaks(len(radii), centers.data_ptr(), radii.data_ptr(),
                   labels.data_ptr())
    prepare().gaussian_heatmap(peaks, *size, heatmap.data_ptr(),
                               _threads(heatmap))
    return heatmap
