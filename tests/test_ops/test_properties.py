"""Random arguments against the formulas: finite, inside, and exact.

``make fuzz`` runs these tests with many more examples than ``make test``.
"""
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sigplug.ops import (
    clip_sigmoid,
    gaussian_focal_loss_with_logits,
    gaussian_heatmap,
    generalized_mean,
    segment_generalized_mean,
)

from . import references, strategies
from .references import LD, assert_within, exact

pytestmark = pytest.mark.usefixtures('backend')


def run(function, x, p=None, upstream=None):
    """Output, and the gradients with respect to ``x`` and a tensor ``p``."""
    inputs = [v.detach().requires_grad_() for v in (x, p)
              if isinstance(v, torch.Tensor)]
    y = function(*inputs)
    grads = torch.autograd.grad(
        y, inputs, torch.ones_like(y) if upstream is None else upstream.to(y))
    for value, grad in zip(inputs, grads):
        assert grad.shape == value.shape and grad.dtype == value.dtype
    return (y.detach(), *grads)


def assert_slope(dx, slope, upstream):
    """What is subnormal has a fixed step."""
    value, allowed = slope
    g = exact(upstream)
    assert_within(dx, value * g, allowed * np.abs(g) + references.ulp(
        LD(0), dx.dtype) * (allowed > 0))


# --- clip_sigmoid ---------------------------------------------------------


@given(st.data())
def test_clip_sigmoid(data):
    dtype = data.draw(strategies.DTYPES)
    low, high = data.draw(strategies.clip_bounds())
    grad = data.draw(st.sampled_from(('zero', 'straight_through')))
    x = data.draw(strategies.tensors(
        data.draw(strategies.shapes()), dtype,
        strategies.logits(dtype, (low, high), infinite=True)))
    upstream = data.draw(strategies.upstreams(x.shape, x.dtype))
    y, dx = run(lambda x: clip_sigmoid(x, low, high, grad=grad), x,
                upstream=upstream)
    assert y.shape == x.shape and y.dtype == x.dtype
    # Strictly inside, and so is what the loss takes the logarithm of.
    assert (y > 0).all() and (y < 1).all() and (1 - y > 0).all()
    lo, hi = references.bounds(low, high, x.dtype)
    assert ((exact(y) >= lo) & (exact(y) <= hi)).all()
    assert dx.isfinite().all()
    value, slope = references.clip_sigmoid(x, low, high, grad)
    assert_within(y, *value)
    assert_slope(dx, slope, upstream)


# --- gaussian_focal_loss_with_logits --------------------------------------


@pytest.mark.parametrize('clipped', [False, True])
@given(data=st.data())
def test_focal_loss(clipped, data):
    clip = data.draw(st.sampled_from((1e-4, 1e-2, 0.3)) | st.floats(
        1e-9, 0.49)) if clipped else None
    dtype = data.draw(strategies.DTYPES)
    shape = data.draw(strategies.shapes())
    bounds = () if clip is None else (clip, 1 - clip)
    x = data.draw(strategies.tensors(
        shape, dtype, strategies.logits(dtype, bounds)))
    t = data.draw(strategies.tensors(
        shape, data.draw(st.sampled_from((dtype, torch.float32))),
        strategies.targets(torch.float32)))
    weights = st.sampled_from((1.0, 0.0, 0.25, 3.0))
    settings = dict(
        alpha=data.draw(strategies.exponents()),
        gamma=data.draw(strategies.exponents()),
        pos_weight=data.draw(weights), neg_weight=data.draw(weights),
        clip=clip)
    upstream = data.draw(strategies.upstreams(
        x.shape, references.wide(x.dtype)))
    loss, dx = run(
        lambda x: gaussian_focal_loss_with_logits(
            x, t, reduction='none', **settings), x, upstream=upstream)
    assert loss.shape == x.shape and loss.dtype == references.wide(x.dtype)
    assert dx.isfinite().all() and (loss >= 0).all()
    value, slope = references.focal_loss(x, t, **settings)
    assert_within(loss, *value)
    # In half precision the factor comes before the rounding.
    assert_slope(dx, slope, upstream)


# --- targets --------------------------------------------------------------


@given(st.data())
def test_gaussian_heatmap(data):
    """By a loop over objects and cells, in float64."""
    height, width = (data.draw(st.integers(0, 9)) for _ in range(2))
    classes = data.draw(st.integers(1, 3))
    count = data.draw(st.integers(0, 6))

    def integers(least, most):
        values = data.draw(st.lists(
            st.integers(least, most), min_size=count, max_size=count))
        kind = data.draw(st.sampled_from((torch.int64, torch.int32)))
        # Views with gaps, as columns of a table are.
        table = torch.zeros(count, 3, dtype=kind)
        table[:, 1] = torch.tensor(values, dtype=kind)
        return table[:, 1]

    x, y = integers(-4, 12), integers(-4, 12)
    radii = integers(-1, 5)
    if count and data.draw(st.booleans()):
        radii[0] = 2**24
    labels = integers(0, classes - 1)
    got = gaussian_heatmap(
        torch.stack((x.long(), y.long()), 1), radii, labels, classes,
        (height, width))
    expected = np.zeros((classes, height, width))
    for cx, cy, r, c in zip(*(v.tolist() for v in (x, y, radii, labels))):
        for i in range(height):
            for j in range(width):
                if max(abs(i - cy), abs(j - cx)) <= r:
                    expected[c, i, j] = max(expected[c, i, j], math.exp(
                        -((i - cy)**2 + (j - cx)**2) /
                        (2 * ((2 * r + 1) / 6)**2)))
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got.double(), torch.from_numpy(expected), rtol=2e-7, atol=1e-45)
    assert got.eq(1).numpy().tolist() == (
        np.float32(expected) == 1).tolist()


