"""The power mean by C++ kernels."""
import math
from ctypes import c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from .._checks import PowerLike
from .._layout import Layout, lay_out
from ..backends import Form
from ..power_mean import Dims, Sets, sum_to_power
from .library import DTYPES, count_threads, kernel, pointer

# A vector of one row has too few members to be worth its sums below this.
SHORT = 24
# dtype, x, mask, sets, members, columns, offsets, list, p and its two steps,
# and eps.
_SETS = (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p,
         c_void_p, c_void_p, c_int64, c_int64, c_float)
# index, its length, the number of segments, offsets and rows.
_GROUP = (c_void_p, c_int64, c_int64, c_void_p, c_void_p)


def forward(x: Tensor, p: PowerLike, sets: Sets, eps: float | None) -> Tensor:
    """See :func:`sigplug.ops.power_mean.power_mean_forward`."""
    layout = lay_out(x, sets, SHORT)
    y = x.new_empty(layout.memory_shape, dtype=torch.float32)
    _call('power_mean_forward', layout, layout.arrange(x), p, sets, eps, y)
    return layout.put_back(y)


def backward(grad_y: Tensor, x: Tensor, p: PowerLike, sets: Sets,
             eps: float | None, y: Tensor, wants_x: bool,
             wants_p: bool) -> tuple[Tensor | None, Tensor | None]:
    """See :func:`sigplug.ops.power_mean.power_mean_backward`."""
    layout = lay_out(x, sets, SHORT)
    x, y = layout.arrange(x), layout.arrange(y)
    grad_x = torch.empty_like(x) if wants_x else None
    grad_p = torch.empty_like(y) if wants_p else None
    _call('power_mean_backward', layout, x, p, sets, eps, y,
          layout.arrange(grad_y.float()), grad_x, grad_p)
    if grad_x is not None:
        grad_x = layout.put_back(grad_x)
    if grad_p is not None and isinstance(p, Tensor):
        grad_p = sum_to_power(layout.put_back(grad_p), p)
    return grad_x, grad_p


def _call(name: str, layout: Layout, x: Tensor, p: PowerLike, sets: Sets,
          eps: float | None, *tensors: Tensor | None) -> None:
    mask = offsets = rows = None
    if isinstance(sets, Dims):
        if sets.members is not None:
            mask = layout.arrange(sets.members)
    else:
        offsets, rows = _group(sets.members.contiguous(), sets.num)
    power, set_step, column_step = layout.power(
        torch.as_tensor(p, dtype=torch.float64), x.device)
    kernel(name, (*_SETS, *[c_void_p for _ in tensors], c_int))(
        DTYPES[x.dtype], x.data_ptr(), pointer(mask), layout.groups,
        layout.members, layout.columns, pointer(offsets), pointer(rows),
        power.data_ptr(), set_step, column_step,
        -math.inf if eps is None else eps, *map(pointer, tensors),
        count_threads(x))


def _group(index: Tensor, num: int) -> tuple[Tensor, Tensor | None]:
    """Return where segments begin, and their rows if these are in no order."""
    offsets, rows = index.new_empty(num + 1), torch.empty_like(index)
    in_order = kernel('group_rows', _GROUP)(
        index.data_ptr(), len(index), num, offsets.data_ptr(),
        rows.data_ptr())
    return offsets, None if in_order else rows


FORM = Form('power_mean', forward, backward)
