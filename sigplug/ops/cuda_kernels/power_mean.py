"""The power mean of sets, forward and backward.

A program works on a tile of sets by members, and takes all members of its
sets, or one of several chunks of them if the sets are few and long. What the
kinds of sets differ in is where their members lie: see ``_place``.

The powers are taken relative to the maximum, as in the plain form, from
logarithms to base 2 whose whole and broken parts are subtracted one by one,
so that nothing cancels.
"""
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import Form
from ..power_mean import Dims, Members, PowerLike, Segments, Sets, Windows
from ._launch import OPTIONS, on_device_of
from ._math import add, exp2_product, finish_sum, log2

# Elements of a tile.
TILE = 1024
# Sets are cut into chunks until there are about as many programs.
PROGRAMS = 1024
LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
SMALLEST = tl.constexpr(torch.finfo(torch.float32).smallest_normal)
INFINITY = tl.constexpr(math.inf)


def power_mean_forward(x: Tensor, p: PowerLike, sets: Sets, members: Members,
                       eps: float | None) -> Tensor:
    """See :func:`sigplug.ops.power_mean.power_mean_forward`."""
    plan = _plan(x, sets, members)
    power, common = _power_of(p, plan)
    y = torch.empty(plan.result_shape, dtype=torch.float32, device=x.device)
    partial = (plan.chunks, y.numel())
    tops = totals = None
    if plan.chunks > 1:
        tops = y.new_empty(partial)
        totals = y.new_empty(partial, dtype=torch.float64)
    if y.numel():
        with on_device_of(x):
            _forward[plan.grid](
                plan.x, power, plan.members, plan.counts, y, tops, totals,
                *plan.numbers, *_clamp(eps), **plan.variant, **common)
            if plan.chunks > 1:
                _merge[(triton.cdiv(y.numel(), 128), )](
                    power, plan.counts, y, tops, totals, y.numel(),
                    *plan.numbers[:3], KIND=plan.kind, SETS=128, **common)
    return _permute_back(y, plan.order)


