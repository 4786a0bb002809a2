"""The power mean of sets, forward and backward.

A program works on a tile of sets by members, and takes all members of its
sets, or one of several chunks of them if the sets are few and long. The powers
are taken relative to the maximum, as in the plain form.
"""
import functools
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import PowerLike
from .._layout import Layout, lay_out
from ..backends import Form
from ..power_mean import (
    Dims,
    Sets,
    is_float,
    power_mean_forward,
    root,
    sum_to_power,
)
from ._launch import OPTIONS, on_device_of
from ._math import add, finish_sum, log, pow

# Elements of a tile.
TILE = 1024
# Sets are cut into chunks until there are about as many programs.
PROGRAMS = 1024
LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
INFINITY = tl.constexpr(math.inf)


def forward(x: Tensor, p: PowerLike, sets: Sets, eps: float | None) -> Tensor:
    """See :func:`sigplug.ops.power_mean.power_mean_forward`."""
    if is_float(p, 1.0):
        # A sum, which is exact and as fast in PyTorch.
        return power_mean_forward(x, p, sets, eps)
    layout = lay_out(x, sets)
    x = layout.arrange(x)
    plan = _plan(layout, x, p, sets, eps)
    y = x.new_empty(layout.memory_shape, dtype=torch.float32)
    tops = totals = None
    if plan.tiling.chunks > 1:
        tops = y.new_empty((plan.tiling.chunks, layout.groups,
                            layout.columns))
        totals = torch.empty_like(tops, dtype=torch.float64)
    if y.numel():
        with on_device_of(x):
            _forward[plan.tiling.grid](y, tops, totals, *plan.arguments,
                                       **OPTIONS)
    if tops is not None and totals is not None:
        y = _merge(tops, totals, layout, plan, p).view(layout.memory_shape)
    return layout.put_back(y)


def _merge(tops: Tensor, totals: Tensor, layout: Layout, plan: '_Plan',
           p: PowerLike) -> Tensor:
    """Return the results of sets in chunks."""
    if isinstance(p, Tensor):
        p = p if p.numel() == 1 else plan.power.view(-1, layout.columns)
    largest = tops.amax(0).clamp(min=0)
    scale, scales = (t.clamp(1e-45, torch.finfo(t.dtype).max).double()
                     for t in (largest, tops))
    totals = (totals * (scales / scale).pow(p)).sum(0)
    count: int | Tensor = layout.members
    if plan.counts is not None:
        counts = plan.counts if layout.members else (
            plan.counts.diff().unsqueeze(1))
        count = counts.clamp(min=1).view(layout.groups, -1)
    y = (largest * root(totals / count, p)).to(largest.dtype)
    return torch.where((largest == 0) | torch.as_tensor(p).isinf(), largest,
                       y)


def backward(grad_y: Tensor, x: Tensor, p: PowerLike, sets: Sets,
             eps: float | None, y: Tensor, wants_x: bool,
             wants_p: bool) -> tuple[Tensor | None, Tensor | None]:
    """See :func:`sigplug.ops.power_mean.power_mean_backward`.

    Powers are finite.
    """
    layout = lay_out(x, sets)
    x, y, grad_y = map(layout.arrange, (x, y, grad_y))
    plan = _plan(layout, x, p, sets, eps)
    grad_x = by_p = None
    if wants_x:
        # No program comes to rows of segments that do not exist.
        grad_x = (torch.empty_like if layout.members else torch.zeros_like)(x)
    if wants_p:
        by_p = y.new_empty((plan.tiling.chunks, *y.shape),
                           dtype=torch.float64)
    if y.numel():
        with on_device_of(x):
            _backward[plan.tiling.grid](grad_y, y, grad_x, by_p,
                                        *plan.arguments, **OPTIONS)
    grad_p = None
    if by_p is not None and isinstance(p, Tensor):
        by_p = by_p.sum(0) if len(by_p) > 1 else by_p[0]
        grad_p = sum_to_power(layout.put_back(by_p), p)
    return None if grad_x is None else layout.put_back(grad_x), grad_p


FORM = Form('power_mean', forward, backward)


@dataclass(frozen=True)
class _Tiling:
    """How programs share the sets.

    Attributes:
        sets (int): Sets of a tile.
        members (int): Members of a tile.
        chunks (int): Programs that share the members of a tile of sets.
        grid (tuple[int]): Number of programs.
    """

    sets: int
    members: int
    chunks: int
    grid: tuple[int]


@dataclass(frozen=True)
class _Plan:
    """What the kernels are launched with.

    Attributes:
        power (Tensor): The powers.
        counts (Tensor, optional): The members of each masked set, or the
            first row of each segment.
        tiling (_Tiling): Of the programs.
        arguments (tuple): Those of a kernel behind its results.
    """

    power: Tensor
    counts: Tensor | None
    tiling: _Tiling
    arguments: tuple[object, ...]


