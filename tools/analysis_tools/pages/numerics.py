"""docs/numerics.md: the operations in every dtype, measured on the CPU."""
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import stock_forms
import torch
from torch import Tensor

from sigplug.ops import (
    clip_sigmoid,
    gaussian_focal_loss_with_logits,
    gem_pool,
    generalized_mean,
)

from . import DOCS, markdown, write_page
from .measure import (
    Function,
    Worst,
    edge,
    focal_reference,
    mean_reference,
    sweep,
    unit_in_last_place,
    with_gradient,
)

PAGE = DOCS / 'numerics.md'
DTYPES = dict(fp16=torch.float16, bf16=torch.bfloat16, fp32=torch.float32,
              fp64=torch.float64)
# float64 is what errors are measured against.
NARROW = {name: DTYPES[name] for name in ('fp16', 'bf16', 'fp32')}
EPS, GEM_EPS = 1e-4, 1e-6
POWERS = (1.0, 3.0, 6.5, 20.0, math.inf)
TARGETS = (0.0, 0.5, 0.9, 1.0)
# Within this many, no form of the loss clips in any dtype.
MODERATE = 5.0
MAP = (8, 8)
POOLS = (stock_forms.gem, gem_pool)

Rows = Iterator[list[str]]
TABLES: dict[str, Callable[[int], str]] = {}

straight_through = partial(clip_sigmoid, grad='straight_through')


def table(*header: str) -> Callable:
    """Make a generator of rows a table of the page, under its name.

    It is called with the number of float32 values to try.
    """

    def register(rows: Callable[[int], Rows]) -> Callable[[int], Rows]:
        TABLES[rows.__name__] = lambda values: markdown(header, rows(values))
        return rows

    return register


# Texts ---------------------------------------------------------------------


def sig(value: float, digits: int) -> str:
    """Return a number with some digits; a zero has no sign."""
    text = f'{value or 0.0:.{digits}g}'.replace('nan', 'NaN')
    return re.sub(r'e([+-])0', r'e\1', text)


# Up to six digits, always with an exponent.
scientific = partial(np.format_float_scientific, precision=5, trim='-',
                     exp_digits=1)


def below_one(value: float) -> str:
    """Return a value by its distance from 1."""
    return 'exactly 1' if value == 1 else f'1 - {scientific(1 - value)}'


def safe_range(test: Function, dtype: torch.dtype) -> str:
    """Return the magnitude up to which a test holds for neither sign."""
    ends = [abs(pair[0]) for sign in (1, -1)
            if (pair := edge(test, dtype, sign=sign))]
    return (sig(min(ends), 5) if ends else
            f'{sig(torch.finfo(dtype).max, 5)} (all)')


# Sigmoid -------------------------------------------------------------------


def bounds_of(function: Function, dtype: torch.dtype) -> tuple[float, float]:
    """Return the smallest and the largest output."""
    largest = torch.finfo(dtype).max
    low, high = function(
        torch.tensor([-largest, largest], dtype=dtype)).tolist()
    return low, high


def no_gradient(function: Function, x: Tensor) -> Tensor:
    """Tell where the gradient is 0 or not finite."""
    gradient = with_gradient(function, x)[1]
    return (gradient == 0) | ~gradient.isfinite()


@table('dtype', '`1 - 1e-4` becomes', 'largest value below 1',
       'bounds, mmdet3d', 'bounds, ours', 'largest safe logit, mmdet3d',
       'largest safe logit, ours')
def bounds(_: int) -> Rows:
    functions = stock_forms.clip_sigmoid, clip_sigmoid

    def outside(function: Function, x: Tensor) -> Tensor:
        y = function(x)
        return ~((y > 0) & (y < 1))

    for name, dtype in DTYPES.items():
        rounded = torch.tensor(1 - EPS, dtype=dtype).item()
        yield [
            name, below_one(rounded),
            below_one(1 - torch.finfo(dtype).eps / 2),
            *(f'{scientific(low)}, {below_one(high)}'
              for low, high in (bounds_of(f, dtype) for f in functions)),
            *(safe_range(partial(outside, f), dtype) for f in functions)]


