"""docs/numerics.md: the operations in every dtype, measured on the CPU."""
import math
from collections.abc import Callable, Iterator
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

from . import markdown
from .references import (
    Worst,
    focal_reference,
    mean_reference,
    sigmoid_reference,
    unit_in_last_place,
)
from .values import (
    Function,
    below_one,
    edge,
    largest,
    safe_range,
    scientific,
    sig,
    sweep,
    with_gradient,
)

TEMPLATE = Path(__file__).with_suffix('.md')
PAGE = Path(__file__).resolve().parents[3] / 'docs/numerics.md'
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

straight_through = partial(clip_sigmoid, grad='straight_through')


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that the operations compute in."""
    return torch.promote_types(dtype, torch.float32)


# Sigmoid -----------------------------------------------------------------


def bounds_of(function: Function, dtype: torch.dtype) -> tuple[float, float]:
    """Return the smallest and the largest output."""
    ends = torch.tensor([-largest(dtype), largest(dtype)], dtype=dtype)
    low, high = function(ends).double().tolist()
    return low, high


def outside(function: Function, x: Tensor) -> Tensor:
    """Tell where the output is not strictly between 0 and 1."""
    y = function(x)
    return ~((y > 0) & (y < 1))


def no_gradient(function: Function, x: Tensor) -> Tensor:
    """Tell where the gradient is 0 or not finite."""
    gradient = with_gradient(function, x)[1]
    return (gradient == 0) | ~gradient.isfinite()


def not_finite(function: Function, x: Tensor) -> Tensor:
    """Tell where the value or its gradient is not finite."""
    value, gradient = with_gradient(function, x)
    return ~(value.isfinite() & gradient.isfinite())


def report_bounds() -> str:
    """Show what 1 - 1e-4 becomes, and which bounds hold instead."""
    rows = []
    functions = stock_forms.clip_sigmoid, clip_sigmoid
    for name, dtype in DTYPES.items():
        gap = torch.finfo(dtype).eps / 2
        rounded = torch.tensor(1 - EPS, dtype=dtype).double().item()
        bounds = [bounds_of(function, dtype) for function in functions]
        rows.append([
            name, below_one(rounded), below_one(1 - gap),
            *(f'{scientific(low)}, {below_one(high)}' for low, high in bounds),
            *(safe_range([partial(outside, function)], dtype)
              for function in functions)])
    return markdown(
        ('dtype', '`1 - 1e-4` becomes', 'largest value below 1',
         'bounds, mmdet3d', 'bounds, ours', 'largest safe logit, mmdet3d',
         'largest safe logit, ours'), rows)


def report_dead_zone() -> str:
    """Show from which logits on the gradient is exactly 0."""
    rows = []
    for name, dtype in DTYPES.items():
        row = [name]
        for function in (stock_forms.clip_sigmoid, clip_sigmoid,
                         straight_through):
            below, above = (
                edge(partial(no_gradient, function), dtype, sign=sign)
                for sign in (-1, 1))
            row.append(f'{sig(below[1], 5)}, {sig(above[1], 5)}')
        rows.append(row)
    return markdown(('dtype', 'mmdet3d', "ours, `grad='zero'`",
                     "ours, `grad='straight_through'`"), rows)


def away_from_kink(x: Tensor, bounds: tuple[float, float]) -> np.ndarray:
    """Tell where the last two bits of the sigmoid do not decide a clip."""
    q, not_q = sigmoid_reference(x.double().numpy())
    low, high = bounds
    margin = 2 * torch.finfo(compute_dtype(x.dtype)).eps
    return ((np.abs(q - low) > margin * low)
            & (np.abs(not_q - (1 - high)) > margin))


def report_sigmoid_errors(values: int) -> str:
    """Show the errors of value and gradient."""
    rows = []
    for name, dtype in NARROW.items():
        low, high = bounds_of(clip_sigmoid, dtype)
        value, stock, zero, through = (Worst() for _ in range(4))
        for x in sweep(dtype, values):
            y, gradient = with_gradient(clip_sigmoid, x)
            q, not_q = sigmoid_reference(x.double().numpy())
            value.add(y, q.clip(low, high))
            stock.add(stock_forms.clip_sigmoid(x).clamp(low, high),
                      q.clip(low, high))
            # On the kink, either side is right.
            clear = away_from_kink(x, (low, high))
            slope = q * not_q
            zero.add(gradient[clear],
                     (slope * (q > low) * (q < high))[clear])
            through.add(with_gradient(straight_through, x)[1], slope)
        rows.append([name, sig(value.ulp, 2), sig(stock.ulp, 2),
                     sig(zero.relative, 2), sig(through.relative, 2)])
    return markdown(
        ('dtype', 'error of the value, ulp',
         'error of mmdet3d in the same bounds, ulp',
         "relative error of the gradient, `'zero'`",
         "relative error of the gradient, `'straight_through'`"), rows)


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


def report_examples() -> str:
    """Show a few cells of a training."""
    rows = []
    for name, target, logit in (('fp16', 0.0, 8.5), ('fp16', 1.0, 8.5),
                                ('bf16', 0.0, 6.5), ('fp32', 0.0, 9.25),
                                ('fp32', 1.0, -9.25)):
        row = [name, 'peak' if target else 'background', f'{logit:g}']
        for form in (STOCK, CLIPPED, EXACT):
            loss, gradient = with_gradient(
                cell(form, target), torch.tensor([logit], dtype=DTYPES[name]))
            row.append(f'loss {sig(loss.item(), 4)}, '
                       f'gradient {sig(gradient.item(), 4)}')
        rows.append(row)
    return markdown(('dtype', 'cell', 'logit', STOCK, CLIPPED, EXACT), rows)


def report_focal_limits() -> str:
    """Show where a loss breaks, and where a wrong cell stops learning."""
    rows = []
    for name, dtype in DTYPES.items():
        for form in FORMS:
            row = [name, form, safe_range(
                [partial(not_finite, cell(form, target))
                 for target in TARGETS], dtype)]
            for target, sign in ((0.0, 1), (1.0, -1)):
                function = cell(form, target)
                pair = edge(partial(no_gradient, function), dtype, sign=sign)
                if pair is None:
                    row.append('always')
                    continue
                gradient = with_gradient(
                    function, torch.tensor([pair[1]], dtype=dtype))[1]
                row.append(f'{sig(pair[0], 5)}, then '
                           f'{sig(gradient.item(), 4)}')
            rows.append(row)
    return markdown(('dtype', 'form', 'largest safe logit',
                     'a wrong background cell learns until',
                     'a missed peak learns until'), rows)


def report_focal_errors(values: int) -> str:
    """Show the errors of loss and gradient."""
    rows = []
    for name, dtype in NARROW.items():
        clip = bounds_of(clip_sigmoid, compute_dtype(dtype))
        errors = {form: [Worst() for _ in range(4)] for form in FORMS}
        for x in sweep(dtype, values // 8):
            clear = away_from_kink(x, clip)
            x = x[torch.from_numpy(clear)]
            small = (x.abs() <= MODERATE).numpy()
            for target in TARGETS:
                t = torch.tensor(target, dtype=compute_dtype(dtype)).item()
                for form, worst in errors.items():
                    expected = focal_reference(
                        x.double().numpy(), t,
                        None if form == EXACT else clip)
                    found = with_gradient(cell(form, target), x)
                    for i in (0, 1):
                        worst[i].add(found[i][small], expected[i][small])
                        worst[2 + i].add(found[i], expected[i])
        rows += [[name, form, *(sig(w.relative, 2) for w in worst)]
                 for form, worst in errors.items()]
    error, near = 'relative error', f'up to ±{MODERATE:g}'
    return markdown(('dtype', 'form', f'{error}, loss, {near}',
                     f'{error}, gradient, {near}', f'{error}, loss, all',
                     f'{error}, gradient, all'), rows)


# Power mean --------------------------------------------------------------


def constant_maps(x: Tensor) -> Tensor:
    """Return one constant map, shape ``(M, 1, H, W)``, for each value."""
    return x[:, None, None, None].expand(-1, 1, *MAP)


def off(pool: Callable[..., Tensor], p: float, x: Tensor) -> Tensor:
    """Tell which constant maps give neither 1% nor 1 ulp of the truth."""
    truth = x.double().numpy().clip(min=GEM_EPS)
    y = pool(constant_maps(x), p).flatten().double().numpy()
    allowed = np.maximum(0.01 * truth, unit_in_last_place(truth, x.dtype))
    return torch.from_numpy(~(np.abs(y - truth) <= allowed))


def report_pool_examples() -> str:
    """Show a few maps of a network."""
    rows = []
    for name, value, p in (('fp16', 41.0, 3.0), ('fp16', 0.001, 3.0),
                           ('fp16', 6.0, 6.5), ('fp32', 100.0, 20.0),
                           ('fp32', 5.0, math.inf)):
        x = torch.tensor([value], dtype=DTYPES[name])
        row = [name, f'{value:g}', f'{p:g}']
        for pool in (stock_forms.gem, gem_pool):
            y, gradient = with_gradient(partial(pool, p=p), constant_maps(x))
            row.append(f'{sig(y.item(), 4)}, gradient '
                       f'{sig(gradient.flatten()[0].item(), 4)}')
        rows.append(row)
    return markdown(('dtype', f'constant {MAP[0]} x {MAP[1]} map of', '`p`',
                     'textbook', 'ours'), rows)


def report_pool_limits() -> str:
    """Show between which values of a constant map the forms are right."""
    rows = []
    for name, dtype in DTYPES.items():
        for p in POWERS:
            row = [name, f'{p:g}']
            for pool in (stock_forms.gem, gem_pool):
                test = partial(off, pool, p)
                low = edge(test, dtype, start=1.0, stop=0.0)
                high = edge(test, dtype, start=1.0)
                row.append(
                    f'{sig(low[0] if low else 0, 5)} to '
                    f'{sig(high[0] if high else largest(dtype), 5)}'
                    f'{"" if low or high else " (all)"}')
            rows.append(row)
    return markdown(('dtype', '`p`', 'textbook is right', 'ours is right'),
                    rows)


def random_sets(dtype: torch.dtype, values: int) -> Iterator[Tensor]:
    """Return sets of 1 to 1024 values, shape ``(M, size)``."""
    generator = torch.Generator().manual_seed(0)
    options = dict(generator=generator, dtype=torch.float64)
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


def report_pool_errors(values: int) -> str:
    """Show the errors of the value and of both gradients."""
    rows = []
    for name, dtype in NARROW.items():
        # eps has the type of the computation.
        eps = torch.tensor(GEM_EPS).item()
        for p in POWERS[:-1]:
            value, dx, dp = Worst(), Worst(), Worst()
            for x in random_sets(dtype, values):
                wide = x.double().numpy()
                y, slope, slope_p, scale = mean_reference(
                    wide.clip(min=eps), p)
                # One p for each set, to see the gradient of each.
                power = torch.full((len(x), 1), p)
                found, found_p = with_gradient(
                    partial(generalized_mean, x, dim=1), power)
                value.add(found, y)
                dx.add(with_gradient(
                    partial(generalized_mean, p=p, dim=1), x)[1],
                    slope * (wide >= eps))
                dp.add(found_p[:, 0], slope_p, scale)
            rows.append([name, f'{p:g}', sig(value.ulp, 2),
                         sig(dx.relative, 2), sig(dp.relative, 2)])
    return markdown(('dtype', '`p`', 'error of `y`, ulp',
                     'relative error of `dy/dx`',
                     'error of `dy/dp`, in `y/p`'), rows)


def report_dead_channels() -> str:
    """Show from which trained p on an all-zero map gives a bad gradient."""
    rows = []
    powers = np.arange(1.0, 100.25, 0.25)
    for name, dtype in DTYPES.items():
        row = [name]
        x = torch.zeros(1, 1, *MAP, dtype=dtype)
        for pool in (stock_forms.gem, gem_pool):
            slopes = [with_gradient(partial(pool, x), torch.tensor(
                [p], dtype=dtype))[1].item() for p in powers]
            broken = [f'{p:g}, then {sig(slope, 4)}' for p, slope in zip(
                powers, slopes) if not np.isfinite(slope)]
            row += [sig(slopes[powers.tolist().index(3.0)], 4),
                    broken[0] if broken else 'none up to 100']
        rows.append(row)
    return markdown(('dtype', 'textbook: `dy/dp` at `p` = 3',
                     'breaks from `p`', 'ours: `dy/dp` at `p` = 3',
                     'breaks from `p`'), rows)


def write_page(values: int, page: Path = PAGE) -> Path:
    """Measure and write the page.

    Args:
        values (int): The number of float32 logits to try.
        page (Path): The file.
    """
    with np.errstate(all='ignore'):
        tables = {
            name.removeprefix('report_'):
            function(values) if name.endswith('errors') else function()
            for name, function in globals().items()
            if name.startswith('report_')
        }
    text = Template(TEMPLATE.read_text()).substitute(
        tables, torch=torch.__version__.split('+')[0])
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)
    return page
