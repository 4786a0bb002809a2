"""The power mean of sets, forward and backward.

A program works on a tile of sets by members, and takes all members of its
sets, or one of several chunks of them if the sets are few and long. The powers
are taken relative to the maximum, as in the plain form. Nearly all arithmetic
is in float32, as other types are many times as slow on most devices: where it
is not precise enough, numbers are sums of two.

The gradients of segments need no sums over them: there a program works on a
tile of rows by columns, in the order of memory.
"""
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import PowerLike
from .._layout import Layout, lay_out, lay_out_dims
from ..backends import Form
from ..power_mean import (
    Dims,
    Segments,
    Sets,
    is_float,
    power_mean_forward,
    root,
    sum_to_power,
)
from ._launch import launch
from ._math import (
    add,
    clamp,
    power_mean,
    power_of_two,
    scale_of,
    slope_of_mean,
    split_log2,
    split_power,
    sum_of_programs,
    sum_pairs,
)

# Elements of a tile.
TILE = 1024
# Sets are cut into chunks until there are about as many programs.
PROGRAMS = 1024


def group(sets: Sets) -> Sets:
    """Sort and count the rows of segments; backward takes the counts."""
    if isinstance(sets, Dims) or sets.rows is not None:
        return sets
    # int32 sorts faster.
    index = sets.members.int() if sets.num < 2**31 else sets.members
    index, rows = torch.sort(index, stable=True)
    offsets = torch.searchsorted(index, torch.arange(
        sets.num + 1, dtype=index.dtype, device=index.device))
    return Segments(sets.num, sets.members, rows, offsets)


def forward(x: Tensor, p: PowerLike, sets: Sets, eps: float | None) -> Tensor:
    """See :func:`sigplug.ops.power_mean.power_mean_forward`."""
    if is_float(p, 1.0):
        # A sum, which is exact and as fast in PyTorch.
        return power_mean_forward(x, p, sets, eps)
    layout, tiling = _plan(x, sets)
    x = layout.arrange(x)
    tensors, *rest = _arguments(layout, tiling, x, p, sets, eps)
    y = x.new_empty(layout.memory_shape, dtype=torch.float32)
    tops = totals = None
    if tiling.chunks > 1:
        tops = y.new_empty((tiling.chunks, layout.groups, layout.columns))
        totals = torch.empty_like(tops, dtype=torch.float64)
    if y.numel():
        launch(_forward, tiling.programs, (y, tops, totals, *tensors), *rest)
    if tops is not None and totals is not None:
        _, power, _, counts, rows = tensors
        y = _merge(tops, totals, layout, p if power is None else power, rows,
                   counts).view(layout.memory_shape)
    return layout.put_back(y)


def _merge(tops: Tensor, totals: Tensor, layout: Layout, p: PowerLike,
           rows: Tensor | None, counts: Tensor | None) -> Tensor:
    """Return the results of sets in chunks."""
    if isinstance(p, Tensor) and p.numel() > 1:
        p = p.view(-1, layout.columns)
    largest = tops.amax(0)
    scale, scales = (t.clamp(1e-45, torch.finfo(t.dtype).max).double()
                     for t in (largest, tops))
    totals = (totals * (scales / scale).pow(p)).sum(0)
    count: int | Tensor = layout.members
    if counts is not None:
        if rows is not None:
            counts = counts.diff()
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
    layout, tiling = _plan(x, sets)
    x, y, grad_y = map(layout.arrange, (x, y, grad_y))
    kernel, shape, dtype = _backward, y.shape, torch.float32
    if isinstance(sets, Segments):
        tiling = _tile_rows(len(x), layout.columns)
        kernel, shape, dtype = _backward_of_rows, x.shape[1:], torch.float64
    grad_x = torch.empty_like(x) if wants_x else None
    grad_p = by_p = parts = None
    if wants_p and isinstance(p, Tensor):
        if p.numel() == 1 and y.numel():
            grad_p = torch.empty_like(p, device=x.device)
            parts = torch.zeros(tiling.programs + 1, dtype=torch.int64,
                                device=x.device)
        else:
            by_p = y.new_empty((tiling.chunks, *shape), dtype=dtype)
    if x.numel() or y.numel():
        (*tensors, _), *rest = _arguments(layout, tiling, x, p, sets, eps)
        launch(kernel, tiling.programs,
               (grad_y, y, grad_x, by_p if parts is None else grad_p, parts,
                *tensors), *rest)
    if by_p is not None and isinstance(p, Tensor):
        by_p = by_p.sum(0) if len(by_p) > 1 else by_p[0]
        grad_p = sum_to_power(layout.put_back(by_p), p)
    return None if grad_x is None else layout.put_back(grad_x), grad_p


