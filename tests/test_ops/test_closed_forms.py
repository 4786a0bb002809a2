"""The closed-form backward against the gradient of the plain form."""
import math

import pytest
import torch

from sigplug.ops import gem_pool
from sigplug.ops.power_mean import (
    Dims,
    Segments,
    power_mean,
    power_mean_forward,
)


def assert_same_gradients(closed, plain, *inputs):
    """Of a weighted sum, with respect to all inputs, in float64."""
    inputs = [x.double().requires_grad_() for x in inputs]
    y, expected = closed(*inputs), plain(*inputs)
    assert y.grad_fn.name() != expected.grad_fn.name()
    assert y.equal(expected)
    weight = torch.linspace(1, 2, y.numel()).view(y.shape).to(y.dtype)
    for got, want in zip(
            torch.autograd.grad(y, inputs, weight),
            torch.autograd.grad(expected, inputs, weight), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-14)


SETS = {
    'dims': Dims((2, 3)),
    'mask': Dims((2, 3), torch.rand(2, 3, 4, 5) > 0.5),
    'segments': Segments(3, torch.tensor([2, 0])),
}


@pytest.mark.parametrize('p', [0.5, 1.0, 2.5, 20.0, math.inf])
@pytest.mark.parametrize('name', SETS)
def test_power_mean(name, p):
    x = torch.randn(2, 3, 4, 5)  # half of it below the clamp
    x[0, 0] = -1.0
    for eps, values in ((1e-6, x), (None, x.clamp(min=0))):
        assert_same_gradients(
            lambda x, eps=eps: power_mean(x, p, SETS[name], eps),
            lambda x, eps=eps: power_mean_forward(x, p, SETS[name], eps),
            values)


@pytest.mark.parametrize('name', SETS)
@pytest.mark.parametrize('shape', [(), (3, 1, 1)])
def test_trained_power_mean(name, shape):
    x, p = torch.randn(2, 3, 4, 5), 1 + 5 * torch.rand(shape)
    for eps, values in ((1e-6, x), (None, x.clamp(min=0))):
        assert_same_gradients(
            lambda x, p, eps=eps: power_mean(x, p, SETS[name], eps),
            lambda x, p, eps=eps: power_mean_forward(x, p, SETS[name], eps),
            values, p)


@pytest.mark.parametrize('p', [1.0, 3.0, 20.0, 200.0])
def test_windows_far_below_the_largest_element(p):
    """Exact at any distance, in value and gradient."""
    x = torch.rand(1, 2, 4, 4) + 0.5
    x[:, 1] *= 1e-30
    x.requires_grad_()
    y = gem_pool(x, p, 2, eps=None)
    wide = x.detach().double()[:, 1:].mul(1e30).requires_grad_()
    expected = gem_pool(wide, p, 2, eps=None)
    torch.testing.assert_close(y[:, 1:].double() * 1e30, expected, rtol=5e-7,
                               atol=0.0)
    grad, = torch.autograd.grad(y.sum(), x)
    grad_wide, = torch.autograd.grad(expected.sum(), wide)
    torch.testing.assert_close(grad[:, 1:].double(), grad_wide, rtol=1e-4,
                               atol=1e-9)
