"""The closed-form backward against the gradient of the plain form."""
import itertools
import math

import pytest
import torch

from sigplug.ops.clip_sigmoid import (
    clip_sigmoid,
    clip_sigmoid_forward,
    representable_bounds,
)
from sigplug.ops.gaussian_focal_loss import (
    gaussian_focal_loss_forward,
    gaussian_focal_loss_with_logits,
)
from sigplug.ops.power_mean import (
    Dims,
    Segments,
    Windows,
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


@pytest.mark.parametrize('grad', ['zero', 'straight_through'])
def test_clip_sigmoid(grad):
    low, high = representable_bounds(1e-2, 0.99, torch.float64)
    assert_same_gradients(
        lambda x: clip_sigmoid(x, 1e-2, 0.99, grad=grad),
        lambda x: clip_sigmoid_forward(x, low, high, grad),
        torch.linspace(-30, 30, 601))


@pytest.mark.parametrize('clip', [None, 1e-4, 0.1])
@pytest.mark.parametrize('alpha, gamma', [(2.0, 4.0), (0.5, 0.0), (0.0, 1.5)])
def test_focal_loss(clip, alpha, gamma):
    target = torch.tensor([0.0, 0.3, 1.0]).repeat(200)
    assert_same_gradients(
        lambda x: gaussian_focal_loss_with_logits(
            x, target, alpha=alpha, gamma=gamma, pos_weight=2.0, clip=clip,
            reduction='none'),
        lambda x: gaussian_focal_loss_forward(
            x, target, alpha, gamma, 2.0, 1.0, clip),
        torch.linspace(-12, 12, 600))


SETS = {
    'dims': (Dims((2, 3)), None),
    'mask': (Dims((2, 3)), torch.rand(2, 3, 4, 5) > 0.5),
    'windows': (Windows((4, 5), (2, 3), (1, 2), (1, 0)), None),
    'segments': (Segments(3), torch.tensor([2, 0])),
}


@pytest.mark.parametrize('p', [0.5, 1.0, 2.5, 20.0, math.inf])
@pytest.mark.parametrize('name', SETS)
def test_power_mean(name, p):
    sets, members = SETS[name]
    x = torch.randn(2, 3, 4, 5)  # half of it below the clamp
    x[0, 0] = -1.0
    for eps, values in ((1e-6, x), (None, x.clamp(min=0))):
        assert_same_gradients(
            lambda x, eps=eps: power_mean(x, p, sets, members, eps),
            lambda x, eps=eps: power_mean_forward(x, p, sets, members, eps),
            values)


@pytest.mark.parametrize('name, shape', itertools.chain(
    itertools.product(SETS, [()]),
    [('dims', (3, 1, 1)), ('mask', (3, 1, 1)), ('windows', (3, 1, 1, 1, 1)),
     ('segments', (3, 1, 1))]))
def test_trained_power_mean(name, shape):
    sets, members = SETS[name]
    x, p = torch.randn(2, 3, 4, 5), 1 + 5 * torch.rand(shape)
    for eps, values in ((1e-6, x), (None, x.clamp(min=0))):
        assert_same_gradients(
            lambda x, p, eps=eps: power_mean(x, p, sets, members, eps),
            lambda x, p, eps=eps: power_mean_forward(
                x, p, sets, members, eps),
            values, p)
