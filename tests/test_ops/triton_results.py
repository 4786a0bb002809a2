"""The CUDA kernels against float64 formulas; run by ``test_triton.py``.

On CPU tensors the kernels are interpreted: as slow as Python, and with
bfloat16 truncated where a GPU rounds.
"""
import dataclasses
import importlib
import math
import os

import numpy as np
import pytest
import torch
import triton.language as tl

from sigplug.ops import gaussian_heatmap
from sigplug.ops._windows import plan_windows
from sigplug.ops.cuda_kernels import FORMS
from sigplug.ops.cuda_kernels import power_mean as kernels
from sigplug.ops.cuda_kernels.gem_pool import _plan as windows_plan
from sigplug.ops.gaussian_focal_loss import FocalOptions
from sigplug.ops.gem_pool import pool_dim_by_dim
from sigplug.ops.power_mean import Dims, Segments, power_mean_forward

from . import references
from .references import assert_within, exact

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if INTERPRETED else 'cuda'
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LOSS, HEATMAP, WINDOW = (FORMS[name] for name in (
    'gaussian_focal_loss', 'gaussian_heatmap', 'gem_pool'))
pytestmark = pytest.mark.filterwarnings('ignore::RuntimeWarning')


def on(sets):
    there = None if sets.members is None else sets.members.to(DEVICE)
    return dataclasses.replace(sets, members=there)


def check(x, p, sets, reference_sets, eps=1e-3):
    """Value and gradients; ``reference_sets`` knows nothing of ``sets``."""
    trained = isinstance(p, torch.Tensor)
    x_there, p_there = x.to(DEVICE), p.to(DEVICE) if trained else p
    y = kernels.forward(x_there, p_there, on(sets), eps)
    upstream = torch.linspace(0.5, 1.5, y.numel()).view(y.shape)
    dx, dp = kernels.backward(upstream.to(DEVICE), x_there, p_there, on(sets),
                              eps, y, True, trained)
    value, (slope, allowed), by_p = references.pooled(
        x, p, reference_sets, eps,
        exact(upstream).reshape(reference_sets.shape))
    assert y.dtype == torch.float32 and dx.dtype == x.dtype
    assert_within(y.cpu().reshape(reference_sets.shape), *value)
    if INTERPRETED and x.dtype == torch.bfloat16:
        allowed = allowed + references.ulp(slope, x.dtype)
    assert_within(dx.cpu(), slope, allowed)
    assert (dp is not None) == trained
    if trained:
        assert_within(dp.cpu(), *by_p)


def features(*shape, dtype=torch.float32):
    """Over several orders of magnitude, some below the clamp."""
    return (torch.randn(shape) * torch.randn(shape).exp()).to(dtype)


IMAGE = (2, 3, 5, 4)
CHANNELS = torch.tensor([1.0, 2.5, 30.0])
PER_CHANNEL = np.arange(3)[None, :]


@pytest.mark.parametrize('dtype, p, dims', [
    (torch.float32, 1.0, (2, 3)), (torch.float32, 2.5, (1, )),
    (torch.float32, 20.0, (0, 2)), (torch.float16, 2.5, (2, 3)),
    (torch.bfloat16, 2.5, (0, )), (torch.float32, torch.tensor(2.5), (1, 3)),
    (torch.float32, torch.tensor(2.5), (0, 1, 2, 3))])
def test_dims(dtype, p, dims):
    check(features(*IMAGE, dtype=dtype), p, Dims(dims),
          references.dense_sets(IMAGE, dims))


@pytest.mark.parametrize('layout, masked', [
    (torch.contiguous_format, True), (torch.channels_last, False)])
def test_power_of_each_channel(layout, masked):
    mask = torch.rand(IMAGE) > 0.5
    mask[0, 0] = False
    check(features(*IMAGE).to(memory_format=layout), CHANNELS.view(1, 3, 1, 1),
          Dims((2, 3), mask if masked else None),
          references.dense_sets(IMAGE, (2, 3),
                                mask.numpy() if masked else None, PER_CHANNEL))