@table('dtype', 'mmdet3d', "ours, `grad='zero'`",
       "ours, `grad='straight_through'`")
def dead_zone(_: int) -> Rows:
    for name, dtype in DTYPES.items():
        yield [name, *(
            ', '.join(sig(edge(partial(no_gradient, function), dtype,
                               sign=sign)[1], 5) for sign in (-1, 1))
            for function in (stock_forms.clip_sigmoid, clip_sigmoid,
                             straight_through))]


def away_from_kink(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Tell where the last two bits of the sigmoid do not decide a clip."""
    low, high = bounds
    x, margin = x.double(), 2 * torch.finfo(compute_dtype(x.dtype)).eps
    return (((x.sigmoid() - low).abs() > margin * low)
            & (((-x).sigmoid() - (1 - high)).abs() > margin))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@table('dtype', 'error of the value, ulp',
       'error of mmdet3d in the same bounds, ulp',
       "relative error of the gradient, `'zero'`",
       "relative error of the gradient, `'straight_through'`")
def sigmoid_errors(values: int) -> Rows:
    for name, dtype in NARROW.items():
        low, high = bounds_of(clip_sigmoid, dtype)
        value, stock, zero, through = (Worst() for _ in range(4))
        for x in sweep(dtype, values):
            q = x.double().sigmoid()
            slope = q * (-x.double()).sigmoid()
            y, gradient = with_gradient(clip_sigmoid, x)
            value.add(y, q.clamp(low, high))
            stock.add(stock_forms.clip_sigmoid(x).clamp(low, high),
                      q.clamp(low, high))
            # On the kink, either side is right.
            clear = away_from_kink(x, (low, high))
            zero.add(gradient[clear],
                     (slope * (q > low) * (q < high))[clear])
            through.add(with_gradient(straight_through, x)[1], slope)
        yield [name, sig(value.ulp, 2), sig(stock.ulp, 2),
               sig(zero.relative, 2), sig(through.relative, 2)]


# Focal loss ----------------------------------------------------------------

FORMS = {
    'mmdet3d, mmdet':
    lambda x, t: stock_forms.gaussian_focal_loss(
        stock_forms.clip_sigmoid(x), t),
    '`clip_sigmoid`, mmdet':
    lambda x, t: stock_forms.gaussian_focal_loss(clip_sigmoid(x), t),
    'ours, `clip=1e-4`':
    partial(gaussian_focal_loss_with_logits, clip=EPS, reduction='none'),
    'ours, `clip=None`':
    partial(gaussian_focal_loss_with_logits, clip=None, reduction='none'),
}
STOCK, COMPOSED, CLIPPED, EXACT = FORMS


def cell(form: str, target: float) -> Function:
    """Return the loss of cells with one target, as a function of the logits.

    The target is float32 (float64 for float64), as heads draw it also for
    logits of half precision.
    """

    def function(x: Tensor) -> Tensor:
        t = torch.full_like(x, target, dtype=compute_dtype(x.dtype))
        return FORMS[form](x, t)

    return function


@table('dtype', 'cell', 'logit', STOCK, CLIPPED, EXACT)
def examples(_: int) -> Rows:
    for name, target, logit in (('fp16', 0.0, 8.5), ('fp16', 1.0, 8.5),
                                ('bf16', 0.0, 6.5), ('fp32', 0.0, 9.25),
                                ('fp32', 1.0, -9.25)):
        x = torch.tensor([logit], dtype=DTYPES[name])
        yield [name, 'peak' if target else 'background', f'{logit:g}', *(
            'loss {}, gradient {}'.format(*(
                sig(t.item(), 4) for t in with_gradient(cell(form, target),
                                                        x)))
            for form in (STOCK, CLIPPED, EXACT))]


@table('dtype', 'form', 'largest safe logit',
       'a wrong background cell learns until', 'a missed peak learns until')
def focal_limits(_: int) -> Rows:
    def not_finite(form: str, x: Tensor) -> Tensor:
        pairs = (with_gradient(cell(form, t), x) for t in TARGETS)
        return torch.stack([~(value.isfinite() & gradient.isfinite())
                            for value, gradient in pairs]).any(0)

    def learns_until(function: Function, dtype: torch.dtype,
                     sign: int) -> str:
        pair = edge(partial(no_gradient, function), dtype, sign=sign)
        if pair is None:
            return 'always'
        last, gradient = pair[0], with_gradient(
            function, torch.tensor([pair[1]], dtype=dtype))[1]
        return f'{sig(last, 5)}, then {sig(gradient.item(), 4)}'

    for name, dtype in DTYPES.items():
        for form in FORMS:
            yield [name, form, safe_range(partial(not_finite, form), dtype),
                   learns_until(cell(form, 0.0), dtype, 1),
                   learns_until(cell(form, 1.0), dtype, -1)]


@table('dtype', 'form', *(
    f'relative error, {what}, {where}'
    for where in (f'up to ±{MODERATE:g}', 'all')
    for what in ('loss', 'gradient')))
def focal_errors(values: int) -> Rows:
    for name, dtype in NARROW.items():
        wide = compute_dtype(dtype)
        bounds = bounds_of(clip_sigmoid, wide)
        errors = {form: [Worst() for _ in range(4)] for form in FORMS}
        for x in sweep(dtype, values // 8):
            x = x[away_from_kink(x, bounds)]
            small = x.abs() <= MODERATE
            for target in TARGETS:
                t = torch.tensor(target, dtype=wide).item()
                for form, worst in errors.items():
                    expected = with_gradient(
                        partial(focal_reference, target=t, bounds=None
                                if form == EXACT else bounds), x.double())
                    found = with_gradient(cell(form, target), x)
                    for i in (0, 1):
                        worst[i].add(found[i][small], expected[i][small])
                        worst[2 + i].add(found[i], expected[i])
        for form, worst in errors.items():
            yield [name, form, *(sig(w.relative, 2) for w in worst)]


# Power mean ----------------------------------------------------------------


def constant_maps(x: Tensor) -> Tensor:
    """Return one constant map, shape ``(M, 1, H, W)``, for each value."""
    return x[:, None, None, None].expand(-1, 1, *MAP)


@table('dtype', f'constant {MAP[0]} x {MAP[1]} map of', '`p`', 'textbook',
       'ours')
def pool_examples(_: int) -> Rows:
    for name, value, p in (('fp16', 41.0, 3.0), ('fp16', 0.001, 3.0),
                           ('fp16', 6.0, 6.5), ('fp32', 100.0, 20.0),
                           ('fp32', 5.0, math.inf)):
        x = constant_maps(torch.tensor([value], dtype=DTYPES[name]))
        yield [name, f'{value:g}', f'{p:g}', *(
            '{}, gradient {}'.format(*(
                sig(t.flatten()[0].item(), 4)
                for t in with_gradient(partial(pool, p=p), x)))
            for pool in POOLS)]


@table('dtype', '`p`', 'textbook is right', 'ours is right')
def pool_limits(_: int) -> Rows:
    def wrong(pool: Callable[..., Tensor], p: float, x: Tensor) -> Tensor:
        truth = x.double().clamp(min=GEM_EPS)
        y = pool(constant_maps(x), p).flatten().double()
        allowed = torch.maximum(
            0.01 * truth, unit_in_last_place(truth, x.dtype))
        return ~((y - truth).abs() <= allowed)

    def right(pool: Callable[..., Tensor], p: float,
              dtype: torch.dtype) -> str:
        low, high = (edge(partial(wrong, pool, p), dtype, 1.0, stop)
                     for stop in (0.0, None))
        ends = (low[0] if low else 0,
                high[0] if high else torch.finfo(dtype).max)
        return ' to '.join(sig(end, 5) for end in ends) + (
            '' if low or high else ' (all)')

    for name, dtype in DTYPES.items():
        for p in POWERS:
            yield [name, f'{p:g}', *(right(pool, p, dtype) for pool in POOLS)]


def random_sets(dtype: torch.dtype, values: int) -> Iterator[Tensor]:
    """Return sets of 1 to 1024 values, shape ``(M, size)``."""
    options = dict(generator=torch.Generator().manual_seed(0),
                   dtype=torch.float64)
    info = torch.finfo(dtype)
    low, high = math.log2(info.smallest_normal), math.log2(info.max)
    for size in (1, 2, 7, 64, 1024):
        shape = (max(1, values // (160 * max(size, 16))), size)
        u, normal = torch.rand(shape, **options), torch.randn(shape, **options)
        spike = torch.zeros_like(u)
        spike[:, 0] = 100 * u[:, 0]
        yield torch.cat([
            u,
            normal.relu(),
            torch.exp2(low + (high - low) * u),
            torch.exp(3 * normal),
            info.max * (1 + u) / 2,
            100 * u[:, :1].expand(shape),
            1 + info.eps * torch.floor(4 * u),
            spike,
        ]).clamp(max=info.max).to(dtype)


@table('dtype', '`p`', 'error of `y`, ulp', 'relative error of `dy/dx`',
       'error of `dy/dp`, in `y/p`')
def pool_errors(values: int) -> Rows:
    # eps has the type of the computation.
    eps = torch.tensor(GEM_EPS).item()
    for name, dtype in NARROW.items():
        for p in POWERS[:-1]:
            value, dx, dp = Worst(), Worst(), Worst()
            for x in random_sets(dtype, values):
                # One p for each set, to see the gradient of each.
                powers = torch.full((len(x), 1), p)
                forms = (partial(generalized_mean, x, dim=1, keepdim=True),
                         partial(mean_reference, x.double(), eps=eps))
                (y, slope_p), (wide, wide_p) = (
                    with_gradient(form, power) for form, power in zip(
                        forms, (powers, powers.double())))
                value.add(y, wide)
                dp.add(slope_p, wide_p, wide / p)
                dx.add(with_gradient(partial(
                    generalized_mean, p=p, dim=1), x)[1], with_gradient(
                        partial(mean_reference, p=p, eps=eps),
                        x.double())[1])
            yield [name, f'{p:g}', sig(value.ulp, 2), sig(dx.relative, 2),
                   sig(dp.relative, 2)]


@table('dtype', 'textbook: `dy/dp` at `p` = 3', 'breaks from `p`',
       'ours: `dy/dp` at `p` = 3', 'breaks from `p`')
def dead_channels(_: int) -> Rows:
    powers = torch.arange(1.0, 100.25, 0.25)
    for name, dtype in DTYPES.items():
        row = [name]
        x = torch.zeros(1, 1, *MAP, dtype=dtype)
        for pool in POOLS:
            slopes = {p: with_gradient(partial(pool, x), torch.tensor(
                [p], dtype=dtype))[1].item() for p in powers.tolist()}
            broken = [f'{p:g}, then {sig(slope, 4)}'
                      for p, slope in slopes.items()
                      if not math.isfinite(slope)]
            row += [sig(slopes[3.0], 4), (*broken, 'none up to 100')[0]]
        yield row


def write(values: int, page: Path = PAGE) -> Path:
    """Measure and write the page, with so many float32 logits."""
    texts = {name: make(values) for name, make in TABLES.items()}
    texts['torch'] = torch.__version__.split('+')[0]
    return write_page('numerics', texts, page)
