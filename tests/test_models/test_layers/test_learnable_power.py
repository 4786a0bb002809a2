"""The power of a GeM module: trained, fixed, in checkpoints."""
import math
import warnings

import pytest
import torch

from sigplug.models import GeM, GeMNeck
from sigplug.ops import gem_pool

from ..detectors import features


@pytest.mark.parametrize('p', [3.0, 3, [3.0], (1.5, 2.0, 6.0), [2, 3, 4]])
@pytest.mark.parametrize('trainable', [False, True])
def test_one_power_per_channel(p, trainable):
    x = features(2, 3, 8, 6)
    layer = GeM(p=p, channels=3, p_trainable=trainable)
    values = [p] * 3 if isinstance(p, (int, float)) else list(p) * (
        3 // len(p))
    for channel, value in enumerate(values):
        torch.testing.assert_close(
            layer(x)[:, channel:channel + 1],
            gem_pool(x[:, channel:channel + 1], float(value)))
    if trainable:
        assert layer.p.shape == (3, ) and layer.p.is_floating_point()
        layer(x).sum().backward()
        assert layer.p.grad.isfinite().all() and (layer.p.grad > 0).all()
    else:
        assert not list(layer.parameters()) and not layer.state_dict()


@pytest.mark.parametrize('stored, used', [(0.2, 1.0), (80.0, 50.0)])
def test_trained_power_outside_its_range(stored, used):
    """What is used is clamped; the gradient flows and brings it back."""
    x = features(2, 3, 4, 4)
    layer = GeM()
    torch.nn.init.constant_(layer.p, stored)
    y = layer(x)
    power = torch.tensor([used], requires_grad=True)
    expected = gem_pool(x, power)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    expected.sum().backward()
    assert layer.p.grad.item() != 0
    torch.testing.assert_close(layer.p.grad, power.grad)
    layer.reset_parameters()
    assert layer.p.item() == 3.0


@pytest.mark.parametrize('found, p_range, warns', [
    ([0.7], (1.0, 50.0), True), ([60.0], (1.0, 50.0), True),
    ([math.nan], (1.0, 50.0), True), ([0.7], (0.5, 50.0), False),
    ([1.0], (1.0, 50.0), False)])
@pytest.mark.parametrize('cls', [GeM, GeMNeck])
def test_checkpoint_outside_of_the_range(cls, found, p_range, warns):
    model = torch.nn.ModuleDict(dict(gem=cls(p_range=p_range)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        model.load_state_dict({'gem.p': torch.tensor(found)})
    assert len(caught) == warns
    if warns:
        assert caught[0].filename == __file__
        words = str(caught[0].message)
        assert f'gem.p=[{found[0]:.1f}' in words
        assert 'outside p_range=(1.0, 50.0)' in words


@pytest.mark.parametrize('p_trainable', [False, True])
@pytest.mark.parametrize('found', [2.5, math.inf])
def test_checkpoint(p_trainable, found):
    """A fixed p takes over what was trained, and resets to its own."""
    layer = GeM(p=4.0, p_trainable=p_trainable)
    if p_trainable:
        found = 2.5
    layer.load_state_dict(dict(p=torch.tensor([found])), strict=True)
    x = features(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), gem_pool(x, found))
    assert set(layer.state_dict()) == ({'p'} if p_trainable else set())
    layer.reset_parameters()
    torch.testing.assert_close(layer(x), gem_pool(x, 4.0))


@pytest.mark.parametrize('trained', [False, True])
def test_on_the_meta_device(trained):
    with torch.device('meta'):
        gem = GeM(p=2.0, p_trainable=trained)
        assert gem(torch.empty(2, 3, 4, 4)).shape == (2, 3, 1, 1)
    assert 'p=?' in repr(gem)
    gem.to_empty(device='cpu').reset_parameters()
    x = features(2, 3, 4, 4)
    assert gem(x).equal(GeM(p=2.0, p_trainable=trained)(x))


@pytest.mark.parametrize('kwargs, error, words', [
    (dict(p=-1.0), ValueError, 'p .*-1.0'),
    (dict(p=math.nan), ValueError, 'p .*nan'),
    (dict(p='3'), TypeError, "p .*'3'"),
    (dict(p=math.inf), ValueError, r'p_range=\(1.0, 50.0\).* p=inf'),
    (dict(p=0.5), ValueError, r'p_range=\(1.0, 50.0\).* p=0.5'),
    (dict(p=[2.0, 3.0]), ValueError, r'one value or 1, .*\[2.0, 3.0\]'),
    (dict(p=[2.0, 3.0], channels=3), ValueError,
     r'one value or 3, .*\[2.0, 3.0\]'),
    (dict(p=[]), ValueError, r'p .* got \[\]'),
    (dict(channels=0), ValueError, 'channels .*0'),
    (dict(p_trainable=1), TypeError, 'p_trainable .*1'),
    (dict(p_range=3.0), ValueError, 'p_range .*3.0'),
    (dict(p_range=(5.0, 2.0)), ValueError, r'p_range .*\(5.0, 2.0\)'),
    (dict(p_range=(0.0, 2.0)), ValueError, r'p_range .*\(0.0, 2.0\)'),
    (dict(p_range=(1.0, math.inf)), ValueError, 'p_range .*inf'),
])
def test_bad_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        GeM(**kwargs)