def power_mean_backward(
        grad_y: Tensor, x: Tensor, p: PowerLike, sets: Sets, members: Members,
        eps: float | None, y: Tensor, wants_x: bool,
        wants_p: bool) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of ``x`` and ``p``, in their shapes and dtypes.

    ``y`` is the result of the forward. As in the plain form, a power that is
    trained is taken to be finite.
    """
    plan = _plan(x, sets, members)
    power, common = _power_of(p, plan)
    wants_p = wants_p and isinstance(p, Tensor)
    if common['MODE'] == 'double':
        # Only the root of the forward needs it.
        common['MODE'] = 'float'
    y, grad_y = _permute(y, plan.order), _permute(grad_y, plan.order)
    grad_x = by_p = ties = None
    gathers = wants_x and plan.kind == 'windows'
    if wants_x:
        # No program comes to rows of segments that do not exist.
        grad_x = (torch.zeros_like if plan.kind == 'segments' else
                  torch.empty_like)(plan.x)
    if wants_p:
        by_p = y.new_zeros((plan.chunks, y.numel()), dtype=torch.float64)
    if y.numel() and plan.x.numel():
        with on_device_of(x):
            if wants_x and not wants_p and common['MODE'] in (
                    'max', 'tensor'):
                ties = y.new_empty((plan.chunks, y.numel()))
                _ties[plan.grid](
                    plan.x, power, plan.members, plan.counts, y, ties,
                    *plan.numbers, *_clamp(eps), **plan.variant, **common)
                ties = ties.sum(0)
            if wants_p or (wants_x and not gathers):
                _backward[plan.grid](
                    grad_y, plan.x, power, plan.members, plan.counts, y, ties,
                    None if gathers else grad_x, by_p, *plan.numbers,
                    *_clamp(eps), **plan.variant, **common)
            if gathers:
                _gather[(triton.cdiv(plan.x.numel(), 256), )](
                    grad_y, plan.x, power, y, ties, grad_x, plan.x.numel(),
                    plan.count, plan.geometry, *_clamp(eps),
                    INDEX=plan.variant['INDEX'], CELLS=256, **common)
    elif gathers and grad_x is not None:
        grad_x.zero_()
    if grad_x is not None:
        grad_x = _permute_back(grad_x, plan.order)
    if by_p is not None and isinstance(p, Tensor):
        by_p = by_p.sum(0).view(plan.result_shape)
        by_p = _permute_back(by_p, plan.order).sum_to_size(p.shape)
        by_p = by_p.to(p.dtype)
    return grad_x, by_p


FORM = Form('power_mean', power_mean_forward, power_mean_backward)

# --- where the members lie --------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """The tensors as the kernels take them."""

    kind: str
    # In the order of its memory: ``order`` are the dims, None as they are.
    x: Tensor
    order: tuple[int, ...] | None
    result_shape: tuple[int, ...]
    # The mask, or the rows of x by segment.
    members: Tensor | None
    # Of each masked set, or the first row of each segment.
    counts: Tensor | None
    # Members of a set where all have as many.
    count: int
    # The sets are ``outer`` groups of ``num_sets``.
    outer: int
    num_sets: int
    # What ``_place`` computes with.
    geometry: tuple[int, ...]
    # Sets and members of a tile.
    tile: tuple[int, int]
    chunks: int

    @property
    def grid(self) -> tuple[int]:
        tiles = triton.cdiv(self.num_sets, self.tile[0])
        return self.outer * tiles * self.chunks,

    @property
    def numbers(self) -> tuple:
        return self.num_sets, self.count, self.chunks, self.geometry

    @property
    def variant(self) -> dict[str, object]:
        """What the kernels are compiled for."""
        wide = max(self.x.numel(), math.prod(self.result_shape)) >= 2**31
        return dict(KIND=self.kind, INDEX=tl.int64 if wide else tl.int32,
                    SETS=self.tile[0], MEMBERS=self.tile[1])


def _plan(x: Tensor, sets: Sets, members: Members) -> _Plan:
    if isinstance(sets, Windows):
        return _plan_windows(x, sets)
    if isinstance(sets, Segments):
        return _plan_segments(x, sets, members)
    return _plan_dims(x, sets, members)


def _plan_dims(x: Tensor, sets: Dims, mask: Tensor | None) -> _Plan:
    # The order of memory, if it keeps the pooled dims together.
    order = tuple(sorted(range(x.dim()), key=x.stride, reverse=True))
    pooled = [i for i, d in enumerate(order) if d in sets.dims]
    if (pooled[-1] - pooled[0] + 1 != len(pooled)
            or not x.permute(order).is_contiguous()):
        kept = tuple(d for d in range(x.dim()) if d not in sets.dims)
        order, pooled = kept + sets.dims, list(range(len(kept), x.dim()))
    counts = None
    if mask is not None:
        counts = _permute(mask.sum(sets.dims, keepdim=True), order)
        mask = _permute(mask, order)
    x = _permute(x, order)
    outer = math.prod(x.shape[:pooled[0]])
    count = math.prod(x.shape[i] for i in pooled)
    inner = math.prod(x.shape[pooled[-1] + 1:])
    if inner == 1:
        outer, num_sets, geometry = 1, outer, (0, count, 1)
        length = min(_power_of_two(count), TILE)
        tile = min(TILE // length, _power_of_two(num_sets)), length
    else:
        num_sets, geometry = inner, (count * inner, 1, inner)
        width = min(_power_of_two(inner), 64)
        tile = width, min(TILE // width, _power_of_two(count))
    programs = outer * triton.cdiv(num_sets, tile[0])
    return _Plan(
        'dims' if mask is None else 'masked', x, order,
        tuple(1 if i in pooled else size for i, size in enumerate(x.shape)),
        mask, counts, count, outer, num_sets, geometry, tile,
        _chunks(programs, count, tile[1]))


def _plan_segments(x: Tensor, sets: Segments, index: Tensor) -> _Plan:
    # int32 sorts faster.
    index = index.int() if sets.num < 2**31 else index
    segments, rows = torch.sort(index, stable=True)
    starts = torch.searchsorted(segments, torch.arange(
        sets.num + 1, dtype=index.dtype, device=x.device))
    channels = math.prod(x.shape[1:])
    width = min(_power_of_two(channels), 64)
    # A pillar has few points.
    tile = width, max(16, 128 // width)
    chunks = _chunks(sets.num * triton.cdiv(channels, width),
                     triton.cdiv(len(x), max(sets.num, 1)), tile[1])
    return _Plan('segments', x.contiguous(), None, (sets.num, *x.shape[1:]),
                 rows, starts, 0, sets.num, channels, (channels, ), tile,
                 chunks)


def _plan_windows(x: Tensor, sets: Windows) -> _Plan:
    spatial = len(sets.kernel)
    lead, extent = x.shape[:-spatial], x.shape[-spatial:]
    windows = tuple(
        (size + 2 * margin - width) // step + 1 for size, width, step, margin
        in zip(extent, sets.kernel, sets.stride, sets.padding))
    ones, zeros = (1, ) * (3 - spatial), (0, ) * (3 - spatial)
    geometry = (*ones, *extent, *ones, *windows, *ones, *sets.kernel, *ones,
                *sets.stride, *zeros, *sets.padding)
    return _Plan('windows', x.contiguous(), None,
                 (*lead, *windows, *(1, ) * spatial), None, None,
                 math.prod(sets.kernel), 1, math.prod(lead + windows),
                 geometry, (256, 1), 1)


def _power_of_two(n: int) -> int:
    return triton.next_power_of_2(max(n, 1))


def _chunks(programs: int, members: int, step: int) -> int:
    """Into how many parts the sets are cut."""
    if programs == 0 or programs > PROGRAMS // 2:
        return 1
    return max(1, min(triton.cdiv(members, 4 * step), PROGRAMS // programs))


def _permute(t: Tensor, order: tuple[int, ...] | None) -> Tensor:
    return (t if order is None else t.permute(order)).contiguous()


def _permute_back(t: Tensor, order: tuple[int, ...] | None) -> Tensor:
    if order is None:
        return t
    return t.permute(sorted(range(t.dim()), key=order.__getitem__))


def _power_of(p: PowerLike, plan: _Plan) -> tuple[Tensor | None, dict]:
    """The power as a tensor that the kernels read, and their variant.

    P_STEP is 0 for one power, and 1 for one per set.
    """
    if isinstance(p, Tensor):
        p = p.detach().to(plan.x.device)
        if p.numel() == 1:
            return p.reshape(1), dict(OPTIONS, MODE='tensor', P_STEP=0)
        shape = plan.result_shape
        if plan.order is not None:
            p = p.view((1, ) * (len(shape) - p.dim()) + p.shape)
            p = p.permute(plan.order)
        p = p.expand(shape).contiguous()
        return p, dict(OPTIONS, MODE='tensor', P_STEP=1)
    if p == 1.0 or math.isinf(p):
        mode = 'one' if p == 1.0 else 'max'
        return None, dict(OPTIONS, MODE=mode, P_STEP=0)
    # The root divides the error of the power by p.
    mode = 'double' if p < 1 else 'float'
    p = torch.full((1, ), p, dtype=torch.float64, device=plan.x.device)
    return p, dict(OPTIONS, MODE=mode, P_STEP=0)


def _clamp(eps: float | None) -> tuple[float, bool]:
    return (0.0, False) if eps is None else (float(eps), True)


@triton.jit
def _program(num_sets, chunks, SETS: tl.constexpr, INDEX: tl.constexpr):
    """The group, the sets as a column, and the chunk of a program."""
    program = tl.program_id(0)
    tiles = tl.cdiv(num_sets, SETS)
    tile = program // chunks % tiles
    s = tile.to(INDEX) * SETS + tl.arange(0, SETS)[:, None]
    return (program // chunks // tiles).to(INDEX), s, program % chunks


@triton.jit
def _range(counts_ptr, outer, chunk, chunks, count, KIND: tl.constexpr,
           MEMBERS: tl.constexpr):
    """The first member of a chunk and the one after its last."""
    if KIND == 'segments':
        first = tl.load(counts_ptr + outer)
        last = tl.load(counts_ptr + outer + 1)
    else:
        first = tl.zeros_like(outer).to(tl.int64)
        last = first + count
    step = tl.cdiv(tl.cdiv(last - first, chunks), MEMBERS) * MEMBERS
    start = first + chunk * step
    return start, tl.minimum(start + step, last)


@triton.jit
def _count(counts_ptr, outer, result, valid, count, KIND: tl.constexpr):
    """Number of members of each set, at least 1, in float64."""
    if KIND == 'segments':
        n = (tl.load(counts_ptr + outer + 1, mask=valid, other=1)
             - tl.load(counts_ptr + outer, mask=valid, other=0))
    elif KIND == 'masked':
        n = tl.load(counts_ptr + result, mask=valid, other=1)
    else:
        n = tl.zeros_like(result).to(tl.int64) + count
    return tl.maximum(n, 1).to(tl.float64)


@triton.jit
def _place(members_ptr, outer, s, j, inside, geometry, KIND: tl.constexpr):
    """Where in x the members j of the sets s lie, and which there are.

    The others, of a mask or of the padding, count as zeros.
    """
    kept = inside
    if KIND == 'segments':
        row = tl.load(members_ptr + j, mask=inside, other=0)
        place = row * geometry[0] + s
    elif KIND == 'windows':
        column = s % geometry[5] * geometry[11] - geometry[14] + (
            j % geometry[8])
        s, j = s // geometry[5], j // geometry[8]
        line = s % geometry[4] * geometry[10] - geometry[13] + (
            j % geometry[7])
        s, j = s // geometry[4], j // geometry[7]
        slab = s % geometry[3] * geometry[9] - geometry[12] + j
        kept = inside & (slab >= 0) & (slab < geometry[0]) & (
            line >= 0) & (line < geometry[1]) & (
            column >= 0) & (column < geometry[2])
        place = ((s // geometry[3] * geometry[0] + slab) * geometry[1]
                 + line) * geometry[2] + column
    else:
        place = outer * geometry[0] + s * geometry[1] + j * geometry[2]
        if KIND == 'masked':
            kept = tl.load(members_ptr + place, mask=inside, other=0) != 0
    return place, kept


@triton.jit
def _load(x_ptr, members_ptr, outer, s, j, inside, geometry, eps,
          KIND: tl.constexpr, CLAMP: tl.constexpr, INDEX: tl.constexpr):
    """The members of a tile: place, clamped value, and what passes."""
    place, kept = _place(members_ptr, outer, s, j.to(INDEX), inside, geometry,
                         KIND)
    x = tl.load(x_ptr + place, mask=kept, other=0.0).to(tl.float32)
    c, passes = x, kept
    if CLAMP:
        # A NaN stays one.
        c = tl.where(x < eps, eps, x)
        passes = kept & (x >= eps)
    return place, tl.where(kept, c, 0.0), passes


# --- the mathematics --------------------------------------------------------


@triton.jit
def _larger(a, b):
    """The maximum, of which a NaN is one."""
    return tl.where((b > a) | (b != b), b, a)


@triton.jit
def _powers(p_ptr, result, valid, MODE: tl.constexpr, P_STEP: tl.constexpr):
    """The power of each set in float64."""
    if MODE == 'one' or MODE == 'max':
        return tl.full(result.shape, 1.0, tl.float64)
    elif P_STEP == 0:
        return tl.zeros_like(result).to(tl.float64) + tl.load(p_ptr)
    else:
        return tl.load(p_ptr + result, mask=valid, other=1.0).to(tl.float64)


@triton.jit
def _divisor(y):
    """What can be divided by, where y is 0, infinite or of an empty set."""
    return tl.where(y > LARGEST, LARGEST, tl.where(y <= 0, 1.0, y))


@triton.jit
def _scale(largest, p, MODE: tl.constexpr):
    """What the members are divided by before the power."""
    scale = _divisor(largest)
    if MODE == 'tensor':
        # For p = 1 a power of two, so that nothing is rounded.
        bits = scale.to(tl.int32, bitcast=True) & 0x7f800000
        whole = tl.maximum(bits.to(tl.float32, bitcast=True), SMALLEST)
        scale = tl.where((p == 1) & (scale == scale), whole, scale)
    return scale


@triton.jit
def _power(c, scale, k_scale, f_scale, p, MODE: tl.constexpr):
    """``(c / scale)**p`` for a p above 0."""
    if MODE == 'double':
        ratio = c.to(tl.float64) / scale.to(tl.float64)
        return tl.exp(p * tl.log(ratio))
    else:
        k, f = log2(c)
        y = exp2_product(p.to(tl.float32), k - k_scale, f - f_scale)
        y = tl.where(c == 0, 0.0, tl.where(c == INFINITY, INFINITY, y))
        if MODE == 'tensor':
            y = tl.where(p == 1, c * tl.div_rn(1.0, scale), y)
        return y


@triton.jit
def _root(largest, total, count, p, KIND: tl.constexpr, MODE: tl.constexpr):
    """The mean of the powers back on the scale of the members."""
    if KIND == 'segments':
        # Of an empty one.
        largest = tl.where(largest < 0, 0.0, largest)
    if MODE == 'max':
        return largest
    mean = total / count
    if MODE == 'one':
        return mean.to(tl.float32)
    scale = _scale(largest, p, MODE).to(tl.float64)
    y = scale * tl.exp(tl.log(mean) / p)
    if MODE == 'tensor':
        y = tl.where(p == INFINITY, largest.to(tl.float64), y)
    return tl.where(largest == 0, 0.0, y).to(tl.float32)


@triton.jit
def _slope(c, y, p, count, ties, MODE: tl.constexpr):
    """The derivative of y by c."""
    weight = (1.0 / count).to(tl.float32)
    if MODE == 'one':
        return tl.zeros_like(c) + weight
    if MODE == 'max':
        return tl.where(c == y, tl.div_rn(1.0, ties), 0.0)
    k, f = log2(c)
    k_y, f_y = log2(_divisor(y))
    q = (p - 1.0).to(tl.float32)
    slope = exp2_product(q, k - k_y, f - f_y)
    at_infinity = tl.where(q > 0, INFINITY, tl.where(q == 0, 1.0, 0.0))
    slope = tl.where(c == INFINITY, at_infinity, slope)
    slope = tl.where(c == 0, tl.where(p == 1, 1.0, 0.0), slope) * weight
    if MODE == 'tensor':
        shared = tl.div_rn(1.0, ties)
        slope = tl.where(p == INFINITY, tl.where(c == y, shared, 0.0), slope)
    return slope


@triton.jit
def _entropy(c, y, p):
    """``u**p ln(u)`` with u = c / y."""
    k, f = log2(c)
    k_y, f_y = log2(_divisor(y))
    k, f = k - k_y, f - f_y
    value = exp2_product(p.to(tl.float32), k, f) * (
        (k + f) * 0.6931471805599453)
    value = tl.where(c == INFINITY, INFINITY, value)
    return tl.where((c == 0) | (p == INFINITY), 0.0, value)


# --- the kernels ------------------------------------------------------------


@triton.jit
def _forward(x_ptr, p_ptr, members_ptr, counts_ptr, y_ptr, tops_ptr,
             totals_ptr, num_sets, count, chunks, geometry, eps,
             CLAMP: tl.constexpr, KIND: tl.constexpr, MODE: tl.constexpr,
             P_STEP: tl.constexpr, INDEX: tl.constexpr, SETS: tl.constexpr,
             MEMBERS: tl.constexpr):
    outer, s, chunk = _program(num_sets, chunks, SETS, INDEX)
    start, stop = _range(counts_ptr, outer, chunk, chunks, count, KIND,
                         MEMBERS)
    valid = s < num_sets
    result = outer * num_sets + s
    p = _powers(p_ptr, result, valid, MODE, P_STEP)

    largest = tl.full([SETS, 1], -INFINITY, tl.float32)
    if MODE != 'one':
        tops = tl.full([SETS, MEMBERS], -INFINITY, tl.float32)
        for first in range(start, stop, MEMBERS):
            j = first + tl.arange(0, MEMBERS)[None, :]
            inside = valid & (j < stop)
            _, c, _ = _load(x_ptr, members_ptr, outer, s, j, inside, geometry,
                            eps, KIND, CLAMP, INDEX)
            tops = _larger(tops, tl.where(inside, c, -INFINITY))
        # The reduction drops a NaN.
        invalid = tl.max((tops != tops).to(tl.int32), 1, keep_dims=True)
        largest = tl.max(tl.where(tops == tops, tops, 0.0), 1,
                         keep_dims=True)
        largest = tl.where(invalid != 0, float('nan'), largest)

    total = tl.zeros([SETS, 1], tl.float64)
    if MODE != 'max':
        # The second time, the members come from the cache.
        scale = _scale(largest, p, MODE)
        k_scale, f_scale = log2(scale)
        if MODE == 'double' or MODE == 'one':
            # Members that are not divided may overflow a sum in float32.
            sums = tl.zeros([SETS, MEMBERS], tl.float64)
        else:
            sums = tl.zeros([SETS, MEMBERS], tl.float32)
        rests = tl.zeros_like(sums)
        for first in range(start, stop, MEMBERS):
            j = first + tl.arange(0, MEMBERS)[None, :]
            inside = valid & (j < stop)
            _, c, _ = _load(x_ptr, members_ptr, outer, s, j, inside, geometry,
                            eps, KIND, CLAMP, INDEX)
            if MODE == 'one':
                power = c.to(tl.float64)
            else:
                power = _power(c, scale, k_scale, f_scale, p, MODE)
            sums, rests = add(sums, rests, tl.where(inside, power, 0.0))
        total = tl.sum(finish_sum(sums, rests), 1, keep_dims=True)

    if tops_ptr is None:
        n = _count(counts_ptr, outer + tl.zeros_like(s), result, valid, count,
                   KIND)
        tl.store(y_ptr + result, _root(largest, total, n, p, KIND, MODE),
                 mask=valid)
    else:
        # The number of results may have more than 31 bits with the chunks.
        groups = tl.num_programs(0) // chunks // tl.cdiv(num_sets, SETS)
        place = chunk.to(tl.int64) * groups * num_sets + result
        tl.store(tops_ptr + place, largest, mask=valid)
        tl.store(totals_ptr + place, total, mask=valid)


@triton.jit
def _merge(p_ptr, counts_ptr, y_ptr, tops_ptr, totals_ptr, size, num_sets,
           count, chunks, KIND: tl.constexpr, MODE: tl.constexpr,
           P_STEP: tl.constexpr, SETS: tl.constexpr):
    """The results of sets in chunks."""
    result = tl.program_id(0).to(tl.int64) * SETS + tl.arange(0, SETS)
    valid = result < size
    p = _powers(p_ptr, result, valid, MODE, P_STEP)
    largest = tl.full([SETS], -INFINITY, tl.float32)
    place = result
    for _ in range(chunks):
        top = tl.load(tops_ptr + place, mask=valid, other=0.0)
        largest = _larger(largest, top)
        place += size
    scale = _scale(largest, p, MODE).to(tl.float64)
    total = tl.zeros([SETS], tl.float64)
    place = result
    for _ in range(chunks):
        part = tl.load(totals_ptr + place, mask=valid, other=0.0)
        if MODE != 'one':
            top = tl.load(tops_ptr + place, mask=valid, other=0.0)
            ratio = _scale(top, p, MODE).to(tl.float64) / scale
            # Zeros have no scale.
            part = tl.where(part == 0, 0.0, part * tl.exp(
                p * tl.log(ratio)))
        total += part
        place += size
    n = _count(counts_ptr, result // num_sets, result, valid, count, KIND)
    tl.store(y_ptr + result, _root(largest, total, n, p, KIND, MODE),
             mask=valid)


@triton.jit
def _ties(x_ptr, p_ptr, members_ptr, counts_ptr, y_ptr, ties_ptr, num_sets,
          count, chunks, geometry, eps, CLAMP: tl.constexpr,
          KIND: tl.constexpr, MODE: tl.constexpr, P_STEP: tl.constexpr,
          INDEX: tl.constexpr, SETS: tl.constexpr, MEMBERS: tl.constexpr):
    """How many members of each set are its maximum, where p is infinite."""
    outer, s, chunk = _program(num_sets, chunks, SETS, INDEX)
    start, stop = _range(counts_ptr, outer, chunk, chunks, count, KIND,
                         MEMBERS)
    valid = s < num_sets
    result = outer * num_sets + s
    if MODE == 'tensor':
        p = _powers(p_ptr, result, valid, MODE, P_STEP)
        if tl.max(tl.max((p == INFINITY).to(tl.int32), 1), 0) == 0:
            stop = start
    y = tl.load(y_ptr + result, mask=valid, other=0.0)
    ties = tl.zeros([SETS, MEMBERS], tl.int32)
    for first in range(start, stop, MEMBERS):
        j = first + tl.arange(0, MEMBERS)[None, :]
        inside = valid & (j < stop)
        _, c, _ = _load(x_ptr, members_ptr, outer, s, j, inside, geometry,
                        eps, KIND, CLAMP, INDEX)
        ties += (inside & (c == y)).to(tl.int32)
    groups = tl.num_programs(0) // chunks // tl.cdiv(num_sets, SETS)
    place = chunk.to(tl.int64) * groups * num_sets + result
    tl.store(ties_ptr + place, tl.sum(ties, 1, keep_dims=True), mask=valid)


@triton.jit
def _backward(grad_y_ptr, x_ptr, p_ptr, members_ptr, counts_ptr, y_ptr,
              ties_ptr, grad_x_ptr, by_p_ptr, num_sets, count, chunks,
              geometry, eps, CLAMP: tl.constexpr, KIND: tl.constexpr,
              MODE: tl.constexpr, P_STEP: tl.constexpr, INDEX: tl.constexpr,
              SETS: tl.constexpr, MEMBERS: tl.constexpr):
    """The gradient of x, the share of each set in that of p, or both."""
    outer, s, chunk = _program(num_sets, chunks, SETS, INDEX)
    start, stop = _range(counts_ptr, outer, chunk, chunks, count, KIND,
                         MEMBERS)
    valid = s < num_sets
    result = outer * num_sets + s
    p = _powers(p_ptr, result, valid, MODE, P_STEP)
    y = tl.load(y_ptr + result, mask=valid, other=0.0)
    grad_y = tl.load(grad_y_ptr + result, mask=valid, other=0.0)
    grad_y = grad_y.to(tl.float32)
    n = _count(counts_ptr, outer + tl.zeros_like(s), result, valid, count,
               KIND)
    ties = n.to(tl.float32)
    if ties_ptr is not None:
        ties = tl.load(ties_ptr + result, mask=valid, other=1.0)
        ties = tl.maximum(ties, 1.0)

    sums = tl.zeros([SETS, MEMBERS], tl.float32)
    rests = tl.zeros([SETS, MEMBERS], tl.float32)
    for first in range(start, stop, MEMBERS):
        j = first + tl.arange(0, MEMBERS)[None, :]
        inside = valid & (j < stop)
        place, c, passes = _load(x_ptr, members_ptr, outer, s, j, inside,
                                 geometry, eps, KIND, CLAMP, INDEX)
        if grad_x_ptr is not None:
            grad = grad_y * _slope(c, y, p, n, ties, MODE)
            tl.store(grad_x_ptr + place, tl.where(passes, grad, 0.0),
                     mask=inside)
        if by_p_ptr is not None:
            value = tl.where(inside, _entropy(c, y, p), 0.0)
            sums, rests = add(sums, rests, value)
    if by_p_ptr is not None:
        total = tl.sum(finish_sum(sums, rests), 1, keep_dims=True)
        by_p = grad_y * (y * (total / n / p))
        groups = tl.num_programs(0) // chunks // tl.cdiv(num_sets, SETS)
        place = chunk.to(tl.int64) * groups * num_sets + result
        tl.store(by_p_ptr + place, by_p, mask=valid)


@triton.jit
def _gather(grad_y_ptr, x_ptr, p_ptr, y_ptr, ties_ptr, grad_x_ptr, size,
            count, geometry, eps, CLAMP: tl.constexpr, MODE: tl.constexpr,
            P_STEP: tl.constexpr, INDEX: tl.constexpr, CELLS: tl.constexpr):
    """The gradient of cells, each from all windows that contain it."""
    cell = tl.program_id(0).to(INDEX) * CELLS + tl.arange(0, CELLS)
    valid = cell < size
    x = tl.load(x_ptr + cell, mask=valid, other=0.0).to(tl.float32)
    c = x
    if CLAMP:
        c = tl.where(x < eps, eps, x)
    # Where a window of the first row of windows would begin.
    column = cell % geometry[2] + geometry[14]
    line = cell // geometry[2] % geometry[1] + geometry[13]
    slab = cell // geometry[2] // geometry[1] % geometry[0] + geometry[12]
    plane = cell // geometry[2] // geometry[1] // geometry[0]
    # At most so many windows contain a cell.
    columns = tl.cdiv(geometry[8], geometry[11])
    lines = tl.cdiv(geometry[7], geometry[10])
    slabs = tl.cdiv(geometry[6], geometry[9])
    total = tl.zeros([CELLS], tl.float32)
    for i in range(slabs * lines * columns):
        # The last window that begins at or before the cell, and those
        # before it.
        w = column // geometry[11] - i % columns
        h = line // geometry[10] - i // columns % lines
        d = slab // geometry[9] - i // columns // lines
        inside = valid & (w >= 0) & (w < geometry[5]) & (
            column - w * geometry[11] < geometry[8]) & (
            h >= 0) & (h < geometry[4]) & (
            line - h * geometry[10] < geometry[7]) & (
            d >= 0) & (d < geometry[3]) & (
            slab - d * geometry[9] < geometry[6])
        result = ((plane * geometry[3] + d) * geometry[4]
                  + h) * geometry[5] + w
        p = _powers(p_ptr, result, inside, MODE, P_STEP)
        y = tl.load(y_ptr + result, mask=inside, other=1.0)
        grad_y = tl.load(grad_y_ptr + result, mask=inside, other=0.0)
        n = tl.zeros_like(c).to(tl.float64) + count
        ties = n.to(tl.float32)
        if ties_ptr is not None:
            ties = tl.load(ties_ptr + result, mask=inside, other=1.0)
            ties = tl.maximum(ties, 1.0)
        grad = grad_y.to(tl.float32) * _slope(c, y, p, n, ties, MODE)
        total += tl.where(inside, grad, 0.0)
    if CLAMP:
        total = tl.where(x >= eps, total, 0.0)
    tl.store(grad_x_ptr + cell, total, mask=valid)
