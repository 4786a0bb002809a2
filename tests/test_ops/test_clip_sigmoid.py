"""``clip_sigmoid`` against float64, mmdet3d's function and autograd."""
import math

import pytest
import torch
from mmdet3d.models.utils import clip_sigmoid as stock_clip_sigmoid

from sigplug.ops import clip_sigmoid
from sigplug.ops.clip_sigmoid import representable_bounds

from .references import bounds, exact, steps
from .tolerances import DTYPES


def value_and_grad(function, x, **kwargs):
    x = x.detach().clone().requires_grad_()
    # A copy, because mmdet3d's function overwrites what it is given.
    y = function(x.clone(), **kwargs)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


@pytest.mark.parametrize('logits, limits, expected', [
    ([-2., -1., 0., 1., 2.], (), [0.1192, 0.2689, 0.5, 0.7311, 0.8808]),
    ([-2., -4., 0., 6., 8.], (), [0.1192, 0.0180, 0.5, 0.9975, 0.9997]),
    ([-2., -4., 0., 6., 8.], (0.01, 0.99), [0.1192, 0.018, 0.5, 0.99, 0.99]),
])
def test_worked_examples(logits, limits, expected):
    y = clip_sigmoid(torch.tensor(logits), *limits)
    assert [round(value, 4) for value in y.tolist()] == expected


def test_float32_equals_mmdet3d():
    edge = math.log(1e4 - 1)
    x = torch.cat([
        torch.linspace(-30, 30, 600001),
        torch.linspace(edge - 1e-3, edge + 1e-3, 20001),
        torch.linspace(-edge - 1e-3, -edge + 1e-3, 20001),
        torch.tensor([0., -0., 1e-30, -1e-30, 100., -100., 1e30, -1e30]),
    ])
    y, slope = value_and_grad(clip_sigmoid, x)
    stock_y, stock_slope = value_and_grad(stock_clip_sigmoid, x)
    assert steps(y, exact(stock_y)).max() <= 1
    assert steps(slope, exact(stock_slope)).max() <= 1
    # The sweep reaches both bounds and the zero gradient beyond them.
    assert (slope == 0).any() and (y == y.min()).sum() > 1000


# The nearest half value lies above some of these and below others.
@pytest.mark.parametrize('low, high', [
    (1e-4, 1 - 1e-4), (1e-2, 0.99), (0.011, 0.989), (0.1, 0.9), (0.2, 0.7),
    (1e-9, 1 - 1e-9), (5e-324, 1 - 2**-53)])
@pytest.mark.parametrize('dtype', DTYPES)
def test_bounds_are_the_tightest_inside(dtype, low, high):
    y = clip_sigmoid(torch.tensor([-math.inf, math.inf], dtype=dtype),
                     low, high)
    assert tuple(exact(y)) == bounds(low, high, dtype)
    # 1 - y is what the loss takes the logarithm of.
    assert y.log().isfinite().all() and (1 - y).log().isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    """Also without a gradient, where it takes another way: all numbers."""
    x = torch.arange(-2**15, 2**15, dtype=torch.int16).view(dtype)
    expected = torch.sigmoid(x.float()).clamp(
        *representable_bounds(1e-4, 1 - 1e-4, dtype)).to(dtype)
    for logits in (x, x.clone().requires_grad_()):
        torch.testing.assert_close(clip_sigmoid(logits), expected, rtol=0,
                                   atol=0, equal_nan=True)


@pytest.mark.parametrize('grad', ['zero', 'straight_through'])
def test_nan_propagates(grad):
    assert clip_sigmoid(torch.tensor([math.nan]), grad=grad).isnan().all()


def test_gradient_at_the_bounds_is_clamps():
    """At equality torch decides, since 2.14 otherwise than before.

    sigmoid(0) is 0.5 exactly.
    """
    for low, high in ((0.5, 0.9), (0.1, 0.5)):
        _, slope = value_and_grad(
            clip_sigmoid, torch.zeros(1), min_val=low, max_val=high)
        _, expected = value_and_grad(
            torch.clamp, torch.full((1, ), 0.5), min=low, max=high)
        assert slope.item() == 0.25 * expected.item()


@pytest.mark.parametrize('kwargs, error, words', [
    (dict(min_val='1e-4'), TypeError, "min_val.*number.*'1e-4'"),
    (dict(min_val=0.0), ValueError, 'min_val.*0.0'),
    (dict(min_val=math.nan), ValueError, 'min_val.*nan'),
    (dict(max_val=1.0), ValueError, 'max_val.*1.0'),
    (dict(min_val=0.7, max_val=0.3), ValueError,
     'min_val=0.7 and max_val=0.3'),
    (dict(x=torch.zeros(2).half(), min_val=0.9999, max_val=0.99995),
     ValueError, 'min_val=0.9999 and max_val=0.99995.*float16'),
    (dict(grad='one'), ValueError, "grad.*straight_through.*'one'"),
    (dict(inplace='no'), TypeError, "inplace.*False.*'no'"),
    (dict(backend='fast'), ValueError, "backend.*auto.*'fast'"),
])
def test_bad_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        clip_sigmoid(**dict(x=torch.zeros(2)) | kwargs)