FORM = Form('power_mean', forward, backward, group)


@dataclass(frozen=True)
class _Tiling:
    """How programs share the sets, which are columns of groups.

    Attributes:
        groups (int): Groups of a tile.
        width (int): Columns of a tile.
        members (int): Members of a tile.
        chunks (int): Programs that share the members of a tile of sets.
        programs (int): Number of programs.
        warps (int): Warps of a program.
    """

    groups: int
    width: int
    members: int
    chunks: int
    programs: int
    warps: int


def _plan(x: Tensor, sets: Sets) -> tuple[Layout, _Tiling]:
    if isinstance(sets, Dims):
        return _plan_dims(x.shape, x.stride(), sets.dims)
    layout = lay_out(x, sets)
    return layout, _tile(sets.num, layout.columns, 0,
                         -(-len(x) // max(sets.num, 1)))


@functools.lru_cache(maxsize=1024)
def _plan_dims(shape: torch.Size, strides: tuple[int, ...],
               dims: tuple[int, ...]) -> tuple[Layout, _Tiling]:
    layout = lay_out_dims(shape, strides, dims)
    return layout, _tile(layout.groups, layout.columns, layout.members,
                         layout.members)


@functools.lru_cache(maxsize=1024)
def _tile(groups: int, columns: int, members: int, length: int) -> _Tiling:
    """Cut the sets; the mean length of segments is in place of members.

    What follows the sum of a set is repeated by all threads that share its
    members: short sets have few.
    """
    longest = _power_of_two(length)
    if members and columns == 1:
        # Side by side in memory, along which threads have to lie.
        depth = min(longest, max(8, longest // 8), TILE)
    else:
        depth = min(longest, 8)
    width = min(_power_of_two(columns), TILE // depth)
    # A tile takes rows of one segment. A GPU wants many programs.
    several = min(TILE // (depth * width),
                  _power_of_two(groups // 256)) if members else 1
    # On an H200, tiles of most of a segment took up to four times as long.
    depth = min(longest if members else max(4, longest // 4),
                TILE // (several * width))
    programs = -(-groups // several) * -(-columns // width)
    chunks = 1
    if 0 < programs <= PROGRAMS // 2:
        chunks = max(1, min(-(-length // (4 * depth)), PROGRAMS // programs))
    # Threads with fewer elements were slower on an H200.
    warps = max(1, min(several * width * depth // 256, 4))
    return _Tiling(several, width, depth, chunks, programs * chunks, warps)


def _tile_rows(rows: int, columns: int) -> _Tiling:
    """Cut the rows of segments, which share the columns, into chunks."""
    width = min(_power_of_two(columns), 64)
    depth = TILE // width
    chunks = max(1, -(-rows // depth))
    return _Tiling(1, width, depth, chunks, chunks * -(-columns // width), 4)


def _power_of_two(n: int) -> int:
    return triton.next_power_of_2(max(n, 1))


def _arguments(layout: Layout, tiling: _Tiling, x: Tensor, p: PowerLike,
               sets: Sets, eps: float | None) -> tuple[Any, ...]:
    """Return those of a kernel behind its results, as `launch` takes them."""
    counts = rows = None
    length = layout.members
    power, steps, floats = arguments_of_power(layout, x, p, eps)
    sets = group(sets)
    members = None if sets.members is None else layout.arrange(sets.members)
    if isinstance(sets, Segments):
        length, counts, rows = len(x), sets.offsets, sets.rows
    elif sets.members is not None:
        counts = layout.arrange(sets.members.sum(sets.dims, keepdim=True))
    # Tiles reach beyond the end.
    wide = max(x.numel(), layout.groups * layout.columns) + TILE >= 2**31
    return ((x, power, members, counts, rows),
            (layout.groups, layout.columns, length, tiling.chunks, *steps),
            floats,
            (tl.int64 if wide else tl.int32, tiling.groups, tiling.width,
             tiling.members), tiling.warps)


def arguments_of_power(layout: Layout, x: Tensor, p: PowerLike,
                       eps: float | None) -> tuple[Any, ...]:
    """Return the powers as a kernel takes them, and the lower bound.

    They are a tensor, with its steps to the next group and column, or a
    number in two parts: the first two of the three floats.
    """
    power, group, column, number, rest = None, 0, 0, 0.0, 0.0
    if isinstance(p, Tensor):
        power, group, column = layout.power(p, x.device)
    else:
        number, rest = split_power(p)
    return power, (group, column), (
        number, rest, -math.inf if eps is None else eps)


@triton.jit
def _program(p_ptr, p_number, p_rest, rows_ptr, counts_ptr, groups, columns,
             members, chunks, p_group, p_column, INDEX: tl.constexpr,
             GROUPS: tl.constexpr, WIDTH: tl.constexpr,
             MEMBERS: tl.constexpr):
    """The sets of a program as a column, its members, and the powers.

    The latter are numbers beyond float32, in two parts.
    """
    chunk = tl.program_id(0) % chunks
    tile = tl.program_id(0) // chunks
    tiles = tl.cdiv(columns, WIDTH)
    i = tl.arange(0, GROUPS * WIDTH)[:, None]
    first_group = (tile // tiles).to(INDEX) * GROUPS
    group = first_group + i // WIDTH
    column = (tile % tiles).to(INDEX) * WIDTH + i % WIDTH
    valid = (group < groups) & (column < columns)
    result = group * columns + column
    n = tl.zeros([GROUPS * WIDTH, 1], tl.float32)
    if rows_ptr is not None:
        # The tile is of one segment.
        first = tl.load(counts_ptr + first_group)
        last = tl.load(counts_ptr + first_group + 1)
        n += last - first
    else:
        first = tl.zeros_like(first_group)
        last = first + members
        if counts_ptr is not None:
            n += tl.load(counts_ptr + result, mask=valid, other=1)
        else:
            n += members
    step = tl.cdiv(tl.cdiv(last - first, chunks), MEMBERS) * MEMBERS
    start = first + chunk * step
    if p_ptr is not None:
        p = tl.load(p_ptr + group * p_group + column * p_column, mask=valid,
                    other=1.0)
    else:
        p = tl.zeros_like(n) + p_number
    return (group, column, valid, result, start,
            tl.minimum(start + step, last), tl.maximum(n, 1.0), p,
            tl.zeros_like(n) + p_rest)


@triton.jit
def _load(x_ptr, mask_ptr, rows_ptr, group, column, j, inside, columns,
          members, eps, INDEX: tl.constexpr):
    """The members of a tile: place, clamped value, and what passes."""
    kept = inside
    if rows_ptr is not None:
        # Triton 3.0 does not broadcast an address to its mask.
        row = tl.load(tl.broadcast_to(rows_ptr + j, inside.shape), mask=inside,
                      other=0)
        place = row.to(INDEX) * columns + column
    else:
        place = group * members * columns + column + j.to(INDEX) * columns
        if mask_ptr is not None:
            kept = tl.load(mask_ptr + place, mask=inside, other=0) != 0
    x = tl.load(x_ptr + place, mask=kept, other=0.0).to(tl.float32)
    return place, tl.where(kept, clamp(x, eps), 0.0), kept & ((x < eps) == 0)


@triton.jit
def _forward(y_ptr, tops_ptr, totals_ptr, x_ptr, p_ptr, mask_ptr, counts_ptr,
             rows_ptr, groups, columns, members, chunks, p_group, p_column,
             p_number, p_rest, eps, INDEX: tl.constexpr,
             GROUPS: tl.constexpr, WIDTH: tl.constexpr,
             MEMBERS: tl.constexpr):
    """The result, or the maximum and the sum of powers of each chunk."""
    group, column, valid, result, start, stop, n, p, p_rest = _program(
        p_ptr, p_number, p_rest, rows_ptr, counts_ptr, groups, columns,
        members, chunks, p_group, p_column, INDEX, GROUPS, WIDTH, MEMBERS)
    # Numbers of at least 0 are ordered like their bits, NaN above all.
    tops = tl.zeros([GROUPS * WIDTH, MEMBERS], tl.int32)
    for first in range(start, stop, MEMBERS):
        j = first + tl.arange(0, MEMBERS)[None, :]
        _, c, _ = _load(x_ptr, mask_ptr, rows_ptr, group, column, j,
                        valid & (j < stop), columns, members, eps, INDEX)
        tops = tl.maximum(tops, c.to(tl.int32, bitcast=True))
    largest = tl.max(tops, 1, keep_dims=True).to(tl.float32, bitcast=True)
    whole, part = split_log2(largest)
    up, down = scale_of(whole)

    # The second time, the members come from the cache.
    sums = tl.zeros([GROUPS * WIDTH, MEMBERS], tl.float32)
    rests = tl.zeros([GROUPS * WIDTH, MEMBERS], tl.float32)
    for first in range(start, stop, MEMBERS):
        j = first + tl.arange(0, MEMBERS)[None, :]
        _, c, _ = _load(x_ptr, mask_ptr, rows_ptr, group, column, j,
                        valid & (j < stop), columns, members, eps, INDEX)
        c_whole, c_part = split_log2(c)
        power = power_of_two(p, c_whole - whole, c_part - part)
        if p_ptr is not None:
            power = tl.where(p == 1.0, c * down, power)
        sums, rests = add(sums, rests, tl.where(c > 0.0, power, 0.0))
    total, rest = sum_pairs(sums, rests, 1, True)
    if tops_ptr is None:
        y = power_mean(total, rest, n, largest, up, largest, p, p_rest)
        tl.store(y_ptr + result, y, mask=valid)
    else:
        # The number of results may have more than 31 bits with the chunks.
        place = (tl.program_id(0) % chunks).to(tl.int64) * groups * columns
        tl.store(tops_ptr + place + result, largest, mask=valid)
        total = total.to(tl.float64) + rest
        total = tl.where(p == 1.0, total * up / largest, total)
        tl.store(totals_ptr + place + result, total, mask=valid)


@triton.jit
def _backward(grad_y_ptr, y_ptr, grad_x_ptr, grad_p_ptr, parts_ptr, x_ptr,
              p_ptr, mask_ptr, counts_ptr, groups, columns, members, chunks,
              p_group, p_column, p_number, p_rest, eps, INDEX: tl.constexpr,
              GROUPS: tl.constexpr, WIDTH: tl.constexpr,
              MEMBERS: tl.constexpr):
    """The gradient of x, that of p or the share of each set in it."""
    group, column, valid, result, start, stop, n, p, p_rest = _program(
        p_ptr, p_number, p_rest, None, counts_ptr, groups, columns, members,
        chunks, p_group, p_column, INDEX, GROUPS, WIDTH, MEMBERS)
    y = tl.load(y_ptr + result, mask=valid, other=0.0)
    grad_y = tl.load(grad_y_ptr + result, mask=valid, other=0.0)
    grad_y = grad_y.to(tl.float32)
    weight = tl.div_rn(1.0, n)
    whole, part = split_log2(y)
    part = tl.where(y == y, part, float('nan'))
    sums = tl.zeros([GROUPS * WIDTH, MEMBERS], tl.float32)
    rests = tl.zeros([GROUPS * WIDTH, MEMBERS], tl.float32)
    for first in range(start, stop, MEMBERS):
        j = first + tl.arange(0, MEMBERS)[None, :]
        inside = valid & (j < stop)
        place, c, passes = _load(
            x_ptr, mask_ptr, None, group, column, j, inside, columns, members,
            eps, INDEX)
        # Of u = c / y.
        u_whole, u_part = split_log2(c)
        u_whole, u_part = u_whole - whole, u_part - part
        if grad_x_ptr is not None:
            slope = slope_of_mean(c, u_whole, u_part, weight, p, p_rest)
            tl.store(grad_x_ptr + place, tl.where(passes, grad_y * slope, 0.0),
                     mask=inside)
        if grad_p_ptr is not None:
            value = power_of_two(p, u_whole, u_part) * (u_whole + u_part)
            sums, rests = add(sums, rests, tl.where(c == 0.0, 0.0, value))
    if grad_p_ptr is not None:
        # dy/dp = (y/p) mean(u^p ln u).
        total, rest = sum_pairs(sums, rests, 1, True)
        share = (total + rest) * (0.6931472 * weight / p)
        by_p = grad_y * (y * share)
        if parts_ptr is None:
            place = (tl.program_id(0) % chunks).to(tl.int64) * groups * columns
            tl.store(grad_p_ptr + place + result, by_p, mask=valid)
        else:
            by_p = tl.where(valid, by_p, 0.0).to(tl.float64)
            sum_of_programs(grad_p_ptr, parts_ptr, tl.sum(tl.sum(by_p, 1), 0),
                            tl.num_programs(0))


@triton.jit
def _backward_of_rows(grad_y_ptr, y_ptr, grad_x_ptr, grad_p_ptr, parts_ptr,
                      x_ptr, p_ptr, index_ptr, counts_ptr, groups, columns,
                      rows, chunks, p_group, p_column, p_number, p_rest, eps,
                      INDEX: tl.constexpr, GROUPS: tl.constexpr,
                      WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """The gradient of x, and that of p, or the tile's share in each column's.

    The arguments are those of :func:`_backward`.
    """
    chunk = (tl.program_id(0) % chunks).to(INDEX)
    row = chunk * ROWS + tl.arange(0, ROWS)[:, None]
    column = (tl.program_id(0) // chunks).to(INDEX) * WIDTH
    column += tl.arange(0, WIDTH)[None, :]
    valid = (row < rows) & (column < columns)
    group = tl.load(index_ptr + row, mask=row < rows, other=-1)
    # Of segments that do not exist, nothing may be read.
    known = (group >= 0) & (group < groups)
    inside = valid & known
    first = tl.load(counts_ptr + group, mask=known, other=0)
    last = tl.load(counts_ptr + group + 1, mask=known, other=1)
    weight = tl.div_rn(1.0, (last - first).to(tl.float32))
    if p_ptr is not None:
        p = tl.load(p_ptr + column * p_column, mask=column < columns,
                    other=1.0)
    else:
        p = tl.zeros_like(weight) + p_number
    result = group.to(INDEX) * columns + column
    y = tl.load(y_ptr + result, mask=inside, other=1.0)
    grad_y = tl.load(grad_y_ptr + result, mask=inside, other=0.0)
    grad_y = grad_y.to(tl.float32)
    whole, part = split_log2(y)
    part = tl.where(y == y, part, float('nan'))
    place = row * columns + column
    # Masked by what is valid alone: the rest has to wait for the index.
    x = tl.load(x_ptr + place, mask=valid, other=0.0).to(tl.float32)
    c = clamp(x, eps)
    u_whole, u_part = split_log2(c)
    u_whole, u_part = u_whole - whole, u_part - part
    if grad_x_ptr is not None:
        slope = slope_of_mean(c, u_whole, u_part, weight, p, p_rest)
        passes = inside & ((x < eps) == 0)
        tl.store(grad_x_ptr + place, tl.where(passes, grad_y * slope, 0.0),
                 mask=valid)
    if grad_p_ptr is not None:
        value = power_of_two(p, u_whole, u_part) * (u_whole + u_part)
        by_p = grad_y * (y * (value * weight * (0.6931472 / p)))
        by_p = tl.where(inside & (c != 0.0), by_p, 0.0).to(tl.float64)
        if parts_ptr is None:
            tl.store(grad_p_ptr + chunk * columns + column,
                     tl.sum(by_p, 0, keep_dims=True), mask=column < columns)
        else:
            sum_of_programs(grad_p_ptr, parts_ptr, tl.sum(tl.sum(by_p, 1), 0),
                            tl.num_programs(0))
