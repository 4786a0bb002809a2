"""Generalised-mean pooling over small windows, which may overlap.

Forward, a thread works on a window; backward, on a cell and the windows that
it is in. The arithmetic is that of the power mean of sets. Windows that
overlap from row to row are worked on in strips, of some above each other: the
power of a cell is taken once for all of them, and so cannot be relative to the
largest cell of each. It is relative to a power of two amid the numbers of the
program; where these are too far from it, windows are pooled one by one.
"""
import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import PowerLike
from .._layout import lay_out_dims
from .._windows import Windows
from ..backends import Form
from ..power_mean import sum_to_power
from ._launch import launch
from ._math import (
    add,
    clamp,
    fma,
    normal_power_of_two,
    power_mean,
    power_of_two,
    scale_of,
    split_log2,
    split_log2_of_normal,
    sum_of_programs,
)
from .power_mean import arguments_of_power

BLOCK = 256
# Windows, or cells, of a strip.
STRIP = 8


def forward(x: Tensor, p: PowerLike, windows: Windows, eps: float | None,
            wants_by_p: bool) -> tuple[Tensor, Tensor | None]:
    """Return the pooled windows, float32, and the derivative of each by p."""
    layout, shape, (programs, _), sizes, *rest = _plan(
        x.shape, x.stride(), windows)
    x = layout.arrange(x)
    y = x.new_empty(shape, dtype=torch.float32)
    by_p = torch.empty_like(y) if wants_by_p else None
    if y.numel():
        power, steps, floats = arguments_of_power(layout, x, p, eps)
        launch(_forward, programs, (y, by_p, x, power), (*sizes, *steps),
               floats, *rest)
    return layout.put_back(y), None if by_p is None else layout.put_back(by_p)


