"""The CUDA functions against float64 formulas; run by ``test_triton.py``.

On CPU tensors the kernels are interpreted: as slow as Python, and with
bfloat16 truncated where a GPU rounds.
"""
import math
import os
from functools import partial

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

from sigplug.ops import cuda_kernels as kernels  # noqa: E402
from sigplug.ops import gaussian_heatmap  # noqa: E402
from sigplug.ops.power_mean import (  # noqa: E402
    Dims,
    Segments,
    Windows,
    power_mean,
    power_mean_forward,
)

from . import references  # noqa: E402
from .references import assert_within, exact  # noqa: E402

DEVICE = 'cpu' if INTERPRETED else 'cuda'
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
POWERS = (0.5, 1.0, 2.5, 20.0, math.inf)
pytestmark = pytest.mark.filterwarnings('ignore::RuntimeWarning')


def on(x):
    return x.to(DEVICE) if isinstance(x, torch.Tensor) else x


def call(function, *arguments):
    """Call on the device, with results on the CPU."""
    result = function(*map(on, arguments))
    return tuple(r if r is None else r.cpu() for r in result) if isinstance(
        result, tuple) else result.cpu()


def focal_sums(*arguments):
    sums, slope = call(
        partial(kernels.gaussian_focal_loss_sums, wants_slope=True),
        *arguments)
    assert slope is None
    return sums


def assert_rounded(actual, expected, allowed):
    """As ``assert_within``, but truncated is also right if interpreted."""
    if INTERPRETED and actual.dtype == torch.bfloat16:
        allowed = allowed + references.ulp(expected, actual.dtype)
    assert_within(actual, expected, allowed)


@pytest.fixture(scope='module', autouse=True)
def backend():
    """The kernels themselves are called, whatever is chosen."""


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs no GPU')
def test_says_that_there_is_no_device():
    with pytest.raises(OSError, match='CUDA'):
        kernels.prepare()


# --- clip_sigmoid and the focal loss ----------------------------------------


def logits(dtype):
    x = torch.linspace(-20, 20, 490)
    special = [0., -0., 88.9, -88.9, 104., -104., 1e4, -1e4, 1e-8, 1e-40]
    return torch.cat([x, torch.tensor(special)]).to(dtype)


@pytest.mark.parametrize('grad', ['zero', 'straight_through'])
@pytest.mark.parametrize('dtype', DTYPES)
def test_clip_sigmoid(dtype, grad):
    x = logits(dtype)
    low, high = map(float, references.bounds(1e-4, 1 - 1e-4, dtype))
    value, slope = references.clip_sigmoid(x, low, high, grad)
    y = call(kernels.clip_sigmoid_forward, x, low, high, grad)
    assert y.dtype == dtype
    assert_rounded(y, *value)
    dx = call(kernels.clip_sigmoid_backward, torch.ones_like(x), x, low, high,
              grad)
    assert dx.dtype == dtype
    assert_rounded(dx, *slope)


def test_clip_sigmoid_keeps_the_layout_of_views_and_nan():
    x = torch.randn(6, 4).t()[:, ::2]
    y = call(kernels.clip_sigmoid_forward, x, 0.1, 0.9, 'zero')
    torch.testing.assert_close(y, x.sigmoid().clamp(0.1, 0.9))
    nan = torch.tensor([math.nan, 0.0])
    y = call(kernels.clip_sigmoid_forward, nan, 0.1, 0.9, 'zero')
    assert y[0].isnan() and y[1] == 0.5


@pytest.mark.skipif(INTERPRETED, reason='PyTorch on a GPU is the reference')
def test_clip_sigmoid_is_close_to_the_sigmoid_of_the_gpu():
    x = torch.linspace(-9, 9, 10**6, device='cuda')
    y = kernels.clip_sigmoid_forward(x, 1e-4, 1 - 1e-4, 'zero')
    expected = x.sigmoid().clamp(1e-4, 1 - 1e-4)
    steps = y.view(torch.int32) - expected.view(torch.int32)
    assert steps.abs().max() <= 2


FOCAL = (
    dict(), dict(clip=1e-4), dict(alpha=1.5, gamma=0.0, pos_weight=2.0),
    dict(alpha=0.0, gamma=2.5), dict(gamma=0.0, clip=1e-2, neg_weight=0.5),
    dict(alpha=1.0, gamma=1.0, clip=1e-4))


