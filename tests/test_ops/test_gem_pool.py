"""Generalised-mean pooling against torch's pools and float64."""
import importlib
import math

import pytest
import torch
import torch.nn.functional as F

from sigplug.ops import gem_pool

from .pooling import grads, random_input
from .tolerances import assert_close

pytestmark = pytest.mark.usefixtures('backend')


def test_worked_example_of_average_pooling():
    x = torch.rand(10, 3, 4, 4)
    y = gem_pool(x, p=1.0, kernel_size=(4, 4))
    assert y.shape == (10, 3, 1, 1)
    torch.testing.assert_close(y, F.avg_pool2d(x, 4))


def test_worked_example_of_five_by_five():
    x = torch.ones(1, 5, 5)
    x[0, 2] = torch.tensor([0., 0., 0., 1., 1.])
    y = gem_pool(x, p=1.0, kernel_size=4)
    assert y.shape == (1, 1, 1) and round(y.item(), 4) == 0.8125
    y = gem_pool(x, p=1.0, kernel_size=4, stride=1)
    expected = torch.tensor([[[0.8125, 0.8750], [0.8125, 0.8750]]])
    torch.testing.assert_close(y, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize('p', [6.5, torch.tensor([6.5])])
def test_worked_example_of_opengait(p):
    eps = 1e-6
    x = random_input(4, 3, 16, 11)
    expected = F.avg_pool2d(
        x.clamp(min=eps).pow(6.5), (1, x.size(-1))).pow(1 / 6.5)
    y = gem_pool(x, p, kernel_size=(1, None), eps=eps)
    assert y.shape == (4, 3, 16, 1)
    torch.testing.assert_close(y, expected, rtol=5e-6, atol=0)


WINDOWS = [
    # shape of x, kernel_size, stride, padding
    ((2, 3, 11), (3, ), None, 0),
    ((2, 3, 11), None, None, 0),
    ((2, 3, 9, 8), (3, 2), (2, 1), (1, 0)),
    ((2, 3, 9, 8), [4, 4], 1, 2),
    ((2, 3, 9, 8), None, None, 0),
    ((2, 3, 9, 8), (None, 2), None, 0),
    ((2, 3, 9, 8), (3, 4), None, 0),
    ((2, 3, 9, 8), (3, None), (None, 1), (1, 0)),
    ((2, 3, 9, 8), 2, 5, 1),
    ((2, 3, 9, 8), (1, 3), (2, 1), 0),
    ((2, 3, 9, 8), (3, 1), (1, 3), (1, 0)),
    ((2, 3, 9, 8), 1, (1, 2), 0),
    ((3, 9, 8), (3, 2), (2, 1), (1, 1)),
    ((3, 9, 8), (1, None), None, 0),
    ((2, 3, 5, 6, 4), (3, 2, 2), (1, 2, 1), (1, 1, 0)),
    ((2, 3, 5, 6, 4), (None, 2, 1), None, 0),
    ((2, 3, 5, 6, 4), None, None, 0),
]


def torch_windows(shape, kernel, stride, padding):
    """The same windows in the arguments of ``avg_pool*d``."""
    dims = 1 if len(shape) == 3 and kernel in (None, (3, )) else (
        2 if len(shape) == 3 else len(shape) - 2)

    def fill(value, default):
        value = value if isinstance(value, (tuple, list)) else [value] * dims
        return [d if v is None else v for v, d in zip(value, default)]

    kernel = fill(kernel, shape[-dims:])
    return dims, kernel, fill(stride, kernel), fill(padding, [0] * dims)


@pytest.mark.parametrize('shape, kernel, stride, padding', WINDOWS)
def test_equals_torch_pools(shape, kernel, stride, padding):
    """In value, and in the gradients of the input and of the power."""
    x = random_input(*shape)
    dims, *window = torch_windows(shape, kernel, stride, padding)
    avg_pool = getattr(F, f'avg_pool{dims}d')
    max_pool = getattr(F, f'max_pool{dims}d')

    def pool(x, p):
        return gem_pool(x, p, kernel, stride, padding)

    def by_torch(x, p):
        return avg_pool(x.clamp(min=1e-6)**p, *window)**(1 / p)

    for p in (0.5, 1.0, 3.0, 6.5, 20.0):
        assert_close(pool(x, p), by_torch(x.double(), p))
    c = x.clamp(min=1e-6)
    assert pool(x, math.inf).equal(max_pool(c, *window))
    for p in (0.5, 1.0, 3.0):
        # With exponents of Python, 0 ** p of the padding has no gradient.
        power = torch.tensor([p], dtype=torch.float64)
        expected = grads(by_torch, x.double(), power)
        torch.testing.assert_close(
            grads(pool, x.double(), power), expected, rtol=1e-9, atol=1e-12)
        dx, = grads(lambda x, p=p: pool(x, p), x.double())
        torch.testing.assert_close(dx, expected[0], rtol=1e-9, atol=1e-12)


ADAPTIVE = [
    # shape of x, output_size, dims
    ((2, 3, 11), (4, ), 1),
    ((2, 3, 9, 8), (3, 4), 2),
    ((2, 3, 9, 8), [5, 3], 2),
    ((2, 3, 9, 8), (1, 3), 2),
    ((2, 3, 9, 8), (9, 12), 2),
    ((2, 3, 9, 8), 1, 2),
    ((3, 9, 8), 2, 2),
    ((2, 3, 5, 6, 4), (2, 3, 1), 3),
]


@pytest.mark.parametrize('shape, size, dims', ADAPTIVE)
def test_equals_adaptive_pools(shape, size, dims):
    x = random_input(*shape)

    def pool(x, p):
        return gem_pool(x, p, output_size=size)

    def by_torch(x, p):
        return getattr(F, f'adaptive_avg_pool{dims}d')(
            x.clamp(min=1e-6)**p, size)**(1 / p)

    for p in (0.5, 1.0, 3.0, 6.5, 20.0):
        assert_close(pool(x, p), by_torch(x.double(), p))
        power = torch.tensor([p], dtype=torch.float64)
        torch.testing.assert_close(
            grads(pool, x.double(), power),
            grads(by_torch, x.double(), power), rtol=1e-9, atol=1e-12)
    assert pool(x, math.inf).equal(getattr(F, f'adaptive_max_pool{dims}d')(
        x.clamp(min=1e-6), size))
    channel = len(shape) - dims - 1
    powers = torch.tensor([1.0, 3.0, 9.5])
    for c, y in enumerate(pool(x, powers).unbind(channel)):
        torch.testing.assert_close(
            y, pool(x, powers[c].item()).select(channel, c))


@pytest.mark.parametrize('windows, shares', [
    (dict(kernel_size=2), (1 / 3, 1 / 3, 1 / 3)),
    (dict(kernel_size=2, stride=1), (1 / 4, 1 / 2, 1 / 4)),
    (dict(output_size=2), (1 / 4, 1 / 2, 1 / 4)),
    (dict(), (1 / 3, 1 / 3, 1 / 3))])
def test_ties_of_the_maximum_share_its_gradient(windows, shares):
    """By column, and then within each; at once in small windows."""
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    places = [0, 0, 1], [0, 1, 0]
    x[0, 0][places] = 1
    grad, = grads(
        lambda x: gem_pool(x, math.inf, **windows)[..., :1, :1], x)
    assert grad[0, 0][places].tolist() == pytest.approx(shares)
    assert grad.sum().item() == pytest.approx(1)


@pytest.mark.parametrize('kwargs, words', [
    (dict(kernel_size=0), ['kernel_size', '0']),
    (dict(kernel_size=(2.5, 2)), ['kernel_size', '2.5']),
    (dict(kernel_size=(1, 2, 3)), ['kernel_size', '(1, 2, 3)']),
    (dict(kernel_size=9), ['kernel_size', '9']),
    (dict(kernel_size=2, stride=0), ['stride', '0']),
    (dict(kernel_size=2, stride=(1, 2, 3)), ['stride', '(1, 2, 3)']),
    (dict(kernel_size=2, padding=2), ['padding', '2']),
    (dict(kernel_size=2, padding=(1, )), ['padding', '(1,)']),
    (dict(output_size=(2, None)), ['output_size', 'None']),
    (dict(output_size=(1, 2, 3)), ['output_size', '(1, 2, 3)']),
    (dict(output_size=2, stride=1), ['output_size=2', "'stride': 1"]),
    (dict(output_size=1, x=torch.ones(2, 3, 0, 5)), ['x', '(2, 3, 0, 5)']),
    (dict(p=0.0), ['p', '0.0']),
    (dict(p=torch.ones(5)), ['p', '(5,)']),
    (dict(eps=0.0), ['eps', '0.0']),
    (dict(x=torch.ones(3, 4)), ['x', '(3, 4)']),
    (dict(x=torch.ones(1, 1, 2, 2, 2, 2)), ['x', '(1, 1, 2, 2, 2, 2)']),
])
def test_bad_arguments(kwargs, words):
    kwargs = dict(dict(x=torch.ones(2, 3, 4, 5)), **kwargs)
    with pytest.raises(ValueError) as info:
        gem_pool(**kwargs)
    assert all(word in str(info.value) for word in words)


@pytest.mark.parametrize('padding', [0, 1])
def test_the_gradient_passes_at_eps(padding):
    """As that of max(x, eps) from above, whatever torch's clamp does."""
    x = torch.full((1, 1, 4, 4), 0.5, requires_grad=True)
    gem_pool(x, 1.0, 2, 2, padding, eps=0.5).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 0.25))


@pytest.mark.parametrize('p', [2.5, torch.tensor([1.5, 4.0])])
def test_sample_by_sample(p, monkeypatch):
    """Large inputs with overlapping windows, on a CPU."""
    x = random_input(3, 2, 9, 8)

    def pool(x):
        return gem_pool(x, p, (3, None), (1, None), (1, 0))

    whole = pool(x), *grads(pool, x)
    monkeypatch.setattr(
        importlib.import_module('sigplug.ops.gem_pool'), 'CACHED', 10)
    torch.testing.assert_close((pool(x), *grads(pool, x)), whole)
