"""``GeM`` and its power: the function as a layer, fixed and trained."""
import math

import pytest
import torch

from sigplug.models import GeM, GeMNeck
from sigplug.ops import gem_pool


def features(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('kwargs', [
    dict(),
    dict(kernel_size=2),
    dict(kernel_size=(3, None), stride=(1, None), padding=(1, 0)),
    dict(kernel_size=4, stride=1, padding=2, eps=1e-3),
])
@pytest.mark.parametrize('p', [1.0, 3.0, 6.5])
@pytest.mark.parametrize('trainable', [False, True])
def test_equals_the_function(kwargs, p, trainable):
    x = features(2, 3, 8, 6)
    layer = GeM(p=p, p_trainable=trainable, **kwargs)
    power = torch.tensor([p]) if trainable else p
    assert layer(x).equal(gem_pool(x, power, **kwargs))


def test_global_pooling_keeps_the_spatial_dims():
    assert GeM()(features(2, 3, 7)).shape == (2, 3, 1)
    assert GeM()(features(2, 3, 7, 5)).shape == (2, 3, 1, 1)
    assert GeM()(features(2, 3, 7, 5, 4)).shape == (2, 3, 1, 1, 1)


def test_fixed_one_and_inf_are_exact():
    x = features(2, 3, 8, 6).abs() + 0.1
    mean, maximum = (GeM(p=p, p_trainable=False) for p in (1, math.inf))
    exact = x.double().mean((2, 3), keepdim=True)
    assert mean(x).equal(exact.to(x.dtype))
    assert maximum(x).equal(x.amax((2, 3), keepdim=True))


def test_checkpoint_with_a_power_per_channel_into_a_shared_one():
    """In the words that torch has for a p that is part of the state_dict."""
    messages = []
    for gem in (GeM(p_trainable=False), GeM(),
                GeMNeck(p_trainable=False)):
        with pytest.raises(RuntimeError) as error:
            gem.load_state_dict(dict(p=torch.ones(3)))
        messages.append(str(error.value))
    assert 'size mismatch for p: ' in messages[0] and '[3]' in messages[0]
    assert len({message.partition(':')[2] for message in messages}) == 1


@pytest.mark.parametrize('trained', [False, True])
def test_on_the_meta_device(trained):
    with torch.device('meta'):
        gem = GeM(p=2.0, p_trainable=trained)
        assert gem(torch.empty(2, 3, 4, 4)).shape == (2, 3, 1, 1)
    assert 'p=?' in repr(gem) and 'p=?' in repr(GeM(p=2.0).to('meta'))


def test_without_clamp():
    x = features(2, 3, 4, 4).abs()
    x[:, 0] = 0
    y = GeM(clamp=False)(x)
    assert y.equal(gem_pool(x, torch.tensor([3.0]), eps=None))
    assert (y[:, 0] == 0).all() and (GeM()(x)[:, 0] > 0).all()


def test_state_dict():
    assert {k: v.shape for k, v in GeM().state_dict().items()} == {
        'p': (1, )}
    assert {k: v.shape for k, v in GeM(channels=8).state_dict().items()} == {
        'p': (8, )}
    layer = GeM(p=4.0)
    layer.load_state_dict(dict(p=torch.tensor([2.5])), strict=True)
    x = features(2, 3, 4, 4)
    assert layer(x).equal(gem_pool(x, torch.tensor([2.5])))


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
        assert not list(layer.parameters())


@pytest.mark.parametrize('stored, used', [(0.2, 1.0), (80.0, 50.0)])
def test_trained_power_outside_its_range(stored, used):
    """What is used is clamped; the gradient flows and brings it back."""
    x = features(2, 3, 4, 4)
    layer = GeM()
    torch.nn.init.constant_(layer.p, stored)
    y = layer(x)
    torch.testing.assert_close(y, gem_pool(x, torch.tensor([used])))
    y.sum().backward()
    power = torch.tensor([used], requires_grad=True)
    gem_pool(x, power).sum().backward()
    assert layer.p.grad.item() != 0
    torch.testing.assert_close(layer.p.grad, power.grad)


def test_range_can_be_chosen():
    layer = GeM(p=0.5, p_range=(0.25, 2.0))
    torch.nn.init.constant_(layer.p, 9.0)
    x = features(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), gem_pool(x, 2.0))


def test_training_moves_the_power_towards_the_maximum():
    x = features(4, 3, 8, 8)
    target = x.amax((2, 3), keepdim=True)
    layer = GeM()
    optimizer = torch.optim.SGD(layer.parameters(), lr=20.0)
    for _ in range(50):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    assert layer.p.item() > 20
    layer.reset_parameters()
    assert layer.p.item() == 3.0


def test_mixed_fixed_powers_train_the_layers_below():
    """The gradient of the maximum's channel is not NaN."""
    layer = GeM(p=[1.0, math.inf], channels=2, p_trainable=False)
    x = features(2, 2, 4, 4).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[:, 1] != 0).sum() == 2


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_cast_to_half(dtype):
    x = (41 + features(2, 3, 8, 8)).to(dtype)
    y = GeM().to(dtype)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(
        y.double(), gem_pool(x.double(), 3.0),
        rtol=torch.finfo(dtype).eps, atol=0)


def test_shows_its_arguments():
    for part in ('p=', '2.5', 'p_range=(1.0, 50.0)', 'kernel_size=(1, None)'):
        assert part in repr(GeM(p=2.5, kernel_size=(1, None)))


@pytest.mark.parametrize('kwargs, words', [
    (dict(p=0.0), ['p', '0.0']),
    (dict(p=-1.0), ['p', '-1.0']),
    (dict(p=math.nan), ['p', 'nan']),
    (dict(p=math.inf), ['p', 'inf', 'p_range']),
    (dict(p=0.5), ['p', '0.5', 'p_range']),
    (dict(p=51.0), ['p', '51.0', 'p_range']),
    (dict(p=[2.0, 3.0]), ['p', 'channels', '2']),
    (dict(p=[2.0, 3.0], channels=3), ['p', 'channels=3', '2']),
    (dict(p=[]), ['p', '0']),
    (dict(channels=0), ['channels', '0']),
    (dict(eps=0.0), ['eps', '0.0']),
    (dict(eps=-1.0), ['eps', '-1.0']),
    (dict(p_range=(5.0, 2.0)), ['p_range', '(5.0, 2.0)']),
    (dict(p_range=(0.0, 2.0)), ['p_range', '(0.0, 2.0)']),
    (dict(p_range=(1.0, math.inf)), ['p_range', 'inf']),
])
def test_bad_arguments(kwargs, words):
    with pytest.raises(ValueError) as info:
        GeM(**kwargs)
    assert all(word in str(info.value) for word in words)


def test_input_of_another_number_of_channels():
    with pytest.raises(ValueError, match=r'\(4,\)'):
        GeM(channels=4)(features(2, 3, 4, 4))