# --- the generalised mean -------------------------------------------------


def check_pooled(function, x, p, sets, eps, data):
    upstream = data.draw(strategies.upstreams(sets.shape, x.dtype))
    y, dx, *dp = run(function, x, p, upstream)
    assert tuple(y.shape) == sets.shape and y.dtype == x.dtype
    for got, expected in zip(
            (y, dx, *dp), references.pooled(x, p, sets, eps, upstream)):
        assert_within(got, *expected)
    # Below p = 1 the slope itself may be infinite.
    if (torch.as_tensor(p) >= 1).all():
        assert y.isfinite().all() and dx.isfinite().all()


def draw_features(data, eps, min_dims, max_dims, min_side=0):
    dtype = data.draw(strategies.DTYPES)
    shape = data.draw(strategies.shapes(min_dims, max_dims, min_side))
    return data.draw(strategies.tensors(
        shape, dtype, strategies.features(dtype, eps)))


def draw_dims(data, x):
    """Pooled dims, none of them empty."""
    pooled = data.draw(st.lists(
        st.integers(0, x.dim() - 1), min_size=1, unique=True))
    assume(all(x.shape[d] for d in pooled))
    return tuple(sorted(pooled))


def draw_power(data, x, channels):
    """A number, one trained power, or one for each channel."""
    per_channel = channels > 1 and data.draw(st.booleans())
    if per_channel:
        return data.draw(strategies.tensor_powers(channels, x.dtype)), True
    return data.draw(
        strategies.powers() | strategies.tensor_powers(1, x.dtype)), False


@given(st.data())
def test_generalized_mean(data):
    """With a power per channel: those of dim 1, else of the last one."""
    eps = data.draw(strategies.EPSILONS)
    x = draw_features(data, eps, 1, 4)
    dims = draw_dims(data, x)
    channel = 1 if x.dim() > 1 and 1 not in dims else x.dim() - 1
    p, per_channel = draw_power(
        data, x, x.shape[channel] if x.dim() > 2 and channel not in dims
        else 0)
    places = np.arange(x.shape[channel]).reshape(
        [-1 if d == channel else 1 for d in range(x.dim()) if d not in dims]
    ) if per_channel else None
    # A name for the same dims.
    names = [d - data.draw(st.sampled_from((0, x.dim()))) for d in dims]
    check_pooled(lambda x, p=p: generalized_mean(x, p, names, eps=eps), x, p,
                 references.dense_sets(x.shape, dims, None, places), eps, data)


@given(st.data())
def test_generalized_mean_below_one(data):
    """Where nothing is zero, and so every slope finite."""
    eps = data.draw(st.sampled_from((1e-6, 1e-3, 2.0)))
    x = draw_features(data, eps, 1, 3)
    dims = draw_dims(data, x)
    p = data.draw(strategies.powers(0.05, infinite=False)
                  | strategies.tensor_powers(1, x.dtype, lowest=0.05))
    check_pooled(lambda x, p=p: generalized_mean(x, p, dims, eps=eps), x, p,
                 references.dense_sets(x.shape, dims), eps, data)


@given(st.data())
def test_masked_generalized_mean(data):
    eps = data.draw(strategies.EPSILONS)
    x = draw_features(data, eps, 1, 3)
    dims = draw_dims(data, x)
    mask = torch.from_numpy(data.draw(strategies.masks(tuple(x.shape))))
    p, _ = draw_power(data, x, 0)

    def function(x, p=p):
        return generalized_mean(x, p, dims, eps=eps, mask=mask)

    check_pooled(function, x, p, references.dense_sets(
        x.shape, dims, mask.numpy()), eps, data)
    # Excluded elements have no part in anything, whatever they are.
    changed = run(function, x.masked_fill(~mask, math.nan), p)
    for value, other in zip(changed, run(function, x, p)):
        assert value.equal(other)
    assert (changed[1][~mask] == 0).all()


@given(st.data())
def test_segment_generalized_mean(data):
    eps = data.draw(strategies.EPSILONS)
    x = draw_features(data, eps, 1, 3)
    num_segments = data.draw(st.integers(1 if len(x) else 0, 4))
    index = np.array(data.draw(st.lists(
        st.integers(0, max(num_segments - 1, 0)), min_size=len(x),
        max_size=len(x))), dtype=np.int64)
    columns = math.prod(x.shape[1:])
    p, per_column = draw_power(data, x, columns)
    if per_column:
        p = p.view(x.shape[1:])
    sets = references.segment_sets(x.shape, index, num_segments, per_column)
    kind = data.draw(st.sampled_from(
        (torch.int64, torch.int32, torch.int16, torch.uint8)))
    index = torch.from_numpy(index).to(kind)
    check_pooled(
        lambda x, p=p: segment_generalized_mean(
            x, index, num_segments, p, eps=eps),
        x, p, sets, eps, data)
