"""Measure the operations in every dtype and write docs/numerics.md.

Every figure of the page is measured here, on the CPU; its prose is in
numerics_template.md.
"""
import argparse
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from string import Template

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

DTYPES = dict(
    fp16=torch.float16,
    bf16=torch.bfloat16,
    fp32=torch.float32,
    fp64=torch.float64)
SAME_SIZE_INT = {2: torch.int16, 4: torch.int32, 8: torch.int64}
TEMPLATE = Path(__file__).with_name('numerics_template.md')
PAGE = Path(__file__).resolve().parents[2] / 'docs/numerics.md'

EPS = 1e-4
GEM_EPS = 1e-6
POWERS = (1.0, 3.0, 6.5, 20.0, math.inf)
TARGETS = (0.0, 0.5, 0.9, 1.0)
# Within this many, no form of the loss clips in any dtype.
MODERATE = 5.0
MAP = (8, 8)

# The worst error, in ulp, that clip_sigmoid and generalized_mean are meant to
# keep; what is above it is marked.
SIGMOID_TARGET, MEAN_TARGET = 2.0, 4.0
MARK = '†'
CHUNK = 2**18

# A cell with one number, or a word in its place.
NUMBER = rf'[-+±]?[\d.,e-]+( {MARK})?|infinite|inf|-'

Function = Callable[[Tensor], Tensor]
Table = list[Sequence[str]]


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out',
        type=Path,
        default=PAGE,
        metavar='FILE.md',
        help='the page (default: docs/numerics.md of this repository)')
    parser.add_argument(
        '--values',
        type=int,
        default=2**24,
        metavar='N',
        help='float32 logits in the largest sweep, the others in proportion; '
        'the half types are always covered whole (default: %(default)s)')
    args = parser.parse_args()
    if args.values < 2**10:
        parser.error(f'--values must be at least 1024, got {args.values}')
    return args


# Numbers of a dtype ------------------------------------------------------


def from_bits(bits: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Values from their bit patterns, which have the order of the values."""
    bits = torch.from_numpy(np.ascontiguousarray(bits, dtype=np.int64))
    return bits.to(SAME_SIZE_INT[dtype.itemsize]).view(dtype)


def to_bits(value: float, dtype: torch.dtype) -> int:
    """The bit pattern of a positive value."""
    return torch.tensor(
        value, dtype=dtype).view(SAME_SIZE_INT[dtype.itemsize]).item()


def largest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the operations compute in."""
    return torch.promote_types(dtype, torch.float32)


def edge(test: Callable[[Tensor], Tensor],
         dtype: torch.dtype,
         start: float = 0.0,
         stop: float | None = None,
         sign: int = 1) -> tuple[float, float] | None:
    """The last value before ``test`` first holds, and the value there.

    The half types are searched whole. The others are searched on a grid of
    bit patterns, which is refined where ``test`` first holds.

    Args:
        test (Callable): Tells for a tensor of values where it holds.
        dtype (torch.dtype): The type of the values.
        start (float): First value, positive. Defaults to 0.
        stop (float, optional): Last value, positive; above or below
            ``start``. Defaults to the largest of the type.
        sign (int): -1 searches the negative of these values.

    Returns:
        tuple[float, float] | None: None if ``test`` does not hold anywhere.
    """
    first = to_bits(start, dtype)
    last = to_bits(largest(dtype) if stop is None else stop, dtype)
    while True:
        step = max(1, abs(last - first) // (2**15 if dtype.itemsize == 2 else
                                            2**12))
        step *= 1 if first < last else -1
        bits = np.append(np.arange(first, last, step, dtype=np.int64), last)
        hits = test(sign * from_bits(bits, dtype)).numpy()
        if not hits.any():
            return None
        i = int(hits.argmax())
        if i == 0 or abs(bits[i] - bits[i - 1]) == 1:
            value = sign * from_bits(bits[[max(i - 1, 0), i]], dtype).double()
            return value[0].item(), value[1].item()
        first, last = int(bits[i - 1]), int(bits[i])