@pytest.mark.parametrize('settings', FOCAL, ids=str)
@pytest.mark.parametrize('dtype', DTYPES)
def test_gaussian_focal_loss(dtype, settings):
    arguments = tuple({**dict(alpha=2.0, gamma=4.0, pos_weight=1.0,
                              neg_weight=1.0, clip=None), **settings}.values())
    x = logits(dtype)
    t = torch.rand(x.shape)**3
    t[::5], t[-10:-5] = 1.0, 1.0
    value, slope = references.focal_loss(x, t, **settings)
    loss = call(kernels.gaussian_focal_loss_forward, x, t, *arguments)
    assert loss.dtype == torch.float32
    assert_within(loss, *value)
    dx = call(kernels.gaussian_focal_loss_backward, torch.ones_like(loss), x,
              t, *arguments)
    assert dx.dtype == dtype
    assert_rounded(dx, *slope)

    sums = focal_sums(x, t, 5, *arguments)
    assert sums.dtype == torch.float32 and sums.shape == (5, )
    torch.testing.assert_close(
        sums.double(), loss.double().view(5, -1).sum(1), rtol=1e-7, atol=0)
    by_row, by_cell = (
        call(kernels.gaussian_focal_loss_backward, grad, x, t, *arguments)
        for grad in (sums, sums.repeat_interleave(len(x) // 5)))
    assert by_row.equal(by_cell)


def test_sum_of_large_losses_and_many_small_ones():
    """In plain float32 each of the small ones would be lost."""
    x = torch.full((8192, ), -1.5)
    x[:1024] = 3e5
    arguments = 2.0, 4.0, 1.0, 1.0, None
    loss = call(kernels.gaussian_focal_loss_forward, x, 0 * x, *arguments)
    sums = focal_sums(x, 0 * x, 1, *arguments)
    expected = loss.double().sum()
    assert abs(sums.item() - expected) <= 2**-24 * expected
    assert expected > (1 + 2**-23) * 1024 * loss[0].double()


# --- the power mean ---------------------------------------------------------


def check(x, p, sets, members, eps, reference_sets):
    """Value and gradients; ``reference_sets`` knows nothing of ``sets``."""
    y = call(kernels.power_mean_forward, x, p, sets, members, eps)
    trained = isinstance(p, torch.Tensor) and bool(p.isfinite().all())
    upstream = torch.linspace(0.5, 1.5, max(y.numel(), 1))[:y.numel()]
    upstream = upstream.view(y.shape)
    expected = references.pooled(
        x, p, reference_sets, eps,
        exact(upstream).reshape(reference_sets.shape))
    assert y.dtype == torch.float32
    assert_within(y.reshape(reference_sets.shape), expected.y,
                  expected.y_allowed)
    dx, dp = call(kernels.power_mean_backward, upstream, x, p, sets, members,
                  eps, y, True, trained)
    assert dx.dtype == x.dtype
    assert_rounded(dx, expected.dx, expected.dx_allowed)
    assert (dp is not None) == trained
    if trained:
        assert_within(dp, expected.dp, expected.dp_allowed)
        only_dp = call(kernels.power_mean_backward, upstream, x, p, sets,
                       members, eps, y, False, True)
        assert only_dp[0] is None and only_dp[1].equal(dp)



def features(*shape, dtype=torch.float32):
    """Over several orders of magnitude, some below the clamp."""
    x = torch.randn(shape) * torch.randn(shape).exp()
    return x.to(dtype)


IMAGE = (2, 3, 5, 4)
CHANNELS = torch.tensor([1.0, 2.5, 30.0])
FIXED = torch.tensor([1.0, 2.5, math.inf])
PER_CHANNEL = np.arange(3)[None, :]


@pytest.mark.parametrize('dtype, p', [
    *((torch.float32, p) for p in POWERS), (torch.float16, 2.5),
    (torch.bfloat16, 2.5), (torch.float16, 1.0)])
def test_dims(dtype, p):
    x = features(*IMAGE, dtype=dtype)
    for dims in ((2, 3), (1, )):
        check(x, p, Dims(dims), None, 1e-3,
              references.dense_sets(IMAGE, dims))


@pytest.mark.parametrize('dims', [(0, ), (3, ), (0, 1), (1, 3), (0, 1, 2, 3)])
def test_other_dims(dims):
    check(features(*IMAGE), torch.tensor(2.5), Dims(dims), None, 1e-3,
          references.dense_sets(IMAGE, dims))


@pytest.mark.parametrize('p', [CHANNELS, FIXED])
@pytest.mark.parametrize('layout', [
    torch.contiguous_format, torch.channels_last])
def test_power_of_each_channel(p, layout):
    x = features(*IMAGE).to(memory_format=layout)
    check(x, p.view(1, 3, 1, 1), Dims((2, 3)), None, 1e-3,
          references.dense_sets(IMAGE, (2, 3), None, PER_CHANNEL))


@pytest.mark.parametrize('p', [0.5, 1.0, 3.0, math.inf, CHANNELS])
def test_masked(p):
    mask = torch.rand(IMAGE) > 0.5
    mask[0, 0] = False
    places = None
    if isinstance(p, torch.Tensor):
        p, places = p.view(1, 3, 1, 1), PER_CHANNEL
    check(features(*IMAGE), p, Dims((2, 3)), mask, 1e-3,
          references.dense_sets(IMAGE, (2, 3), mask.numpy(), places))


@pytest.mark.parametrize('p', [1.0, 3.0, math.inf, torch.tensor(3.0)])
def test_long_sets_in_chunks(p):
    shape = (2, 6000)
    check(features(*shape), p, Dims((1, )), None, 1e-3,
          references.dense_sets(shape, (1, )))


def test_one_large_element_and_many_small_ones():
    x = torch.full((20000, ), 2.0**-26)
    x[7] = 1.0
    for p in (1.0, torch.tensor(1.0)):
        y = call(kernels.power_mean_forward, x, p, Dims((0, )), None, 1e-30)
        assert y.item() == x.double().mean().float()


@pytest.mark.parametrize('p', [*POWERS, torch.tensor(2.5), CHANNELS])
def test_segments(p):
    index = torch.randint(1, 7, (40, ))
    sets = references.segment_sets((40, 3), index.numpy(), 9,
                                   p is CHANNELS)
    check(features(40, 3), p, Segments(9), index, 1e-3, sets)


def test_long_segments_in_chunks():
    index = torch.randint(0, 2, (400, ))
    check(features(400, 2), torch.tensor(3.0), Segments(2), index, 1e-3,
          references.segment_sets((400, 2), index.numpy(), 2, False))


@pytest.mark.parametrize('p', [*POWERS, torch.tensor(2.5), CHANNELS, FIXED])
def test_windows(p):
    geometry = (3, 2), (1, 2), (1, 1)
    per_channel = isinstance(p, torch.Tensor) and p.dim() == 1
    sets = references.window_sets(IMAGE, *geometry, per_channel)
    if per_channel:
        p = p.view(3, 1, 1, 1, 1)
    check(features(*IMAGE), p, Windows((4, 5), *geometry), None, 1e-3, sets)


@pytest.mark.parametrize('shape, geometry', [
    ((2, 3, 7), ((3, ), (1, ), (0, ))),
    ((1, 2, 4, 5, 3), ((2, 3, 2), (1, 2, 1), (1, 0, 1))),
    # Cells in no window.
    ((1, 1, 6, 7), ((2, 2), (3, 3), (0, 1)))])
def test_windows_of_other_dims(shape, geometry):
    spatial = len(shape) - 2
    window_dims = tuple(range(len(shape), len(shape) + spatial))
    check(features(*shape), 3.0, Windows(window_dims, *geometry), None, 1e-3,
          references.window_sets(shape, *geometry, False))


SPECIAL = torch.tensor([
    # A NaN, an infinity, two of them, zeros alone, among others, and ties.
    [math.nan, 1, 2, 4], [math.inf, 1, 2, 0], [math.inf, 1, math.inf, 0],
    [0, 0, 0, 0], [0, 3, 0, 1], [2, 2, 1, 2],
    # Subnormal numbers, the largest ones, and both ends of the range.
    [1e-45, 3e-40, 0, 1e-39], [3e38, 3.4e38, 3e38, 1e38],
    [1e-40, 3e38, 1e-45, 1], [9e-39, 2e-38, 0, 1.5e-38]])


@pytest.mark.parametrize('eps', [None, 1e-6])
@pytest.mark.parametrize('p', [
    0.5, 1.0, 3.0, 200.0, 1e30, math.inf, torch.tensor(1.0),
    torch.tensor(math.inf)])
def test_special_values_as_in_the_plain_form(p, eps):
    for sets, members, x in (
            (Dims((1, )), None, SPECIAL),
            (Dims((0, )), SPECIAL.t() != 3, SPECIAL.t().contiguous()),
            (Segments(12), torch.arange(40) // 4, SPECIAL.view(-1, 1)),
            (Windows((2, ), (4, ), (4, ), (0, )), None,
             SPECIAL.view(1, 1, -1).view(1, -1))):
        y = call(kernels.power_mean_forward, x, p, sets, members, eps)
        # Of the plain form in float64, which cannot overflow here.
        wide = x.double().requires_grad_()
        wide_p = p.double() if isinstance(p, torch.Tensor) else p
        expected = power_mean(wide, wide_p, sets, members, eps)
        given = power_mean_forward(x, p, sets, members, eps)
        infinite = given.isinf() | given.isnan()
        torch.testing.assert_close(
            y.double(), torch.where(infinite, given.double(),
                                    expected.detach()),
            rtol=1e-6, atol=1e-45, equal_nan=True)


@pytest.mark.parametrize('p', [1.0, 3.0, math.inf, torch.tensor(3.0),
                               torch.tensor(math.inf)])
def test_gradients_of_special_values_as_in_the_plain_form(p):
    x = SPECIAL.clone().requires_grad_()
    trained = isinstance(p, torch.Tensor) and bool(p.isfinite())
    given_p = p.clone().requires_grad_() if trained else p
    y = power_mean(x, given_p, Dims((1, )), None, None)
    upstream = torch.rand(y.shape)
    dx, = torch.autograd.grad(y, x, upstream)
    actual, dp = call(kernels.power_mean_backward, upstream, x.detach(), p,
                      Dims((1, )), None, None, y.detach(), True, trained)
    torch.testing.assert_close(actual, dx, rtol=2e-5, atol=1e-37,
                               equal_nan=True)
    assert not trained or dp.isnan()


def test_of_nothing():
    index = torch.empty(0, dtype=torch.long)
    for p in (1.0, 3.0, math.inf, torch.tensor(3.0)):
        x = torch.empty(0, 3)
        y = call(kernels.power_mean_forward, x, p, Segments(2), index, 1e-6)
        assert y.equal(torch.zeros(2, 3))
        dx, dp = call(kernels.power_mean_backward, y, x, p, Segments(2),
                      index, 1e-6, y, True, True)
        assert dx.shape == (0, 3) and (dp is None or dp == 0)
    x = torch.empty(0, 3, 2, 2)
    assert call(kernels.power_mean_forward, x, 3.0, Dims((2, 3)), None,
                None).shape == (0, 3, 1, 1)
    assert call(kernels.clip_sigmoid_forward, x, 0.1, 0.9,
                'zero').shape == x.shape
    arguments = 2.0, 4.0, 1.0, 1.0, None
    assert call(kernels.gaussian_focal_loss_forward, x, x,
                *arguments).shape == x.shape
    assert focal_sums(x, x, 2, *arguments).equal(
        torch.zeros(2))


# --- gaussian_heatmap -------------------------------------------------------


def test_gaussian_heatmap():
    """Across borders, over each other, and larger than the map."""
    centers = torch.randint(-3, 25, (12, 2))
    radii = torch.tensor([0, 1, 3, 7, 60, 2, 3, 0, 5, 1, 4, 2])
    labels = torch.randint(0, 3, (12, ))
    heatmap = call(kernels.gaussian_heatmap, centers, radii, labels, 3,
                   (20, 22))
    expected = gaussian_heatmap(centers, radii, labels, 3, (20, 22))
    assert heatmap.dtype == torch.float32
    torch.testing.assert_close(heatmap, expected, rtol=0, atol=1e-6)
    assert (heatmap == 1).equal(expected == 1) and (heatmap == 1).any()
    assert (heatmap == 0).equal(expected == 0)


def test_skipped_objects_draw_nothing():
    centers, labels = torch.full((4, 2), 3), torch.tensor([0, 1, -1, 2])
    heatmap = call(kernels.gaussian_heatmap, centers,
                   torch.tensor([-1, -9, 2, 2]), labels, 2, (8, 8))
    assert heatmap.equal(torch.zeros(2, 8, 8))
    empty = torch.empty(0, dtype=torch.long)
    assert call(kernels.gaussian_heatmap, empty.view(0, 2), empty, empty, 2,
                (8, 8)).equal(heatmap)