def _plan(layout: Layout, x: Tensor, p: PowerLike, sets: Sets,
          eps: float | None) -> _Plan:
    power, p_group, p_column = layout.power(p, x.device)
    mask = rows = counts = None
    groups, members, columns = layout.groups, layout.members, layout.columns
    # Steps in memory from a group, a set and a member to the next.
    steps = members * columns, 1, columns
    by_row = isinstance(sets, Dims) and columns == 1
    if isinstance(sets, Dims):
        length = members
        if sets.members is not None:
            counts = layout.arrange(sets.members.sum(sets.dims, keepdim=True))
            mask = layout.arrange(sets.members)
        if by_row:
            # The groups are the sets.
            groups, columns, steps = 1, groups, (0, members, 1)
            p_column = p_group
    else:
        # int32 sorts faster.
        index = sets.members.int() if sets.num < 2**31 else sets.members
        index, rows = torch.sort(index, stable=True)
        counts = torch.searchsorted(index, torch.arange(
            sets.num + 1, dtype=index.dtype, device=index.device))
        length = -(-len(index) // max(sets.num, 1))
    tiling = _tile(groups, members, columns, length, by_row)
    wide = max(x.numel(), groups * columns) >= 2**31
    return _Plan(power, counts, tiling, (
        x, power, mask, rows, counts, groups, columns, members,
        tiling.chunks, *steps, p_group, p_column,
        -math.inf if eps is None else float(eps),
        tl.int64 if wide else tl.int32, tiling.sets, tiling.members))


@functools.lru_cache(maxsize=1024)
def _tile(groups: int, members: int, columns: int, length: int,
          by_row: bool) -> _Tiling:
    """Cut matrices of sets, or rows; the mean length is that of segments."""
    if by_row:
        depth = min(_power_of_two(members), TILE)
        tile = min(TILE // depth, _power_of_two(columns)), depth
    else:
        width = min(_power_of_two(columns), 64)
        # A pillar has few points.
        tile = width, (min(TILE // width, _power_of_two(members))
                       if members else max(16, 128 // width))
    programs = groups * -(-columns // tile[0])
    chunks = 1
    if 0 < programs <= PROGRAMS // 2:
        chunks = max(1, min(-(-length // (4 * tile[1])),
                            PROGRAMS // programs))
    return _Tiling(*tile, chunks, (programs * chunks, ))


def _power_of_two(n: int) -> int:
    return triton.next_power_of_2(max(n, 1))


@triton.jit
def _program(p_ptr, rows_ptr, counts_ptr, columns, members, chunks, p_group,
             p_column, INDEX: tl.constexpr, SETS: tl.constexpr,
             MEMBERS: tl.constexpr):
    """The group of a program, its sets as a column, and its members."""
    program = tl.program_id(0)
    tiles = tl.cdiv(columns, SETS)
    group = (program // chunks // tiles).to(INDEX)
    s = (program // chunks % tiles).to(INDEX) * SETS + tl.arange(
        0, SETS)[:, None]
    valid = s < columns
    result = group * columns + s
    if rows_ptr is not None:
        first = tl.load(counts_ptr + group)
        last = tl.load(counts_ptr + group + 1)
        n = tl.zeros_like(s).to(tl.int64) + (last - first)
    else:
        first = tl.zeros_like(group).to(tl.int64)
        last = first + members
        if counts_ptr is not None:
            n = tl.load(counts_ptr + result, mask=valid, other=1)
        else:
            n = tl.zeros_like(s).to(tl.int64) + members
    step = tl.cdiv(tl.cdiv(last - first, chunks), MEMBERS) * MEMBERS
    start = first + program % chunks * step
    p = tl.load(p_ptr + group * p_group + s * p_column, mask=valid, other=1.0)
    return (group, s, valid, result, start, tl.minimum(start + step, last),
            tl.maximum(n, 1).to(tl.float64), p)


@triton.jit
def _load(x_ptr, mask_ptr, rows_ptr, group, s, j, inside, group_step,
          set_step, member_step, eps, INDEX: tl.constexpr):
    """The members of a tile: place, clamped value, and what passes."""
    if rows_ptr is not None:
        row = tl.load(rows_ptr + j, mask=inside, other=0)
        place = row * member_step + s
    else:
        place = group * group_step + s * set_step + j.to(INDEX) * member_step
    kept = inside
    if mask_ptr is not None:
        kept = tl.load(mask_ptr + place, mask=inside, other=0) != 0
    x = tl.load(x_ptr + place, mask=kept, other=0.0).to(tl.float32)
    # A NaN stays one.
    low = x < eps
    return place, tl.where(kept, tl.where(low, eps, x), 0.0), kept & (low == 0)


@triton.jit
def _divisor(y):
    """What can be divided by, where y is 0, infinite or of an empty set."""
    return tl.where(y > LARGEST, LARGEST, tl.where(y <= 0, 1.0, y))


@triton.jit
def _forward(y_ptr, tops_ptr, totals_ptr, x_ptr, p_ptr, mask_ptr, rows_ptr,
             counts_ptr, groups, columns, members, chunks, group_step,
             set_step, member_step, p_group, p_column, eps,
             INDEX: tl.constexpr, SETS: tl.constexpr, MEMBERS: tl.constexpr):
    """The result, or the maximum and the sum of powers of each chunk."""
    group, s, valid, result, start, stop, n, p = _program(
        p_ptr, rows_ptr, counts_ptr, columns, members, chunks, p_group,
        p_column, INDEX, SETS, MEMBERS)
    tops = tl.full([SETS, MEMBERS], -INFINITY, tl.float32)
    for first in range(start, stop, MEMBERS):
        j = first + tl.arange(0, MEMBERS)[None, :]
        inside = valid & (j < stop)
        _, c, _ = _load(x_ptr, mask_ptr, rows_ptr, group, s, j, inside,
                        group_step, set_step, member_step, eps, INDEX)
        # A NaN stays one here, but not in the reduction.
        tops = tl.where(inside & ((c > tops) | (c != c)), c, tops)
    invalid = tl.max((tops != tops).to(tl.int32), 1, keep_dims=True)
    largest = tl.max(tl.where(tops == tops, tops, 0.0), 1, keep_dims=True)
    largest = tl.where(invalid != 0, float('nan'), largest)

    # The second time, the members come from the cache.
    scale = _divisor(largest)
    exponent = p.to(tl.float32)
    sums = tl.zeros([SETS, MEMBERS], tl.float32)
    rests = tl.zeros([SETS, MEMBERS], tl.float32)
    for first in range(start, stop, MEMBERS):
        j = first + tl.arange(0, MEMBERS)[None, :]
        inside = valid & (j < stop)
        _, c, _ = _load(x_ptr, mask_ptr, rows_ptr, group, s, j, inside,
                        group_step, set_step, member_step, eps, INDEX)
        power = pow(tl.div_rn(c, scale), exponent)
        sums, rests = add(sums, rests, tl.where(inside, power, 0.0))
    total = tl.sum(finish_sum(sums, rests), 1, keep_dims=True)
    if tops_ptr is None:
        y = largest.to(tl.float64) * tl.exp(tl.log(total / n) / p)
        y = tl.where(p == INFINITY, largest.to(tl.float64), y).to(tl.float32)
        tl.store(y_ptr + result, tl.where(largest <= 0, 0.0, y), mask=valid)
    else:
        # The number of results may have more than 31 bits with the chunks.
        place = (tl.program_id(0) % chunks).to(tl.int64) * groups * columns
        tl.store(tops_ptr + place + result, largest, mask=valid)
        tl.store(totals_ptr + place + result, total, mask=valid)


@triton.jit
def _backward(grad_y_ptr, y_ptr, grad_x_ptr, by_p_ptr, x_ptr, p_ptr, mask_ptr,
              rows_ptr, counts_ptr, groups, columns, members, chunks,
              group_step, set_step, member_step, p_group, p_column, eps,
              INDEX: tl.constexpr, SETS: tl.constexpr, MEMBERS: tl.constexpr):
    """The gradient of x, the share of each set in that of p, or both."""
    group, s, valid, result, start, stop, n, p = _program(
        p_ptr, rows_ptr, counts_ptr, columns, members, chunks, p_group,
        p_column, INDEX, SETS, MEMBERS)
    y = tl.load(y_ptr + result, mask=valid, other=0.0)
    grad_y = tl.load(grad_y_ptr + result, mask=valid, other=0.0)
    grad_y = grad_y.to(tl.float32)
    weight = (1.0 / n).to(tl.float32)
    exponent = (p - 1.0).to(tl.float32)
    at_zero = tl.where(p == 1, 1.0, 0.0)
    sums = tl.zeros([SETS, MEMBERS], tl.float32)
    rests = tl.zeros([SETS, MEMBERS], tl.float32)
    for first in range(start, stop, MEMBERS):
        j = first + tl.arange(0, MEMBERS)[None, :]
        inside = valid & (j < stop)
        place, c, passes = _load(
            x_ptr, mask_ptr, rows_ptr, group, s, j, inside, group_step,
            set_step, member_step, eps, INDEX)
        u = tl.div_rn(tl.where(c == 0, 1.0, c), _divisor(y))
        power = pow(u, exponent)
        if grad_x_ptr is not None:
            # dy/dx = u^(p-1) / N.
            slope = tl.where(c == 0, at_zero, power) * weight
            tl.store(grad_x_ptr + place, tl.where(passes, grad_y * slope, 0.0),
                     mask=inside)
        if by_p_ptr is not None:
            value = tl.where(inside & (c != 0), power * u * log(u), 0.0)
            sums, rests = add(sums, rests, value)
    if by_p_ptr is not None:
        # dy/dp = (y/p) mean(u^p ln u).
        total = tl.sum(finish_sum(sums, rests), 1, keep_dims=True)
        place = (tl.program_id(0) % chunks).to(tl.int64) * groups * columns
        tl.store(by_p_ptr + place + result, grad_y * (y * (total / n / p)),
                 mask=valid)
