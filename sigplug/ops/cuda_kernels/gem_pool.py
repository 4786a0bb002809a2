"""Generalised-mean pooling over small windows, which may overlap.

Forward, a thread works on a window, whose cells come from the cache after the
first time; backward, on a cell and the windows that it is in. The arithmetic
is that of the power mean of sets.
"""
import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import PowerLike
from .._layout import Layout, lay_out_dims
from .._windows import Windows
from ..backends import Form
from ..power_mean import sum_to_power
from ._launch import launch
from ._math import (
    add,
    clamp,
    power_mean,
    power_of_two,
    scale_of,
    slope_of_mean,
    split_log2,
    sum_of_programs,
)
from .power_mean import arguments_of_power

BLOCK = 256


def forward(x: Tensor, p: PowerLike, windows: Windows, eps: float | None,
            wants_by_p: bool) -> tuple[Tensor, Tensor | None]:
    """Return the pooled windows, float32, and the derivative of each by p."""
    layout, shape, sizes, constants = _plan(x.shape, x.stride(), windows)
    x = layout.arrange(x)
    y = x.new_empty(shape, dtype=torch.float32)
    by_p = torch.empty_like(y) if wants_by_p else None
    if y.numel():
        power, steps, floats = arguments_of_power(layout, x, p, eps)
        launch(_forward, -(-y.numel() // BLOCK), (y, by_p, x, power),
               (*sizes, *steps), floats, constants)
    return layout.put_back(y), None if by_p is None else layout.put_back(by_p)


def backward(grad_y: Tensor, x: Tensor, p: PowerLike, windows: Windows,
             eps: float | None, y: Tensor, by_p: Tensor | None, wants_x: bool,
             wants_p: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of ``x`` and ``p``, which is finite."""
    layout, _, sizes, constants = _plan(x.shape, x.stride(), windows)
    x, y, grad_y = map(layout.arrange, (x, y, grad_y))
    grad_x = torch.empty_like(x) if wants_x else None
    grad_p = parts = None
    if by_p is None or not wants_p or not isinstance(p, Tensor):
        by_p = None
    elif p.numel() == 1 and y.numel():
        by_p = layout.arrange(by_p)
        grad_p = torch.empty_like(p, device=x.device)
        parts = torch.zeros(-(-y.numel() // BLOCK) + 1, dtype=torch.int64,
                            device=x.device)
    else:
        grad_p, by_p = sum_to_power(
            layout.put_back(grad_y) * by_p, p), None
    if y.numel() and (wants_x or parts is not None):
        power, steps, floats = arguments_of_power(layout, x, p, eps)
        # Each program takes some cells, and as many windows.
        launch(_backward, -(-max(y.numel(), x.numel()) // BLOCK),
               (grad_y, y, grad_x, None if parts is None else grad_p, by_p,
                parts, x, power), (*sizes, *steps), floats, constants)
    return None if grad_x is None else layout.put_back(grad_x), grad_p


FORM = Form('gem_pool', forward, backward)


@functools.lru_cache(maxsize=1024)
def _plan(shape: torch.Size, strides: tuple[int, ...],
          windows: Windows) -> tuple[Layout, list[int], tuple[int, ...],
                                     tuple[Any, ...]]:
    """Return the layout, the shape of the windows in memory, and arguments.

    There are three dims of windows; those that are missing have one cell.
    """
    layout = lay_out_dims(shape, strides, windows.dims)
    by_dim = dict(zip(windows.dims, zip(windows.sizes, windows.steps,
                                        windows.padding)))
    pooled, laid_out = [], []
    for dim in layout.order or range(len(shape)):
        size, step, margin = by_dim.get(dim, (1, 1, 0))
        if dim in by_dim:
            pooled.append((shape[dim], size, step, margin))
        laid_out.append((shape[dim] + 2 * margin - size) // step + 1)
    cells, sizes, steps, margins = zip(
        *[(1, 1, 1, 0)] * (3 - len(pooled)), *pooled)
    wide = max(math.prod(shape), math.prod(laid_out)) + BLOCK >= 2**31
    return (layout, laid_out,
            (layout.groups, *cells, layout.columns, math.prod(laid_out)),
            (tl.int64 if wide else tl.int32, *sizes, *steps, *margins, BLOCK))


@triton.jit
def _place(i, first, second, third, columns):
    """The group, the cell along three dims, and the column of a number."""
    column = i % columns
    i = i // columns
    c = i % third
    i = i // third
    b = i % second
    i = i // second
    return i // first, i % first, b, c, column


@triton.jit
def _load_power(p_ptr, group, column, p_group, p_column, p_number, valid):
    if p_ptr is not None:
        return tl.load(p_ptr + group * p_group + column * p_column,
                       mask=valid, other=1.0)
    else:
        return tl.zeros_like(group) + p_number


@triton.jit
def _forward(y_ptr, by_p_ptr, x_ptr, p_ptr, groups, d, h, w, columns, windows,
             p_group, p_column, p_number, p_rest, eps, INDEX: tl.constexpr,
             KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
             SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
             PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
             BLOCK: tl.constexpr):
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    group, a, b, c, column = _place(
        i, (d + 2 * PD - KD) // SD + 1, (h + 2 * PH - KH) // SH + 1,
        (w + 2 * PW - KW) // SW + 1, columns)
    valid = i < windows
    p = _load_power(p_ptr, group, column, p_group, p_column, p_number, valid)
    a, b, c = a * SD - PD, b * SH - PH, c * SW - PW
    # Numbers of at least 0 are ordered like their bits, NaN above all.
    tops = tl.zeros([BLOCK], tl.int32)
    for k in tl.static_range(KD * KH * KW):
        value = _load(x_ptr, group, a + k // (KH * KW), b + k // KW % KH,
                      c + k % KW, column, d, h, w, columns, eps, valid,
                      PD + PH + PW > 0)
        tops = tl.maximum(tops, value.to(tl.int32, bitcast=True))
    largest = tops.to(tl.float32, bitcast=True)
    whole, part = split_log2(largest)
    up, down = scale_of(whole)
    total = tl.zeros([BLOCK], tl.float32)
    rest = tl.zeros([BLOCK], tl.float32)
    logs = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(KD * KH * KW):
        value = _load(x_ptr, group, a + k // (KH * KW), b + k // KW % KH,
                      c + k % KW, column, d, h, w, columns, eps, valid,
                      PD + PH + PW > 0)
        v_whole, v_part = split_log2(value)
        v_whole, v_part = v_whole - whole, v_part - part
        power = power_of_two(p, v_whole, v_part)
        power = tl.where(value > 0.0, power, 0.0)
        if by_p_ptr is not None:
            logs += tl.where(value > 0.0, power * (v_whole + v_part), 0.0)
        if p_ptr is not None:
            power = tl.where(p == 1.0, value * down, power)
        total, rest = add(total, rest, power)
    n = tl.zeros([BLOCK], tl.float32) + KD * KH * KW
    y = power_mean(total, rest, n, largest, up, p, p_rest)
    tl.store(y_ptr + i, y, mask=valid)
    if by_p_ptr is not None:
        # dy/dp = (y/p) (r - ln y), both logarithms relative to the maximum.
        total = tl.where(p == 1.0, total * (up / largest), total)
        whole, part = split_log2(total / n)
        by_p = y * ((logs / total - (whole + part) / p) * (0.6931472 / p))
        tl.store(by_p_ptr + i, tl.where(largest == 0.0, 0.0, by_p),
                 mask=valid)


@triton.jit
def _backward(grad_y_ptr, y_ptr, grad_x_ptr, grad_p_ptr, by_p_ptr, parts_ptr,
              x_ptr, p_ptr, groups, d, h, w, columns, windows, p_group,
              p_column, p_number, p_rest, eps, INDEX: tl.constexpr,
              KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
              SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
              PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
              BLOCK: tl.constexpr):
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    windows_d = (d + 2 * PD - KD) // SD + 1
    windows_h = (h + 2 * PH - KH) // SH + 1
    windows_w = (w + 2 * PW - KW) // SW + 1
    if grad_x_ptr is not None:
        group, a, b, c, column = _place(i, d, h, w, columns)
        valid = group < groups
        p = _load_power(p_ptr, group, column, p_group, p_column, p_number,
                        valid)
        x = tl.load(x_ptr + i, mask=valid, other=1.0).to(tl.float32)
        value = clamp(x, eps)
        v_whole, v_part = split_log2(value)
        weight = 1.0 / (KD * KH * KW)
        grad = tl.zeros([BLOCK], tl.float32)
        # The windows that a cell may be in.
        ND: tl.constexpr = (KD + SD - 1) // SD
        NH: tl.constexpr = (KH + SH - 1) // SH
        NW: tl.constexpr = (KW + SW - 1) // SW
        for k in tl.static_range(ND * NH * NW):
            of_d = (a + PD) // SD - k // (NH * NW)
            of_h = (b + PH) // SH - k // NW % NH
            of_w = (c + PW) // SW - k % NW
            inside = (valid & _covers(a + PD, of_d, windows_d, KD, SD)
                      & _covers(b + PH, of_h, windows_h, KH, SH)
                      & _covers(c + PW, of_w, windows_w, KW, SW))
            place = (((group * windows_d + of_d) * windows_h + of_h)
                     * windows_w + of_w) * columns + column
            y = tl.load(y_ptr + place, mask=inside, other=1.0)
            grad_y = tl.load(grad_y_ptr + place, mask=inside, other=0.0)
            whole, part = split_log2(y)
            part = tl.where(y == y, part, float('nan'))
            slope = slope_of_mean(value, v_whole - whole, v_part - part,
                                  weight, p, p_rest)
            grad += tl.where(inside, grad_y * slope, 0.0)
        tl.store(grad_x_ptr + i, tl.where(x < eps, 0.0, grad), mask=valid)
    if by_p_ptr is not None:
        if tl.program_id(0).to(INDEX) * BLOCK < windows:
            valid = i < windows
            value = (tl.load(grad_y_ptr + i, mask=valid, other=0.0)
                     * tl.load(by_p_ptr + i, mask=valid, other=0.0))
            sum_of_programs(grad_p_ptr, parts_ptr,
                            tl.sum(value.to(tl.float64), 0),
                            (windows - 1) // BLOCK + 1)


@triton.jit
def _covers(i, window, windows, SIZE: tl.constexpr, STEP: tl.constexpr):
    """Whether a window is there and holds a cell."""
    return (window >= 0) & (window < windows) & (i - window * STEP < SIZE)


@triton.jit
def _load(x_ptr, group, a, b, c, column, d, h, w, columns, eps, inside,
          PADDED: tl.constexpr):
    """The clamped value of a cell, 0 beyond the borders."""
    if PADDED:
        inside = (inside & (a >= 0) & (a < d) & (b >= 0) & (b < h) & (c >= 0)
                  & (c < w))
    place = (((group * d + a) * h + b) * w + c) * columns + column
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, clamp(x, eps), 0.0)