def test_long_sets_in_chunks():
    check(features(2, 6000), torch.tensor(3.0), Dims((1, )),
          references.dense_sets((2, 6000), (1, )))


@pytest.mark.parametrize('dtype, shape, p, eps', [
    (torch.float32, (40, ), 20.0, 1e-3), (torch.float32, (400, 3), 3.0, 1e-3),
    (torch.float32, (400, 3), CHANNELS, 1e-3),
    (torch.float32, (400, 3), torch.tensor(3.0), 1e-3),
    (torch.bfloat16, (40, 70), torch.tensor(2.5), 1e-3),
    (torch.float16, (40, 2, 35), torch.linspace(1, 9, 35), None),
    (torch.float32, (40, 3), torch.tensor(1.0), None)])
def test_segments(dtype, shape, p, eps):
    """Also few and long ones, in chunks, and rows of none that exists."""
    x = features(*shape, dtype=dtype)
    # Its memory has gaps.
    index = torch.randint(0, 2 if len(x) > 40 else 7, (len(x), 2))[:, 0]
    index[:4] = torch.tensor([-1, 9, 2**31 - 1, -2**31])
    sets = references.segment_sets(shape, index.numpy(), 9, False)
    if isinstance(p, torch.Tensor) and p.numel() > 1:
        sets.powers = [*range(p.numel())] * (len(sets.powers) // p.numel())
    check(x.relu() if eps is None else x, p, Segments(9, index), sets, eps)


@pytest.mark.parametrize('p', [3.0, 200.0, torch.tensor(math.inf)])
def test_special_values_as_in_the_plain_form(p):
    x = torch.tensor([
        [math.nan, 1, 2, 4], [math.inf, 1, 2, 0], [0, 0, 0, 0], [2, 2, 1, 2],
        [1e-45, 3e-40, 0, 1e-39], [3e38, 3.4e38, 3e38, 1e38]])
    there = p.to(DEVICE) if isinstance(p, torch.Tensor) else p
    y = kernels.forward(x.to(DEVICE), there, Dims((1, )), None)
    torch.testing.assert_close(
        y.cpu(), power_mean_forward(x, p, Dims((1, )), None), rtol=1e-6,
        atol=1e-45, equal_nan=True)


@pytest.mark.parametrize('rows, segments', [(0, 2), (3, 0)])
@pytest.mark.parametrize('p', [torch.tensor(3.0), CHANNELS])
def test_of_nothing(rows, segments, p):
    sets = on(Segments(segments, torch.zeros(rows, dtype=torch.long)))
    x, p = torch.ones(rows, 3, device=DEVICE), p.to(DEVICE)
    y = kernels.forward(x, p, sets, 1e-6)
    assert y.equal(torch.zeros_like(y)) and y.shape == (segments, 3)
    dx, dp = kernels.backward(y, x, p, sets, 1e-6, y, True, True)
    assert dx.equal(0 * x) and dp.equal(0 * p)


# --- windows ----------------------------------------------------------------


WINDOWS = [  # Shape, sizes, steps and padding; columns are last in memory.
    ((2, 3, 9, 8), (2, 2), (2, 2), (0, 0), False),
    ((2, 3, 7, 9), (3, 3), (1, 1), (1, 1), True),
    ((2, 3, 11, 5), (3, 2), (2, 1), (1, 0), False),
    ((2, 3, 5, 13), (1, 4), (3, 3), (0, 2), False),
    ((2, 3, 30), (3, ), (2, ), (0, ), False),
    ((2, 3, 4, 5, 7), (2, 2, 3), (2, 1, 2), (1, 0, 0), False)]


def window_sets(shape, sizes, steps, per_channel):
    """Of an input with its padding."""
    dims = tuple(range(len(shape) - len(sizes), len(shape)))
    places = np.arange(math.prod(shape)).reshape(shape)
    views = np.lib.stride_tricks.sliding_window_view(places, sizes, dims)
    views = views[(..., *(slice(None, None, step) for step in steps),
                   *(slice(None) for _ in sizes))]
    result = views.shape[:len(shape)]
    powers = np.arange(3).reshape(1, 3, *(1 for _ in sizes))
    return references.Sets(
        result, views.reshape(-1, math.prod(sizes)),
        np.broadcast_to(powers * per_channel, result).reshape(-1))


@pytest.mark.parametrize('dtype, p, given', [
    (torch.float32, p, given) for given in WINDOWS
    for p in (2.5, torch.tensor(2.5), CHANNELS)] + [
    (dtype, CHANNELS, WINDOWS[1]) for dtype in DTYPES[1:]])
def test_windows(dtype, p, given):
    shape, sizes, steps, padding, columns_last = given
    x, eps = features(*shape, dtype=dtype), 1e-3
    if any(padding):
        # A padded cell is 0 behind the clamp, which passes all others.
        x, eps = x.abs() + 0.01, None
    margins = [m for m in reversed(padding) for _ in range(2)]
    padded = torch.nn.functional.pad(x, margins)
    sets = window_sets(padded.shape, sizes, steps, p is CHANNELS)
    trained = isinstance(p, torch.Tensor)
    if columns_last:
        x = x.to(memory_format=torch.channels_last)
    there = p.to(DEVICE) if trained else p
    if p is CHANNELS:
        there = there.view(1, 3, *(1 for _ in sizes))
    windows = plan_windows(sizes, steps, padding, x.shape)
    y, by_p = WINDOW.forward(x.to(DEVICE), there, windows, eps, trained)
    assert y.is_contiguous() != columns_last
    upstream = torch.linspace(-0.5, 1.5, y.numel()).view(y.shape)
    dx, dp = WINDOW.backward(upstream.to(DEVICE), x.to(DEVICE), there,
                             windows, eps, y, by_p, True, trained)
    value, (slope, allowed), dy_dp = references.pooled(
        padded, p, sets, eps, exact(upstream))
    assert y.dtype == torch.float32 and dx.dtype == dtype
    assert_within(y.cpu(), *value)
    inner = tuple(slice(m, m + n) for m, n in zip(
        (0, 0, *padding), x.shape))
    if INTERPRETED and dtype == torch.bfloat16:
        allowed = allowed + references.ulp(slope, dtype)
    assert_within(dx.cpu(), slope[inner], allowed[inner])
    if trained:
        assert_within(dp.cpu().view(p.shape), *dy_dp)


@pytest.mark.parametrize('p', [3.0, 200.0, torch.tensor(1.0),
                               torch.tensor(math.inf)])
def test_special_values_in_windows(p):
    x = torch.tensor([
        [math.nan, 1, 2, 4], [math.inf, 1, 2, 0], [0, 0, 0, 0], [2, 2, 1, 2],
        [1e-45, 3e-40, 0, 1e-39], [3e38, 3.4e38, 3e38, 1e38]])
    there = p.to(DEVICE) if isinstance(p, torch.Tensor) else p
    windows = plan_windows((4, ), None, 0, (1, 1, 24))
    y, _ = WINDOW.forward(x.view(1, 1, 24).to(DEVICE), there, windows, None,
                          False)
    torch.testing.assert_close(
        y.cpu().view(6, 1), power_mean_forward(x, p, Dims((1, )), None),
        rtol=1e-6, atol=1e-45, equal_nan=True)


def pool_in_strips(x, p, grad):
    """Windows of 3 by 3 by the kernel and in float64: value and gradients."""
    windows, p = plan_windows(3, 1, 1, x.shape), torch.tensor(p)
    there, power = x.to(DEVICE), p.to(DEVICE)
    y, by_p = WINDOW.forward(there, power, windows, None, True)
    found = y, *WINDOW.backward(torch.full_like(y, grad), there, power,
                                windows, None, y, by_p, True, True)
    leaves = x.double().requires_grad_(), p.double().requires_grad_()
    y = pool_dim_by_dim(*leaves, windows, None)
    expected = y, *torch.autograd.grad(y, leaves, torch.full_like(y, grad))
    return zip([t.cpu() for t in found], [t.float() for t in expected])


@pytest.mark.parametrize('value, scale', [
    (0.7, 1), (1e-30, 1), (1e30, 1), (0.0, 1), (1e-39, 3e-38),
    (math.inf, 1e38), (math.nan, 1e38), (2.5e38, 2.5e38)])
def test_windows_in_strips(value, scale):
    """Whose numbers are near each other, or one is far from all others."""
    x = (torch.rand(1, 1, 9, 6) / 2 + 0.75) * scale
    x[0, 0, 3, 2] = value
    values, *grads = pool_in_strips(x, 4.0, 1.0)
    torch.testing.assert_close(*values, rtol=3e-6, atol=1e-45, equal_nan=True)
    # Those of inf are 0 or NaN; small slopes become 0.
    for both in grads if value != math.inf else ():
        torch.testing.assert_close(
            *both, rtol=3e-6, atol=2e-38, equal_nan=True)


@pytest.mark.parametrize('p', [1.05, 2.3, 5.3])
def test_numbers_that_float32_does_not_hold_in_strips(p):
    x = torch.rand(1, 1, 18, 6) + 0.5
    x[..., :9, :] *= 1e-6
    windows = plan_windows(3, 1, 0, x.shape)
    y, _ = WINDOW.forward(x.to(DEVICE), p, windows, None, False)
    expected = pool_dim_by_dim(x.double(), p, windows, None)
    torch.testing.assert_close(y.cpu().double(), expected, rtol=2.4e-7, atol=0)


@pytest.mark.parametrize('grad', [1e30, 1e-20, 1e-30])
def test_extreme_gradients_of_strips(grad):
    x = torch.rand(1, 1, 18, 6) + 0.5
    x[..., :9, :] *= 1e-6
    _, slopes, _ = pool_in_strips(x, 6.5, grad)
    torch.testing.assert_close(*slopes, rtol=3e-6, atol=2e-38)


@pytest.mark.parametrize('rows, wide', [(9, True), (8, False)])
def test_strips_beyond_31_bits(rows, wide):
    """Strips of 8 rows count as whole ones, here 2**31 cells and more."""
    shape = torch.Size((2**17, 512, rows, 3))
    *_, constants, _ = windows_plan(
        shape, (512 * 3 * rows, 3 * rows, 3, 1),
        plan_windows(3, 1, 1, shape))
    assert (constants[0] == tl.int64) == wide


def test_the_mean_of_equal_cells_in_strips():
    """It is not above them, not even by a rounding."""
    x = (torch.rand(40, 1, 1) + 0.5).expand(40, 9, 6).contiguous()[None]
    x[..., 8, :] = 2
    y, _ = WINDOW.forward(x.to(DEVICE), 2.3, plan_windows(3, 1, 0, x.shape),
                          None, False)
    y, x = y.cpu()[..., :6, :], x[..., :6, :4]
    assert (y <= x).all() and torch.allclose(y, x, rtol=3e-7)


@pytest.fixture
def pool(monkeypatch):
    """The module, whose function takes the kernels."""
    module = importlib.import_module('sigplug.ops.gem_pool')
    monkeypatch.setattr(module, 'select', lambda *_: WINDOW)
    return module


def inputs(*shape):
    return (torch.rand(shape, device=DEVICE).requires_grad_(),
            torch.tensor(2.5, device=DEVICE).requires_grad_())


@pytest.mark.parametrize('again', [False, True])
@pytest.mark.parametrize('stacked', [False, True])
def test_gradients_of_windows(stacked, again, pool):
    """Those of the plain form, also where the input depends on the power."""
    x, p = inputs(1, 2, 6, 5)
    windows = plan_windows(3, 1, 1, x.shape)
    cells = x * p if stacked else x
    results = (pool.gem_pool(cells, p, 3, 1, 1),
               pool.pool_dim_by_dim(cells, p, windows, 1e-6))
    assert results[0].grad_fn.name() == '_GeMPoolBackward'
    torch.testing.assert_close(*results)
    grads = [torch.autograd.grad(y.square().sum(), (x, p), create_graph=again,
                                 retain_graph=True) for y in results]
    torch.testing.assert_close(*grads)
    if again:
        torch.testing.assert_close(*(torch.autograd.grad(
            dx.square().sum() + dp, (x, p), retain_graph=True)
            for dx, dp in grads))


def test_windows_of_each_kind(pool):
    """By the kernel or dim by dim, as the windows and the power want it."""
    x, p = inputs(1, 2, 8, 8)
    for size, power, kernel in (
            (2, p, True), (2, 2.5, True), ((4, 4), p, True), (5, p, False),
            ((2, None), p, False), (2, 1.0, False), (2, 0.5, False),
            (2, math.inf, False), (2, torch.tensor(math.inf), False)):
        y = pool.gem_pool(x, power, size)
        assert ('_GeMPool' in str(y.grad_fn)) == kernel, (size, power)
        expected = pool.pool_dim_by_dim(
            x, power, plan_windows(size, None, 0, x.shape), 1e-6)
        torch.testing.assert_close(y, expected)
        with torch.no_grad():
            torch.testing.assert_close(pool.gem_pool(x, power, size), y)
    half = pool.gem_pool(x.half(), p, 2)
    assert half.dtype == torch.float16
    half.float().sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()


def test_many_gradients_of_windows_at_once(pool):
    x, p = inputs(1, 2, 6, 4)
    y = pool.gem_pool(x, p, 2)
    many = torch.rand(3, *y.shape, device=DEVICE)
    expected = [torch.autograd.grad(y, (x, p), one, retain_graph=True)
                for one in many]
    expected = tuple(map(torch.stack, zip(*expected)))
    torch.testing.assert_close(torch.autograd.grad(
        y, (x, p), many, retain_graph=True, is_grads_batched=True), expected)
    torch.testing.assert_close(torch.func.vmap(
        lambda one: torch.autograd.grad(y, (x, p), one, retain_graph=True))(
            many), expected)


def test_saved_tensors_may_lose_their_strides(pool):
    x, p = inputs(2, 3, 6, 4)
    last = x.contiguous(memory_format=torch.channels_last)
    grads = []
    for pack in (lambda t: t, lambda t: t.contiguous()):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = pool.gem_pool(last, p, 2)
        weight = torch.linspace(-1, 2, y.numel(), device=DEVICE).view_as(y)
        grads.append(torch.autograd.grad(
            (y * weight).sum(), (x, p), retain_graph=True))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('value', [math.nan, 0.0])
def test_gradients_of_special_values_in_windows(value, pool):
    x, p = inputs(1, 1, 8)
    x.data[..., :2] = value
    windows = plan_windows((2, ), None, 0, x.shape)
    results = (pool.gem_pool(x, p, (2, ), eps=None),
               pool.pool_dim_by_dim(x, p, windows, None))
    torch.testing.assert_close(
        *(torch.autograd.grad(y.sum(), (x, p)) for y in results),
        equal_nan=True)


def test_infinite_gradients_of_windows(pool):
    x, p = inputs(1, 1, 8)
    y = pool.gem_pool(x, p, (2, ))
    grad = torch.ones_like(y)
    grad[..., 0] = math.inf
    dx, dp = torch.autograd.grad(y, (x, p), grad)
    assert dp == math.inf and dx[0, 0, :2].isinf().all()
    assert dx[0, 0, 2:].isfinite().all()


def test_windows_of_nothing():
    x = torch.empty(0, 3, 4, 4, device=DEVICE)
    p = torch.tensor(3.0, device=DEVICE)
    windows = plan_windows(2, None, 0, x.shape)
    y, by_p = WINDOW.forward(x, p, windows, 1e-6, True)
    dx, dp = WINDOW.backward(y, x, p, windows, 1e-6, y, by_p, True, True)
    assert y.shape == (0, 3, 2, 2) and dx.shape == x.shape and dp == 0


# --- the focal loss ---------------------------------------------------------


def call(function, *arguments):
    """Call on the device, with the result on the CPU."""
    return function(*(
        x.to(DEVICE) if isinstance(x, torch.Tensor) else x
        for x in arguments)).cpu()


def logits(dtype):
    x = torch.linspace(-20, 20, 490)
    special = [0., -0., 88.9, -88.9, 104., -104., 1e4, -1e4, 1e-8, 1e-40]
    return torch.cat([x, torch.tensor(special)]).to(dtype)


FOCAL = (
    dict(), dict(clip=1e-4), dict(alpha=1.5, gamma=0.0, pos_weight=2.0),
    dict(alpha=0.0, gamma=2.5), dict(gamma=0.0, clip=1e-2, neg_weight=0.5),
    dict(alpha=1.0, gamma=1.0, clip=1e-4))


@pytest.mark.parametrize('settings', FOCAL, ids=str)
@pytest.mark.parametrize('dtype', DTYPES)
def test_gaussian_focal_loss(dtype, settings):
    options = FocalOptions(**settings)
    x = logits(dtype)
    t = torch.rand(x.shape)**3
    t[::5], t[-10:-5] = 1.0, 1.0
    value, slope = references.focal_loss(x, t, **settings)
    slopes = torch.empty_like(x, dtype=torch.float32, device=DEVICE)
    loss = call(LOSS.forward, x, t, options, True, None, slopes)
    assert loss.dtype == torch.float32
    assert_within(loss, *value)
    assert_within(slopes.cpu(), *slope)

    again = torch.empty_like(slopes)
    for out, divisor, rtol in ((again, None, 1e-7), (None, None, 1e-7),
                               (again, torch.tensor([7]), 3e-7),
                               (again, 7.0, 3e-7)):
        total = call(LOSS.forward, x.view(5, -1), t.view(5, -1), options,
                     False, divisor, out)
        assert total.dtype == torch.float32 and total.shape == ()
        n = 1 if divisor is None else float(divisor)
        torch.testing.assert_close(
            total.double(), loss.double().sum() / n, rtol=rtol, atol=0)
        torch.testing.assert_close(again, slopes / n, rtol=rtol, atol=1e-38)


def test_sum_of_large_losses_and_many_small_ones():
    """In plain float32 each of the small ones would be lost."""
    x = torch.full((8192, ), -1.5)
    x[:1024] = 3e5
    loss = call(LOSS.forward, x, 0 * x, FocalOptions(), True, None, None)
    sums = call(LOSS.forward, x, 0 * x, FocalOptions(), False, None, None)
    expected = loss.double().sum()
    assert abs(sums.item() - expected) <= 2**-24 * expected
    assert expected > (1 + 2**-23) * 1024 * loss[0].double()


# --- heatmaps ----------------------------------------------------------------


def test_gaussian_heatmap():
    """Across borders, over each other, and larger than the map."""
    centers = torch.randint(-3, 25, (12, 2))
    radii = torch.tensor([0, 1, 3, 7, 60, 2, 3, 0, 5, 1, 4, 2])
    labels = torch.randint(0, 3, (12, ))
    heatmap = call(HEATMAP.forward, centers, radii, labels, 3, (20, 22))
    expected = gaussian_heatmap(centers, radii, labels, 3, (20, 22))
    assert heatmap.dtype == torch.float32
    torch.testing.assert_close(heatmap, expected, rtol=0, atol=1e-6)
    assert (heatmap == 1).equal(expected == 1) and (heatmap == 1).any()
    assert (heatmap == 0).equal(expected == 0)


def test_skipped_objects_draw_nothing():
    centers, labels = torch.full((4, 2), 3), torch.tensor([0, 1, -1, 2])
    heatmap = call(HEATMAP.forward, centers,
                   torch.tensor([-1, -9, 2, 2]), labels, 2, (8, 8))
    assert heatmap.equal(torch.zeros(2, 8, 8))
    empty = torch.empty(0, dtype=torch.long)
    assert call(HEATMAP.forward, empty.view(0, 2), empty, empty, 2,
                (8, 8)).equal(heatmap)
