"""``GeM``: the function as a layer."""
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
    dict(output_size=(3, 6)),
])
@pytest.mark.parametrize('p', [1.0, 6.5])
@pytest.mark.parametrize('trainable', [False, True])
def test_equals_the_function(kwargs, p, trainable):
    x = features(2, 3, 8, 6)
    layer = GeM(p=p, p_trainable=trainable, **kwargs)
    power = torch.tensor([p]) if trainable else p
    assert layer(x).equal(gem_pool(x, power, **kwargs))


def test_without_clamp():
    x = features(2, 3, 4, 4).abs()
    x[:, 0] = 0
    y = GeM(clamp=False)(x)
    assert y.equal(gem_pool(x, torch.tensor([3.0]), eps=None))
    assert (y[:, 0] == 0).all() and (GeM()(x)[:, 0] > 0).all()


@pytest.mark.parametrize('kwargs, error, words', [
    (dict(eps=-1.0), ValueError, 'eps .*-1.0'),
    (dict(eps=None), TypeError, 'eps .*number.*None'),
    (dict(clamp=None), TypeError, 'clamp .*None'),
    (dict(kernel_size=0), ValueError, '^kernel_size must.*0'),
    (dict(kernel_size='a'), ValueError, "^kernel_size must.*'a'"),
    (dict(padding=-1), ValueError, '^padding must.*-1'),
    (dict(stride=(1, 1, 1, 1)), ValueError, '^stride must.*three'),
    (dict(output_size=0), ValueError, '^output_size must.*0'),
    (dict(output_size=1, kernel_size=2), ValueError, '^output_size=1 excl')])
def test_bad_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        GeM(**kwargs)


def test_other_channels_than_those_of_p():
    with pytest.raises(ValueError, match=r'\(4,\)'):
        GeM(channels=4)(features(2, 3, 4, 4))
