"""``GeM``: the function as a layer."""
import math

import pytest
import torch

from sigplug.models import GeM
from sigplug.ops import gem_pool

from ..detectors import features


@pytest.mark.parametrize('kwargs', [
    dict(),
    dict(kernel_size=2),
    dict(kernel_size=(3, None), stride=(1, None), padding=(1, 0)),
    dict(kernel_size=4, stride=1, padding=2, eps=1e-3),
])
@pytest.mark.parametrize('p', [1.0, 6.5])
@pytest.mark.parametrize('trainable', [False, True])
def test_equals_the_function(kwargs, p, trainable):
    x = features(2, 3, 8, 6)
    layer = GeM(p=p, p_trainable=trainable, **kwargs)
    power = torch.tensor([p]) if trainable else p
    assert layer(x).equal(gem_pool(x, power, **kwargs))


@pytest.mark.parametrize('size', [(7, ), (7, 5), (7, 5, 4)])
def test_global_pooling_keeps_the_spatial_dims(size):
    assert GeM()(features(2, 3, *size)).shape == (2, 3) + (1, ) * len(size)


def test_fixed_one_and_inf_are_exact():
    x = features(2, 3, 8, 6).abs() + 0.1
    mean, maximum = (GeM(p=p, p_trainable=False) for p in (1, math.inf))
    exact = x.double().mean((2, 3), keepdim=True)
    assert mean(x).equal(exact.to(x.dtype))
    assert maximum(x).equal(x.amax((2, 3), keepdim=True))


def test_without_clamp():
    x = features(2, 3, 4, 4).abs()
    x[:, 0] = 0
    y = GeM(clamp=False)(x)
    assert y.equal(gem_pool(x, torch.tensor([3.0]), eps=None))
    assert (y[:, 0] == 0).all() and (GeM()(x)[:, 0] > 0).all()


def test_shows_its_arguments():
    for part in ('p=', '2.5', 'p_range=(1.0, 50.0)', 'kernel_size=(1, None)'):
        assert part in repr(GeM(p=2.5, kernel_size=(1, None)))


def test_bad_arguments():
    x = features(2, 3, 4, 4)
    with pytest.raises(ValueError, match='eps .*-1.0'):
        GeM(eps=-1.0)
    with pytest.raises(TypeError, match='clamp .*None'):
        GeM(clamp=None)
    with pytest.raises(ValueError, match='kernel_size .*0'):
        GeM(kernel_size=0)(x)
    with pytest.raises(ValueError, match=r'\(4,\)'):
        GeM(channels=4)(x)


@pytest.mark.parametrize('window', [
    dict(kernel_size=0), dict(kernel_size='a'), dict(padding=-1),
    dict(stride=(1, 1, 1, 1))], ids=str)
def test_windows_that_no_input_has(window):
    name, = window
    with pytest.raises(ValueError, match=f'^{name} must'):
        GeM(**window)
