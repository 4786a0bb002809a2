"""The CUDA kernels against float64 formulas; run by ``test_triton.py``.

On CPU tensors the kernels are interpreted: as slow as Python, and with
bfloat16 truncated where a GPU rounds.
"""
import dataclasses
import math
import os

import numpy as np
import pytest
import torch

from sigplug.ops import gaussian_heatmap
from sigplug.ops.cuda_kernels import FORMS
from sigplug.ops.cuda_kernels import power_mean as kernels
from sigplug.ops.gaussian_focal_loss import FocalOptions
from sigplug.ops.power_mean import Dims, Segments, power_mean_forward

from . import references
from .references import assert_within, exact

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if INTERPRETED else 'cuda'
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
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


@pytest.mark.parametrize('count, p', [
    (40, 20.0), (40, CHANNELS), (400, torch.tensor(3.0))])
def test_segments(count, p):
    """Also few and long ones, in chunks."""
    index = torch.randint(0, 2 if count > 40 else 7, (count, ))
    check(features(count, 3), p, Segments(9, index), references.segment_sets(
        (count, 3), index.numpy(), 9, p is CHANNELS))


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


def test_of_nothing():
    sets = Segments(2, torch.empty(0, dtype=torch.long, device=DEVICE))
    x, p = torch.empty(0, 3, device=DEVICE), torch.tensor(3.0, device=DEVICE)
    y = kernels.forward(x, p, sets, 1e-6)
    assert y.equal(torch.zeros_like(y)) and y.shape == (2, 3)
    dx, dp = kernels.backward(y, x, p, sets, 1e-6, y, True, True)
    assert dx.shape == (0, 3) and dp == 0


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


LOSS = FORMS['gaussian_focal_loss']
HEATMAP = FORMS['gaussian_heatmap']


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