def backward(grad_y: Tensor, x: Tensor, p: PowerLike, windows: Windows,
             eps: float | None, y: Tensor, by_p: Tensor | None, wants_x: bool,
             wants_p: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of ``x`` and ``p``, which is finite."""
    layout, _, (_, programs), sizes, *rest = _plan(
        x.shape, x.stride(), windows)
    x, y, grad_y = map(layout.arrange, (x, y, grad_y))
    grad_x = torch.empty_like(x) if wants_x else None
    grad_p = parts = None
    if by_p is None or not wants_p or not isinstance(p, Tensor):
        by_p = None
    elif p.numel() == 1 and y.numel():
        by_p = layout.arrange(by_p)
        grad_p = torch.empty_like(p, device=x.device)
        parts = torch.zeros(programs + 1, dtype=torch.int64, device=x.device)
    else:
        grad_p, by_p = sum_to_power(
            layout.put_back(grad_y) * by_p, p), None
    if y.numel() and (wants_x or parts is not None):
        power, steps, floats = arguments_of_power(layout, x, p, eps)
        # Each program takes some cells, and about as many windows.
        launch(_backward, programs,
               (grad_y, y, grad_x, None if parts is None else grad_p, by_p,
                parts, x, power), (*sizes, y.numel(), *steps), floats, *rest)
    return None if grad_x is None else layout.put_back(grad_x), grad_p


FORM = Form('gem_pool', forward, backward)


@functools.lru_cache(maxsize=1024)
def _plan(shape: torch.Size, strides: tuple[int, ...], windows: Windows
          ) -> tuple[Any, ...]:
    """Return the layout, the shape of the windows in memory, and arguments.

    These are the numbers of programs, forward and backward, the integers, the
    constants and the warps. There are three dims of windows; those that are
    missing have one cell.
    """
    layout = lay_out_dims(shape, strides, windows.dims)
    by_dim = dict(zip(windows.dims, zip(windows.sizes, windows.steps,
                                        windows.padding)))
    pooled, laid_out = [], []
    for dim in layout.order or range(len(shape)):
        size, step, margin = by_dim.get(dim, (1, 1, 0))
        laid_out.append((shape[dim] + 2 * margin - size) // step + 1)
        if dim in by_dim:
            pooled.append((shape[dim], size, step, margin, laid_out[-1]))
    cells, sizes, steps, margins, counts = zip(
        *[(1, 1, 1, 0, 1)] * (3 - len(pooled)), *pooled)
    strip = min(STRIP, triton.next_power_of_2(counts[1])) if (
        sizes[1] > steps[1]) else 1
    # As it ran fastest on an H200.
    block, warps = (BLOCK, 4) if strip == 1 else (BLOCK // 4, 2)
    # For windows, and for cells.
    programs = [triton.cdiv(layout.groups * n[0] * triton.cdiv(n[1], strip)
                            * n[2] * layout.columns, block)
                for n in (counts, cells)]
    # Strips reach beyond the end.
    wide = max(programs) * strip * block >= 2**31
    return (layout, laid_out, (programs[0], max(programs)),
            (layout.groups, *cells, layout.columns),
            (tl.int64 if wide else tl.int32, *sizes, *steps, *margins, strip,
             block), warps)


@triton.jit
def _forward(y_ptr, by_p_ptr, x_ptr, p_ptr, groups, d, h, w, columns, p_group,
             p_column, p_number, p_rest, eps, INDEX: tl.constexpr,
             KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
             SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
             PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
             STRIP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    windows_d = (d + 2 * PD - KD) // SD + 1
    windows_h = (h + 2 * PH - KH) // SH + 1
    windows_w = (w + 2 * PW - KW) // SW + 1
    group, of_d, of_h, of_w, column = _place(
        i, windows_d, (windows_h + STRIP - 1) // STRIP, windows_w, columns)
    of_h *= STRIP
    valid = group < groups
    group = tl.minimum(group, groups - 1)
    place = ((group * windows_d + of_d) * windows_h * windows_w
             + of_w) * columns + column
    step = windows_w * columns
    p = _load_power(p_ptr, group, column, p_group, p_column, p_number)
    a, b, c = of_d * SD - PD, of_h * SH - PH, of_w * SW - PW
    PADDED: tl.constexpr = PD + PH + PW > 0
    near = False
    if STRIP > 1:
        sample = _load(x_ptr, group, a + KD // 2,
                       b + ((STRIP - 1) * SH + KH) // 2, c + KW // 2, column,
                       d, h, w, columns, eps, PADDED)
        bits = sample.to(tl.int32, bitcast=True)
        middle = _middle(tl.where(bits == 0, 0x7F000000, bits), bits)
        low, high, top, total, rest, logs = _sums_of_strip(
            x_ptr, group, a, b, c, column, d, h, w, columns, p, eps, middle,
            KD, KH, KW, SH, STRIP, PADDED)
        near = _are_near(low, high, middle, p, 110.0)
        if near:
            rows = of_h[None, :] + tl.arange(0, STRIP)[:, None]
            # The powers were taken without the rest of p, and so is the root.
            _store(y_ptr, by_p_ptr, place[None, :] + rows * step,
                   valid[None, :] & (rows < windows_h), total, rest, logs,
                   scale_of(middle)[0], top, p[None, :], 0.0, KD * KH * KW)
    if not near:
        for row in range(STRIP):
            _pool_windows(
                y_ptr, by_p_ptr, place + (of_h + row) * step,
                valid & (of_h + row < windows_h), x_ptr, group, a,
                b + row * SH, c, column, d, h, w, columns, p, p_rest, eps, KD,
                KH, KW, PADDED)


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
def _load_power(p_ptr, group, column, p_group, p_column, p_number):
    if p_ptr is not None:
        return tl.load(p_ptr + group * p_group + column * p_column)
    else:
        return tl.zeros_like(group).to(tl.float32) + p_number


@triton.jit
def _load(x_ptr, group, a, b, c, column, d, h, w, columns, eps,
          PADDED: tl.constexpr):
    """The clamped value of a cell, 0 beyond the borders.

    Without padding, only windows that do not exist are beyond the last row.
    """
    if PADDED:
        inside = ((a >= 0) & (a < d) & (b >= 0) & (b < h) & (c >= 0) & (c < w))
        place = (((group * d + a) * h + b) * w + c) * columns + column
        x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
        return tl.where(inside, clamp(x, eps), 0.0)
    else:
        b = tl.minimum(b, h - 1)
        place = (((group * d + a) * h + b) * w + c) * columns + column
        return clamp(tl.load(x_ptr + place).to(tl.float32), eps)


@triton.jit
def _middle(low, high):
    """A power of two amid numbers, which come as bits; its logarithm."""
    low = tl.min(low, 0)
    high = tl.max(high, 0)
    # The largest power of two whose inverse is a normal number.
    return tl.minimum(((low >> 23) + (high >> 23)) // 2 - 127,
                      126).to(tl.float32)


@triton.jit
def _are_near(low, high, middle, power, room):
    """Whether all powers relative to the middle are within so many bits.

    The numbers, which come as bits, must be normal as well.
    """
    low = tl.min(low, 0) >> 23
    high = tl.max(high, 0) >> 23
    power = tl.max(tl.abs(power), 0)
    middle += 127.0
    far = tl.maximum(middle - low, high + 1 - middle)
    return (low > 0) & (high < 255) & (power * far < room)


@triton.jit
def _sums_of_strip(x_ptr, group, a, b, c, column, d, h, w, columns, p, eps,
                   middle, KD: tl.constexpr, KH: tl.constexpr,
                   KW: tl.constexpr, SH: tl.constexpr, STRIP: tl.constexpr,
                   PADDED: tl.constexpr):
    """The range of all cells; for each window, the largest and the sums.

    Powers are relative to the middle, once for all windows with the cell.
    """
    low = tl.zeros_like(p).to(tl.int32) + 0x7FFFFFFF
    high = tl.zeros_like(low)
    r = tl.arange(0, STRIP)[:, None]
    tops = tl.zeros([STRIP, p.shape[0]], tl.int32)
    total = tl.zeros([STRIP, p.shape[0]], tl.float32)
    rest = tl.zeros([STRIP, p.shape[0]], tl.float32)
    logs = tl.zeros([STRIP, p.shape[0]], tl.float32)
    for j in tl.static_range((STRIP - 1) * SH + KH):
        row_total = tl.zeros_like(p)
        row_rest = tl.zeros_like(p)
        row_logs = tl.zeros_like(p)
        row_tops = tl.zeros_like(low)
        for k in range(KD * KW):
            value = _load(x_ptr, group, a + k // KW, b + j, c + k % KW, column,
                          d, h, w, columns, eps, PADDED)
            bits = value.to(tl.int32, bitcast=True)
            whole, part = split_log2_of_normal(value)
            whole -= middle
            log = whole + part
            power = normal_power_of_two(p, whole, part, p * log)
            if PADDED:
                low = tl.where(bits == 0, low, tl.minimum(low, bits))
                power = tl.where(bits == 0, 0.0, power)
            else:
                low = tl.minimum(low, bits)
            row_tops = tl.maximum(row_tops, bits)
            row_total, row_rest = add(row_total, row_rest, power)
            row_logs = fma(power, log, row_logs)
        high = tl.maximum(high, row_tops)
        # Which windows of the strip have this row.
        here = (j >= r * SH) & (j < r * SH + KH)
        tops = tl.where(here, tl.maximum(tops, row_tops[None, :]), tops)
        new, new_rest = add(total, rest, row_total[None, :])
        total = tl.where(here, new, total)
        rest = tl.where(here, new_rest + row_rest[None, :], rest)
        logs = tl.where(here, logs + row_logs[None, :], logs)
    return low, high, tops.to(tl.float32, bitcast=True), total, rest, logs


@triton.jit
def _pool_windows(y_ptr, by_p_ptr, place, inside, x_ptr, group, a, b, c,
                  column, d, h, w, columns, p, p_rest, eps, KD: tl.constexpr,
                  KH: tl.constexpr, KW: tl.constexpr, PADDED: tl.constexpr):
    """Pool windows, each relative to its largest cell."""
    # Numbers of at least 0 are ordered like their bits, NaN above all.
    tops = tl.zeros_like(p).to(tl.int32)
    for k in tl.static_range(KD * KH * KW):
        value = _load(x_ptr, group, a + k // (KH * KW), b + k // KW % KH,
                      c + k % KW, column, d, h, w, columns, eps, PADDED)
        tops = tl.maximum(tops, value.to(tl.int32, bitcast=True))
    largest = tops.to(tl.float32, bitcast=True)
    whole, part = split_log2(largest)
    total = tl.zeros_like(p)
    rest = tl.zeros_like(p)
    logs = tl.zeros_like(p)
    for k in tl.static_range(KD * KH * KW):
        value = _load(x_ptr, group, a + k // (KH * KW), b + k // KW % KH,
                      c + k % KW, column, d, h, w, columns, eps, PADDED)
        v_whole, v_part = split_log2(value)
        v_whole, v_part = v_whole - whole, v_part - part
        power = power_of_two(p, v_whole, v_part)
        power = tl.where(value > 0.0, power, 0.0)
        total, rest = add(total, rest, power)
        logs += tl.where(value > 0.0, power * (v_whole + v_part), 0.0)
    _store(y_ptr, by_p_ptr, place, inside, total, rest, logs, largest, largest,
           p, p_rest, KD * KH * KW)


@triton.jit
def _store(y_ptr, by_p_ptr, place, valid, total, rest, logs, base, largest, p,
           p_rest, SIZE: tl.constexpr):
    """Store the mean of each window and its derivative by the power."""
    n = tl.zeros_like(total) + SIZE
    y = power_mean(total, rest, n, base, base, largest, p, p_rest)
    tl.store(y_ptr + place, y, mask=valid)
    if by_p_ptr is not None:
        # dy/dp = (y/p) (r - ln y), both logarithms relative to the base.
        whole, part = split_log2(total * (1.0 / n))
        by_p = y * ((logs / total - (whole + part) / p) * (0.6931472 / p))
        tl.store(by_p_ptr + place, tl.where(largest == 0.0, 0.0, by_p),
                 mask=valid)


@triton.jit
def _backward(grad_y_ptr, y_ptr, grad_x_ptr, grad_p_ptr, by_p_ptr, parts_ptr,
              x_ptr, p_ptr, groups, d, h, w, columns, windows, p_group,
              p_column, p_number, p_rest, eps, INDEX: tl.constexpr,
              KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
              SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
              PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
              STRIP: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(INDEX)
    if grad_x_ptr is not None:
        windows_d = (d + 2 * PD - KD) // SD + 1
        windows_h = (h + 2 * PH - KH) // SH + 1
        windows_w = (w + 2 * PW - KW) // SW + 1
        i = program * BLOCK + tl.arange(0, BLOCK)
        group, a, b, c, column = _place(i, d, (h + STRIP - 1) // STRIP, w,
                                        columns)
        b *= STRIP
        valid = group < groups
        group = tl.minimum(group, groups - 1)
        place = ((group * d + a) * h * w + c) * columns + column
        step = w * columns
        p = _load_power(p_ptr, group, column, p_group, p_column, p_number)
        power = (p - 1.0) + p_rest
        weight = 1.0 / (KD * KH * KW)
        near = False
        if STRIP > 1:
            sample = _load(x_ptr, group, a, b + STRIP // 2, c, column, d, h, w,
                           columns, eps, False)
            bits = sample.to(tl.int32, bitcast=True)
            middle = _middle(bits, bits)
            low, high, room, shares = _shares_of_strip(
                grad_y_ptr, y_ptr, group, a + PD, b + PH, c + PW, column,
                windows_d, windows_h, windows_w, columns, power, middle, KD,
                KH, KW, SD, SH, SW, STRIP)
            rows = b[None, :] + tl.arange(0, STRIP)[:, None]
            inside = valid[None, :] & (rows < h)
            of_rows = place[None, :] + rows * step
            x, value = _load_cell(x_ptr, of_rows, inside, eps)
            bits = tl.where(inside, value, sample[None, :]).to(
                tl.int32, bitcast=True)
            near = _are_near(tl.minimum(low, tl.min(bits, 0)),
                             tl.maximum(high, tl.max(bits, 0)), middle, power,
                             tl.min(room, 0))
            if near:
                whole, part = split_log2_of_normal(value)
                shares *= weight * power_of_two(
                    power[None, :], whole - middle, part)
                tl.store(grad_x_ptr + of_rows, tl.where(x < eps, 0.0, shares),
                         mask=inside)
        if not near:
            for row in range(STRIP):
                here = valid & (b + row < h)
                of_row = place + (b + row) * step
                x_row, c_row = _load_cell(x_ptr, of_row, here, eps)
                grad = _shares_of_windows(
                    grad_y_ptr, y_ptr, group, a + PD, b + (row + PH), c + PW,
                    column, windows_d, windows_h, windows_w, columns, power,
                    c_row, KD, KH, KW, SD, SH, SW)
                stopped = (x_row < eps) | ((c_row == 0.0) & (p != 1.0))
                tl.store(grad_x_ptr + of_row,
                         tl.where(stopped, 0.0, grad * weight), mask=here)
    if by_p_ptr is not None:
        if program * (STRIP * BLOCK) < windows:
            k = program * (STRIP * BLOCK) + tl.arange(0, STRIP * BLOCK)
            share = (tl.load(grad_y_ptr + k, mask=k < windows, other=0.0)
                     * tl.load(by_p_ptr + k, mask=k < windows, other=0.0))
            sum_of_programs(grad_p_ptr, parts_ptr,
                            tl.sum(share.to(tl.float64), 0),
                            (windows - 1) // (STRIP * BLOCK) + 1)


@triton.jit
def _load_cell(x_ptr, place, inside, eps):
    x = tl.load(x_ptr + place, mask=inside, other=1.0).to(tl.float32)
    return x, clamp(x, eps)


@triton.jit
def _load_window(grad_y_ptr, y_ptr, group, a, b, c, column, of_d, of_h, of_w,
                 windows_d, windows_h, windows_w, columns, other,
                 KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
                 SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr):
    """The result of a window and its gradient, if it has the cell."""
    there = (_covers(a, of_d, windows_d, KD, SD)
             & _covers(b, of_h, windows_h, KH, SH)
             & _covers(c, of_w, windows_w, KW, SW))
    place = (((group * windows_d + of_d) * windows_h + of_h) * windows_w
             + of_w) * columns + column
    return (tl.load(y_ptr + place, mask=there, other=other),
            tl.load(grad_y_ptr + place, mask=there, other=0.0), there)


@triton.jit
def _covers(i, window, windows, SIZE: tl.constexpr, STEP: tl.constexpr):
    """Whether a window is there and has a cell."""
    return (window >= 0) & (window < windows) & (i - window * STEP < SIZE)


@triton.jit
def _shares_of_strip(grad_y_ptr, y_ptr, group, a, b, c, column, windows_d,
                     windows_h, windows_w, columns, power, middle,
                     KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
                     SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
                     STRIP: tl.constexpr):
    """The range of all windows; for each cell, the sum over its windows.

    That is of the gradients by powers relative to the middle, which are taken
    once for all cells above each other. Before the sums, the room that the
    gradients leave to the powers, in bits; none if a sum is not finite.
    """
    ND: tl.constexpr = (KD + SD - 1) // SD
    NW: tl.constexpr = (KW + SW - 1) // SW
    low = tl.zeros_like(power).to(tl.int32) + 0x7FFFFFFF
    high = tl.zeros_like(low)
    least = tl.zeros_like(power) + 1.0
    r = tl.arange(0, STRIP)[:, None]
    total = tl.zeros([STRIP, power.shape[0]], tl.float32)
    last = (b + (STRIP - 1)) // SH
    center = scale_of(middle)[0]
    for j in tl.static_range((STRIP + KH - 2) // SH + 1):
        shares = tl.zeros_like(power)
        for k in range(ND * NW):
            y, grad_y, _ = _load_window(
                grad_y_ptr, y_ptr, group, a, (last - j) * SH, c, column,
                a // SD - k // NW, last - j, c // SW - k % NW, windows_d,
                windows_h, windows_w, columns, center, KD, KH, KW, SD, SH, SW)
            bits = y.to(tl.int32, bitcast=True)
            low, high = tl.minimum(low, bits), tl.maximum(high, bits)
            least = tl.minimum(
                least, tl.where(grad_y == 0.0, 1.0, tl.abs(grad_y)))
            whole, part = split_log2_of_normal(y)
            whole = middle - whole
            shares = fma(grad_y, normal_power_of_two(
                power, whole, -part, power * (whole - part)), shares)
        # How far a cell is into the windows of this row.
        far = (b - last * SH)[None, :] + (r + j * SH)
        total += tl.where((far >= 0) & (far < KH), shares[None, :], 0.0)
    room = tl.minimum((least.to(tl.int32, bitcast=True) >> 23) - 2, 100)
    most = tl.max(tl.abs(total).to(tl.int32, bitcast=True), 0)
    return low, high, tl.where(most < 0x7F800000, room, -1), total


@triton.jit
def _shares_of_windows(grad_y_ptr, y_ptr, group, a, b, c, column, windows_d,
                       windows_h, windows_w, columns, power, value,
                       KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
                       SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr):
    """For each cell, the sum over its windows of gradients by slopes."""
    ND: tl.constexpr = (KD + SD - 1) // SD
    NH: tl.constexpr = (KH + SH - 1) // SH
    NW: tl.constexpr = (KW + SW - 1) // SW
    whole, part = split_log2(value)
    total = tl.zeros_like(power)
    for k in tl.static_range(ND * NH * NW):
        y, grad_y, there = _load_window(
            grad_y_ptr, y_ptr, group, a, b, c, column,
            a // SD - k // (NH * NW), b // SH - k // NW % NH,
            c // SW - k % NW, windows_d, windows_h, windows_w, columns, 1.0,
            KD, KH, KW, SD, SH, SW)
        y_whole, y_part = split_log2(y)
        y_part = tl.where(y == y, y_part, float('nan'))
        slope = power_of_two(power, whole - y_whole, part - y_part)
        total += tl.where(there, grad_y * slope, 0.0)
    return total