def spread(dtype: torch.dtype, low: float, high: float,
           count: int) -> np.ndarray:
    """Evenly spaced bit patterns of positive values."""
    first, last = to_bits(low, dtype), to_bits(high, dtype)
    return np.arange(first, last, max(1, (last - first) // count))


def sweep(dtype: torch.dtype, count: int) -> Iterator[Tensor]:
    """Logits in chunks: every finite one of a half type.

    Of float32 and float64 there are evenly spaced bit patterns up to 128,
    which is beyond the end of every tail; every value around the places where
    something changes; random ones; the ends of the range and subnormal ones.
    """
    if dtype.itemsize == 2:
        bits = np.arange(to_bits(largest(dtype), dtype) + 1)
    else:
        edges = (math.log(1 / EPS - 1), math.log(2), 1.0, MODERATE, 16.64,
                 36.74, 87.34, 103.97)
        near = np.arange(count // 128) - count // 256
        random = torch.randn(
            count // 8, generator=torch.Generator().manual_seed(0),
            dtype=dtype).abs() * 8
        bits = np.concatenate([
            spread(dtype, 0.0, 128.0, count // 4),
            spread(dtype, 2.0**-6, 16.0, count // 8),
            *(to_bits(value, dtype) + near for value in edges),
            random.view(SAME_SIZE_INT[dtype.itemsize]).long().numpy(),
            np.arange(64),
            to_bits(torch.finfo(dtype).smallest_normal, dtype) +
            np.arange(-32, 32),
            to_bits(largest(dtype), dtype) - np.arange(64),
        ])
    for start in range(0, len(bits), CHUNK):
        x = from_bits(bits[start:start + CHUNK], dtype)
        yield torch.cat([x, -x])


# Errors ------------------------------------------------------------------


def wide(x: Tensor) -> np.ndarray:
    """Values for a reference: float64, for float64 the longer long double."""
    array = x.detach().double().numpy()
    return array.astype(np.longdouble) if x.dtype == torch.float64 else array


def unit_in_last_place(reference: np.ndarray,
                       dtype: torch.dtype) -> np.ndarray:
    """The distance of neighbours in ``dtype`` around the reference."""
    info = torch.finfo(dtype)
    exponent = np.frexp(reference)[1] + round(math.log2(info.eps)) - 1
    lowest = round(math.log2(info.smallest_normal) + math.log2(info.eps))
    return np.ldexp(np.ones_like(reference), np.maximum(exponent, lowest))


class Worst:
    """The worst error of several comparisons with a reference.

    The error in units in the last place is that of every value, the relative
    error leaves out references that are subnormal in the dtype, where
    neighbours are far apart by nature.
    """

    def __init__(self) -> None:
        self.ulp = self.relative = 0.0
        self.tried = 0

    def add(self,
            result: Tensor,
            reference: np.ndarray,
            scale: np.ndarray | None = None) -> None:
        """Compare; ``scale`` stands in for the size of the reference."""
        info = torch.finfo(result.dtype)
        size = np.abs(reference if scale is None else scale)
        error = np.abs(wide(result) - reference)
        # A result that is not finite is infinitely wrong.
        error[~np.isfinite(error)] = np.inf
        units = error / unit_in_last_place(size, result.dtype)
        normal = size >= info.smallest_normal
        self.tried += error.size
        self.ulp = max(self.ulp, float(units.max(initial=0)))
        self.relative = max(
            self.relative,
            float((error[normal] / size[normal]).max(initial=0)))


def with_gradient(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """The value and its gradient with respect to ``x``."""
    x = x.detach().clone().requires_grad_()
    y = function(x)
    gradient, = torch.autograd.grad(y.sum(), x)
    return y.detach(), gradient


def sigmoid_reference(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``sigmoid(x)`` and ``sigmoid(-x)``, both without cancellation."""
    e = np.exp(-np.abs(x))
    high, low = 1 / (1 + e), e / (1 + e)
    return np.where(x > 0, high, low), np.where(x > 0, low, high)


def focal_reference(
        x: np.ndarray, t: np.ndarray,
        bounds: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """The focal loss and its gradient; mmdet's form if it is clipped."""
    q, not_q = sigmoid_reference(x)
    slope = q * not_q
    if bounds is None:
        softplus = np.log1p(np.exp(-np.abs(x)))
        log_q, log_not_q = np.minimum(x, 0) - softplus, np.minimum(
            -x, 0) - softplus
        # d log(q) / dq = 1 / q, multiplied by q (1 - q).
        pos_slope = not_q**2 * (2 * q * log_q - not_q)
        neg_slope = q**2 * (q - 2 * not_q * log_not_q)
    else:
        low, high = bounds
        slope = slope * ((q >= low) & (q <= high))
        not_q = np.where(q > high, 1 - x.dtype.type(high),
                         np.where(q < low, 1 - x.dtype.type(low), not_q))
        q = q.clip(low, high)
        log_q, log_not_q = log_near_one(q, not_q), log_near_one(not_q, q)
        pos_slope = slope * (2 * not_q * log_q - not_q**2 / (q + 1e-12))
        neg_slope = slope * (q**2 / (not_q + 1e-12) - 2 * q * log_not_q)
    positive, negative = t == 1, (1 - t)**4
    loss = -(positive * not_q**2 * log_q + negative * q**2 * log_not_q)
    return loss, positive * pos_slope + negative * neg_slope


def log_near_one(q: np.ndarray, not_q: np.ndarray) -> np.ndarray:
    """``log(q + 1e-12)``, from the complement of ``q`` where ``q`` is big."""
    return np.where(q > 0.5, np.log1p(1e-12 - not_q), np.log(q + 1e-12))


def mean_reference(
    c: np.ndarray, p: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Power mean over the last dim with its gradients.

    Returns:
        tuple: ``y``, ``dy/dc``, ``dy/dp`` and ``y / p``, the scale of the
        latter.
    """
    top = c.max(-1, keepdims=True)
    if math.isinf(p):
        zeros = np.zeros_like(top)
        return top[..., 0], np.zeros_like(c), zeros[..., 0], zeros[..., 0]
    ratio = c / top
    power = ratio**p
    mean = power.mean(-1, keepdims=True)
    y = top * mean**(1 / c.dtype.type(p))
    dx = (c / y)**(p - 1) / c.shape[-1]
    log_mean = (power * np.log(ratio)).sum(-1) / power.sum(-1)
    dp = y[..., 0] / p * (log_mean - np.log(mean[..., 0]) / p)
    return y[..., 0], dx, dp, y[..., 0] / p


# Text --------------------------------------------------------------------


def number(value: float) -> str:
    """Five digits, enough to tell neighbours of a half type apart."""
    if math.isinf(value) or math.isnan(value):
        return str(value).replace('nan', 'NaN')
    return f'{value:.5g}'


def short(value: float) -> str:
    """Two digits, for an error."""
    if math.isinf(value):
        return 'infinite'
    if value and not 1e-3 <= value < 1e4:
        mantissa, exponent = f'{value:.1e}'.split('e')
        return f'{mantissa}e{int(exponent)}'
    return f'{value:.2f}' if value >= 0.1 else f'{value:.2g}'


def marked(ulp: float, target: float) -> str:
    return short(ulp) + (f' {MARK}' if ulp > target else '')


def scientific(value: float) -> str:
    """Up to six digits, without the zeros that an exponent begins with."""
    mantissa, exponent = f'{value:.5e}'.split('e')
    return f'{float(mantissa):g}e{int(exponent)}'


def below_one(value: float) -> str:
    """A value by its distance from 1."""
    return 'exactly 1' if value == 1 else f'1 - {scientific(1 - value)}'


def power_name(p: float) -> str:
    return f'{p:g}'


def markdown(table: Table) -> str:
    """The first row is the header; columns of numbers are flush right."""
    header, *rows = table
    rule = [
        '---:' if all(re.fullmatch(NUMBER, text) for text in column) else
        '---' for column in zip(*rows)
    ]
    return '\n'.join('| ' + ' | '.join(row) + ' |'
                     for row in [header, rule, *rows])


# Sigmoid -----------------------------------------------------------------


def bounds_of(function: Function, dtype: torch.dtype) -> tuple[float, float]:
    """The smallest and the largest output."""
    ends = torch.tensor([-largest(dtype), largest(dtype)], dtype=dtype)
    low, high = function(ends).double().tolist()
    return low, high


def safe_range(test: Callable[[Tensor], Tensor], dtype: torch.dtype) -> str:
    """The largest magnitude below which ``test`` holds for no sign."""
    found = [edge(test, dtype, sign=sign) for sign in (1, -1)]
    safe = [abs(pair[0]) for pair in found if pair]
    return number(min(safe)) if safe else f'{number(largest(dtype))} (all)'


def outside(function: Function) -> Callable[[Tensor], Tensor]:
    """Tells where the output is not strictly between 0 and 1."""

    def test(x: Tensor) -> Tensor:
        y = function(x)
        return ~((y > 0) & (y < 1))

    return test


def report_bounds() -> Table:
    """What 1 - 1e-4 becomes and which bounds hold instead."""
    table = [('dtype', 'significant bits', '`1 - 1e-4` becomes',
              'largest value below 1', 'bounds of mmdet3d', 'bounds of ours',
              'largest safe logit, mmdet3d', 'largest safe logit, ours')]
    for name, dtype in DTYPES.items():
        gap = torch.finfo(dtype).eps / 2
        rounded = torch.tensor(1 - EPS, dtype=dtype).double().item()
        row = [name, f'{1 - round(math.log2(2 * gap))}']
        row += [below_one(rounded), below_one(1 - gap)]
        functions = stock_forms.clip_sigmoid, clip_sigmoid
        for function in functions:
            low, high = bounds_of(function, dtype)
            row.append(f'{scientific(low)}, {below_one(high)}')
        row += [safe_range(outside(f), dtype) for f in functions]
        table.append(row)
    return table


def no_gradient(function: Function) -> Callable[[Tensor], Tensor]:
    """Tells where the gradient is 0 or not finite."""

    def test(x: Tensor) -> Tensor:
        gradient = with_gradient(function, x)[1]
        return (gradient == 0) | ~gradient.isfinite()

    return test


def report_dead_zone() -> Table:
    """From which logits on the gradient of the sigmoid is exactly 0."""
    table = [('dtype', 'mmdet3d', "ours, `grad='zero'`",
              "ours, `grad='straight_through'`")]
    for name, dtype in DTYPES.items():
        row = [name]
        for function in (stock_forms.clip_sigmoid, clip_sigmoid,
                         partial(clip_sigmoid, grad='straight_through')):
            below, above = (
                edge(no_gradient(function), dtype, sign=sign)
                for sign in (-1, 1))
            row.append(f'{number(below[1])}, {number(above[1])}')
        table.append(row)
    return table


def report_sigmoid_errors(values: int) -> Table:
    """The error of value and gradient against a wider type."""
    table = [('dtype', 'logits tried', 'error of the value, ulp',
              'relative error of the value',
              "relative error of the gradient, `'zero'`",
              "relative error of the gradient, `'straight_through'`",
              'error of mmdet3d in the same bounds, ulp')]
    for name, dtype in DTYPES.items():
        low, high = bounds_of(clip_sigmoid, dtype)
        value, stock, zero, through = Worst(), Worst(), Worst(), Worst()
        count = values if dtype != torch.float64 else values // 8
        for x in sweep(dtype, count):
            y, gradient = with_gradient(clip_sigmoid, x)
            q, not_q = sigmoid_reference(wide(x))
            inner = (q > low) & (q < high)
            value.add(y, q.clip(low, high))
            stock.add(
                stock_forms.clip_sigmoid(x).clamp(low, high),
                q.clip(low, high))
            # On the kink, either side is right.
            clear = away_from_kink(x, q, not_q, (low, high))
            zero.add(gradient[clear], (q * not_q * inner)[clear])
            through.add(
                with_gradient(
                    partial(clip_sigmoid, grad='straight_through'), x)[1],
                q * not_q)
        table.append((name, f'{value.tried:,}',
                      marked(value.ulp, SIGMOID_TARGET),
                      short(value.relative), short(zero.relative),
                      short(through.relative), short(stock.ulp)))
    return table


def away_from_kink(x: Tensor, q: np.ndarray, not_q: np.ndarray,
                   bounds: tuple[float, float]) -> np.ndarray:
    """Where the clip does not depend on the last two bits of the sigmoid."""
    low, high = bounds
    margin = 2 * torch.finfo(compute_dtype(x.dtype)).eps
    return ((np.abs(q - low) > margin * low)
            & (np.abs(not_q - (1 - q.dtype.type(high))) > margin))


# Focal loss --------------------------------------------------------------

FORMS = {
    'mmdet3d, mmdet':
    lambda x, t: stock_forms.gaussian_focal_loss(
        stock_forms.clip_sigmoid(x), t),
    '`clip_sigmoid`, mmdet':
    lambda x, t: stock_forms.gaussian_focal_loss(clip_sigmoid(x), t),
    'ours, `clip=1e-4`':
    partial(gaussian_focal_loss_with_logits, clip=EPS, reduction='none'),
    'ours, `clip=None`':
    partial(gaussian_focal_loss_with_logits, reduction='none'),
}
STOCK, COMPOSED, CLIPPED, EXACT = FORMS


def cell(form: str, target: float) -> Function:
    """The loss of cells with one target, as a function of the logits.

    The target is float32 (float64 for float64), as heads draw it also where
    the logits are of a half type.
    """

    def function(x: Tensor) -> Tensor:
        t = torch.full_like(x, target, dtype=compute_dtype(x.dtype))
        return FORMS[form](x, t)

    return function


def report_examples() -> Table:
    """A few cells that a training meets."""
    table = [('dtype', 'cell', 'logit', STOCK, CLIPPED, EXACT)]
    for name, target, logit in (('fp16', 0.0, 8.5), ('fp16', 1.0, 8.5),
                                ('bf16', 0.0, 6.5), ('fp32', 0.0, 9.25),
                                ('fp32', 1.0, -9.25)):
        x = torch.tensor([logit], dtype=DTYPES[name])
        row = [name, 'peak' if target else 'background', f'{logit:g}']
        for form in (STOCK, CLIPPED, EXACT):
            loss, gradient = with_gradient(cell(form, target), x)
            row.append(f'loss {sig4(loss.item())}, '
                       f'gradient {sig4(gradient.item())}')
        table.append(row)
    return table


def sig4(value: float) -> str:
    """Four digits; a zero without sign."""
    return f'{value or 0.0:.4g}'.replace('nan', 'NaN')


def report_focal_limits() -> Table:
    """Where a loss breaks, and where a wrong cell stops learning."""
    table = [('dtype', 'form', 'largest safe logit',
              'a wrong background cell learns until',
              'a missed peak learns until')]
    for name, dtype in DTYPES.items():
        for form in FORMS:
            safe = []
            for target in TARGETS:
                for sign in (1, -1):
                    pair = edge(
                        not_finite(cell(form, target)), dtype, sign=sign)
                    safe += [abs(pair[0])] if pair else []
            row = [name, form]
            row.append(
                number(min(safe)) if safe else
                f'{number(largest(dtype))} (all)')
            for target, sign in ((0.0, 1), (1.0, -1)):
                function = cell(form, target)
                pair = edge(no_gradient(function), dtype, sign=sign)
                if pair is None:
                    row.append('always')
                    continue
                last, lost = pair
                gradient = with_gradient(
                    function, torch.tensor([lost], dtype=dtype))[1].item()
                row.append(f'{number(last)}, then {sig4(gradient)}')
            table.append(row)
    return table


def not_finite(function: Function) -> Callable[[Tensor], Tensor]:
    """Tells where the value or its gradient is not finite."""

    def test(x: Tensor) -> Tensor:
        value, gradient = with_gradient(function, x)
        return ~(value.isfinite() & gradient.isfinite())

    return test


def report_focal_errors(values: int) -> Table:
    """The error of loss and gradient against a wider type."""
    moderate = f'{MODERATE:g}'
    table = [('dtype', 'form', 'logits tried',
              f'relative error, loss, up to ±{moderate}',
              f'relative error, gradient, up to ±{moderate}',
              'relative error, loss, all', 'relative error, gradient, all')]
    for name, dtype in DTYPES.items():
        count = values // (8 if dtype != torch.float64 else 32)
        errors = {(form, what): Worst()
                  for form in FORMS for what in ('loss', 'gradient',
                                                 'all loss', 'all gradient')}
        clip = bounds_of(clip_sigmoid, compute_dtype(dtype))
        for x in sweep(dtype, count):
            small = x.abs() <= MODERATE
            q, not_q = sigmoid_reference(wide(x))
            clear = away_from_kink(x, q, not_q, clip)
            for target in TARGETS:
                t = torch.tensor(target, dtype=compute_dtype(dtype)).double()
                for form in FORMS:
                    bounds = None if form == EXACT else clip
                    loss, gradient = focal_reference(
                        wide(x), wide(x).dtype.type(t.item()), bounds)
                    ours = with_gradient(cell(form, target), x)
                    for what, result, reference in (
                        ('loss', ours[0], loss),
                        ('gradient', ours[1], gradient)):
                        keep = clear & small.numpy()
                        errors[form, what].add(result[keep], reference[keep])
                        errors[form, f'all {what}'].add(
                            result[clear], reference[clear])
        for form in FORMS:
            tried = errors[form, 'all loss'].tried // len(TARGETS)
            table.append((name, form, f'{tried:,}',
                          *(short(errors[form, what].relative)
                            for what in ('loss', 'gradient', 'all loss',
                                         'all gradient'))))
    return table


# Power mean --------------------------------------------------------------


def constant_maps(x: Tensor) -> Tensor:
    """One constant map, shape ``(M, 1, H, W)``, for each value."""
    return x[:, None, None, None].expand(-1, 1, *MAP)


def off(pool: Callable[..., Tensor], p: float) -> Callable[[Tensor], Tensor]:
    """Tells which constant maps give neither 1% nor 1 ulp of the truth."""

    def test(x: Tensor) -> Tensor:
        truth = wide(x).clip(min=GEM_EPS)
        y = wide(pool(constant_maps(x), p).flatten())
        allowed = np.maximum(0.01 * truth, unit_in_last_place(truth, x.dtype))
        return torch.from_numpy(~(np.abs(y - truth) <= allowed))

    return test


def report_pool_examples() -> Table:
    """A few maps that a network meets."""
    table = [('dtype', f'constant {MAP[0]} x {MAP[1]} map of', '`p`',
              'textbook', 'ours')]
    for name, value, p in (('fp16', 41.0, 3.0), ('fp16', 0.001, 3.0),
                           ('fp16', 6.0, 6.5), ('fp32', 100.0, 20.0),
                           ('fp32', 5.0, math.inf)):
        x = torch.tensor([value], dtype=DTYPES[name])
        row = [name, f'{value:g}', power_name(p)]
        for pool in (stock_forms.gem, gem_pool):
            y, gradient = with_gradient(partial(pool, p=p), constant_maps(x))
            row.append(f'{sig4(y.item())}, gradient '
                       f'{sig4(gradient.flatten()[0].item())}')
        table.append(row)
    return table


def report_pool_limits() -> Table:
    """Between which values of a constant map the forms are right."""
    table = [('dtype', '`p`', 'textbook is right', 'ours is right')]
    for name, dtype in DTYPES.items():
        for p in POWERS:
            row = [name, power_name(p)]
            for pool in (stock_forms.gem, gem_pool):
                low = edge(off(pool, p), dtype, start=1.0, stop=0.0)
                high = edge(off(pool, p), dtype, start=1.0)
                row.append(f'{number(low[0] if low else 0)} to ' + (
                    number(high[0]) if high else
                    f'{number(largest(dtype))}') +
                    ('' if low or high else ' (all)'))
            table.append(row)
    return table


def random_sets(dtype: torch.dtype, values: int) -> Iterator[Tensor]:
    """Sets of 1 to 1024 values, shape ``(M, size)``: ordinary and nasty."""
    generator = torch.Generator().manual_seed(0)
    info = torch.finfo(dtype)
    for size in (1, 2, 7, 64, 1024):
        shape = (max(1, values // (8 * 5 * max(size, 16))), size)
        u = torch.rand(shape, generator=generator, dtype=torch.float64)
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        low, high = math.log2(info.smallest_normal), math.log2(info.max)
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


def clamped(x: Tensor) -> np.ndarray:
    """The input of the power mean; eps has the type of the computation."""
    eps = torch.tensor(GEM_EPS, dtype=compute_dtype(x.dtype)).double().item()
    return wide(x).clip(min=eps)


def report_pool_errors(values: int) -> Table:
    """The error of the value and of both gradients."""
    table = [('dtype', '`p`', 'sets tried', 'error of `y`, ulp',
              'relative error of `y`', 'relative error of `dy/dx`',
              'error of `dy/dp`, in `y/p`')]
    for name, dtype in DTYPES.items():
        for p in POWERS:
            value, dx, dp = Worst(), Worst(), Worst()
            for x in random_sets(dtype, values // 4):
                y, gradient_x, gradient_p, scale = mean_reference(
                    clamped(x), p)
                result = generalized_mean(x, p, dim=1)
                value.add(result, y)
                if math.isinf(p):
                    continue
                # One p for each set, to see the gradient of each.
                power = torch.full((len(x), 1), p, dtype=compute_dtype(dtype))
                gradient = with_gradient(
                    partial(generalized_mean, p=p, dim=1), x)[1]
                dx.add(gradient, gradient_x * (wide(x) >= clamped(x)))
                gradient = with_gradient(
                    partial(generalized_mean, x, dim=1), power)[1]
                dp.add(gradient[:, 0], gradient_p, scale)
            gradients = (short(dx.relative), short(dp.relative))
            table.append((name, power_name(p), f'{value.tried:,}',
                          marked(value.ulp, MEAN_TARGET),
                          short(value.relative),
                          *(('-', '-') if math.isinf(p) else gradients)))
    return table


def report_dead_channels() -> Table:
    """From which trained p on the gradient of p breaks on a dead channel."""
    table = [('dtype', 'textbook: `dy/dp` at `p` = 3',
              'breaks from `p`', 'is then', 'ours: `dy/dp` at `p` = 3',
              'breaks from `p`')]
    for name, dtype in DTYPES.items():
        row = [name]
        for pool in (stock_forms.gem, gem_pool):
            slope = partial(dead_slope, pool, dtype)
            row.append(sig4(slope(3.0)))
            powers = np.arange(1.0, 100.25, 0.25)
            broken = [p for p in powers if not math.isfinite(slope(p))]
            row.append(f'{broken[0]:g}' if broken else 'none up to 100')
            if pool is stock_forms.gem:
                row.append(sig4(slope(broken[0])) if broken else '-')
        table.append(row)
    return table


def dead_slope(pool: Callable[..., Tensor], dtype: torch.dtype,
               p: float) -> float:
    """``dy/dp`` of an all-zero map."""
    x = torch.zeros(1, 1, *MAP, dtype=dtype)
    power = torch.tensor([p], dtype=dtype)
    return with_gradient(partial(pool, x), power)[1].item()


def fill_page(values: int) -> str:
    """The page, measured anew."""
    if np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps / 100:
        raise SystemExit('error: the errors of float64 need a long double of '
                         'more bits, which this platform does not have')
    with np.errstate(all='ignore'):
        return Template(TEMPLATE.read_text(encoding='utf-8')).substitute(
            torch=torch.__version__.split('+')[0],
            moderate=f'{MODERATE:g}',
            mark=MARK,
            examples=markdown(report_examples()),
            pool_examples=markdown(report_pool_examples()),
            bounds=markdown(report_bounds()),
            dead_zone=markdown(report_dead_zone()),
            sigmoid_errors=markdown(report_sigmoid_errors(values)),
            focal_limits=markdown(report_focal_limits()),
            focal_errors=markdown(report_focal_errors(values)),
            pool_limits=markdown(report_pool_limits()),
            pool_errors=markdown(report_pool_errors(values)),
            dead_channels=markdown(report_dead_channels()))


def main() -> None:
    """Measure and write."""
    args = parse_args()
    page = fill_page(args.values)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page, encoding='utf-8')
    print(args.out)


if __name__ == '__main__':
    main()
