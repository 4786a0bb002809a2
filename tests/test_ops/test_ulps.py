"""Errors in units of the last place (ulp) of the output."""
import numpy as np
import pytest
import torch

from sigplug.ops import (
    clip_sigmoid,
    gem_pool,
    generalized_mean,
    segment_generalized_mean,
)

from .references import LD, bounds, exact, sigmoid, steps

pytestmark = pytest.mark.usefixtures('backend')


# --- clip_sigmoid ---------------------------------------------------------


@pytest.mark.parametrize('low, high', [
    (1e-4, 1 - 1e-4), (0.011, 0.7), (1e-37, 1 - 2**-53)])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_clip_sigmoid_on_every_half(dtype, low, high):
    """One ulp: computed in float32 and rounded once."""
    x = torch.arange(-2**15, 2**15).to(torch.int16).view(dtype)
    x = x[~x.isnan()]
    expected = np.clip(sigmoid(exact(x)), *bounds(low, high, dtype))
    assert steps(clip_sigmoid(x, low, high), expected).max() <= 1


# --- the generalised mean -------------------------------------------------


def first_huge(x):
    x[0] = 1e3
    return x


# Sets for a dtype, from uniform numbers in float64.
KINDS = {
    'uniform': lambda u, info: u * 10,
    # A mean far below the maximum: the root has most to undo.
    'many orders': lambda u, info: torch.exp(8 * (u - 1)) * 100,
    'one huge, many tiny': lambda u, info: first_huge(1e-3 + 0 * u),
    'one huge, many zeros': lambda u, info: first_huge(0 * u),
    'all equal': lambda u, info: 1.1 + 0 * u,
    'two values': lambda u, info: 0.7 + 0.6 * u.round(),
    'near overflow': lambda u, info: info.max * (1 - 0.4 * u),
    'all the largest': lambda u, info: info.max + 0 * u,
    'subnormals': lambda u, info: info.smallest_normal * u,
    'the smallest': lambda u, info: info.smallest_normal * info.eps * (
        1 + u.round()),
}
every_kind = pytest.mark.parametrize('kind', KINDS)
every_power = pytest.mark.parametrize('p', [
    1.0, 1.0001, 1.5, 2.0, 3.0, 6.5, 20.0, 50.0, 100.0])
# float64 has no wider type to sum in: torch's sum alone is off by 8 ulp where
# one huge element meets many tiny ones. Halves are computed in float32 and
# rounded once.
LIMITS = {torch.float32: 4, torch.float64: 16, torch.float16: 1,
          torch.bfloat16: 1}


def draw(kind, n, dtype):
    info = torch.finfo(dtype)
    u = torch.rand(n, dtype=torch.float64)
    return KINDS[kind](u, info).clamp(max=info.max).to(dtype)


def pooled_ulps(y, x, p):
    c, p = exact(x), LD(float(p))
    mean = c.max() * np.mean((c / c.max())**p)**(1 / p)
    return steps(y, np.asarray(mean)).max()


@every_power
@every_kind
def test_generalized_mean(kind, p):
    """By a number as well as by a tensor."""
    for dtype, limit in LIMITS.items():
        for n in (1, 2, 7, 64, 1000, *[30000] * (p in (1.0, 3.0, 50.0))):
            x = draw(kind, n, dtype)
            for power in (p, torch.tensor(p)):
                y = generalized_mean(x, power, 0, eps=None)
                assert y.dtype == dtype
                assert pooled_ulps(y, x, power) <= limit, (dtype, n, power)


@every_power
@every_kind
def test_other_forms(kind, p):
    """The same sets as windows, and as segments in mixed order."""
    n = 1024
    x = torch.stack([draw(kind, n, torch.float32) for _ in range(2)])
    pooled = gem_pool(x.view(1, 2, n), p, eps=None).view(2)
    windows = gem_pool(x.view(1, 1, 2 * n), p, (n, ), eps=None).view(2)
    ragged = segment_generalized_mean(
        x.t().reshape(-1), torch.arange(2 * n) % 2, 2, p, eps=None)
    for row in range(2):
        for y in (pooled, windows, ragged):
            assert pooled_ulps(y[row], x[row], p) <= 4
