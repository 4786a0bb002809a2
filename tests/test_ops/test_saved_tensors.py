"""What each operation keeps in memory for its backward pass."""
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from sigplug.models import GaussianFocalLossWithLogits, GeM
from sigplug.ops import (
    clip_sigmoid,
    gaussian_focal_loss_with_logits,
    gem_pool,
    generalized_mean,
    segment_generalized_mean,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHAPE = (2, 16, 12, 12)
SIZE = 2 * 16 * 12 * 12
INF = float('inf')

every_dtype = pytest.mark.parametrize('dtype', DTYPES)


def saved(function, *tensors):
    """Elements of each storage that is saved, by whether it is an input's."""
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        # The tensor is kept: a freed address may be used again.
        sizes[storage.data_ptr()] = (
            storage.nbytes() // tensor.element_size(), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(*tensors)
    assert y.requires_grad and sizes
    known = {t.untyped_storage().data_ptr() for t in tensors}
    inputs = [n for place, (n, _) in sizes.items() if place in known]
    others = [n for place, (n, _) in sizes.items() if place not in known]
    return inputs, others, y.numel()


def features(dtype, shape=SHAPE):
    return (torch.rand(shape) + 0.1).to(dtype).requires_grad_()


@every_dtype
@pytest.mark.parametrize('grad', ['zero', 'straight_through'])
@pytest.mark.parametrize('inplace', [False, True])
def test_clip_sigmoid(dtype, grad, inplace):
    """One tensor of the input's size, be it the input or the output."""
    x = torch.randn(SHAPE).to(dtype).requires_grad_()
    inputs, others, _ = saved(
        lambda x: clip_sigmoid(x, grad=grad, inplace=inplace), x)
    assert len([n for n in inputs + others if n >= SIZE]) <= 1
    assert sum(inputs + others) <= SIZE + 16


@every_dtype
@pytest.mark.parametrize('clip', [None, 1e-4])
@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
@pytest.mark.parametrize('weighted', [False, True])
def test_focal_loss(dtype, clip, reduction, weighted):
    """At most one tensor of the input's size beyond the inputs."""
    x = torch.randn(SHAPE).to(dtype).requires_grad_()
    t = torch.rand(SHAPE)
    weight = torch.rand(SHAPE) if weighted else torch.rand(())
    _, others, _ = saved(
        lambda x, t, weight: gaussian_focal_loss_with_logits(
            x, t, clip=clip, reduction=reduction, weight=weight
            if weighted else None), x, t, weight)
    assert len([n for n in others if n >= SIZE]) <= 1
    assert sum(others) <= SIZE + 16


def test_focal_loss_module():
    x = torch.randn(SHAPE, requires_grad=True)
    module = GaussianFocalLossWithLogits(loss_weight=0.5)
    _, others, _ = saved(
        lambda x, t: module(x, t, avg_factor=torch.tensor(7.0)), x,
        torch.rand(SHAPE))
    assert sum(others) <= SIZE + 16


def check_pooled(function, *tensors):
    """Nothing but the inputs, and a few tensors of the output's size."""
    _, others, pooled = saved(function, *tensors)
    assert pooled * 8 < SIZE
    assert max(others, default=0) <= max(pooled, 16)
    assert sum(others) <= 6 * max(pooled, 16)


POWERS = {
    '3': lambda: 3.0,
    '1': lambda: 1.0,
    'inf': lambda: INF,
    'shared': lambda: torch.tensor([3.0], requires_grad=True),
    'channels': lambda: torch.linspace(1, 9, 16).requires_grad_(),
    'fixed': lambda: torch.tensor([INF] + [3.0] * 15),
}
every_power = pytest.mark.parametrize('power', POWERS)


def with_power(function, power):
    """The tensors of a power are inputs too."""
    p = POWERS[power]()
    if isinstance(p, torch.Tensor):
        return lambda x, p, *rest: function(x, p, *rest), (p, )
    return lambda x, *rest: function(x, p, *rest), ()


@every_dtype
@every_power
@pytest.mark.parametrize('eps', [1e-6, None])
def test_generalized_mean(dtype, power, eps):
    function, p = with_power(
        lambda x, p: generalized_mean(x, p, eps=eps), power)
    check_pooled(function, features(dtype), *p)


@every_dtype
@every_power
def test_masked_generalized_mean(dtype, power):
    """The mask is an input, also where it is expanded."""
    function, p = with_power(
        lambda x, p, mask: generalized_mean(x, p, mask=mask), power)
    check_pooled(function, features(dtype), *p, torch.rand(SHAPE) > 0.3)
    check_pooled(function, features(dtype), *p,
                 torch.rand(2, 1, 12, 12) > 0.3)


@every_dtype
@every_power
@pytest.mark.parametrize('window', [
    dict(), dict(kernel_size=4), dict(kernel_size=(6, None)),
    dict(kernel_size=6, stride=5, padding=2)
], ids=str)
def test_gem_pool(dtype, power, window):
    function, p = with_power(
        lambda x, p: gem_pool(x, p, **window), power)
    check_pooled(function, features(dtype), *p)


@every_dtype
@every_power
def test_segment_generalized_mean(dtype, power):
    function, p = with_power(
        lambda x, p, i: segment_generalized_mean(x, i, 9, p), power)
    index = torch.randint(0, 9, (SIZE // 16, ))
    check_pooled(function, features(dtype, (SIZE // 16, 16)), *p, index)


@every_dtype
@pytest.mark.parametrize('kwargs', [
    dict(), dict(channels=16), dict(p_trainable=False),
    dict(kernel_size=4), dict(clamp=False)
], ids=str)
def test_gem(dtype, kwargs):
    module = GeM(**kwargs)
    check_pooled(module, features(dtype))
    check_pooled(module.to(dtype), features(dtype))
