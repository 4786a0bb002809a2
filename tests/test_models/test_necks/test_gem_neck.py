"""``GeMNeck`` against the formula that mmpretrain publishes."""
import pytest
import torch
import torch.nn.functional as F

from sigplug.models import GeMNeck
from sigplug.ops import gem_pool


def features(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def mmpretrain_formula(x, p=3.0, eps=1e-6, clamp=True):
    """Clamp, power, average over the full extent, root, flatten."""
    powers = (x.clamp(min=eps) if clamp else x) ** p
    mean = F.avg_pool2d(powers, powers.shape[2:])
    return (mean ** (1 / p)).flatten(1)


@pytest.mark.parametrize('kwargs', [
    dict(),
    dict(p=2.5, eps=1e-3),
    dict(p=4.0, clamp=False),
    dict(p=1.0, p_trainable=False),
])
def test_equals_the_published_formula(kwargs):
    x = features(2, 8, 7, 5)
    if not kwargs.get('clamp', True):
        x = x.abs()
    formula = {k: v for k, v in kwargs.items() if k != 'p_trainable'}
    neck = GeMNeck(**kwargs)
    torch.testing.assert_close(
        neck(x), mmpretrain_formula(x, **formula), rtol=5e-6, atol=0)


@pytest.mark.parametrize('container', [tuple, list])
def test_levels(container):
    levels = container([features(2, 8, 8, 8), features(2, 16, 4, 3)])
    outs = GeMNeck()(levels)
    assert isinstance(outs, tuple)
    for out, x in zip(outs, levels):
        torch.testing.assert_close(
            out, mmpretrain_formula(x), rtol=5e-6, atol=0)
    single = GeMNeck()(levels[0])
    assert isinstance(single, torch.Tensor) and single.equal(outs[0])


def test_single_image_and_other_spatial_dims():
    assert GeMNeck()(features(1, 8, 1, 1)).shape == (1, 8)
    assert GeMNeck()(features(2, 8, 9)).shape == (2, 8)
    x = features(2, 8, 3, 4, 5)
    assert GeMNeck()(x).equal(gem_pool(x, torch.tensor([3.0])).flatten(1))


@pytest.mark.parametrize('p_trainable', [True, False])
def test_loads_mmpretrain_checkpoints(p_trainable):
    """mmpretrain stores p as a parameter, trained or not."""
    neck = GeMNeck(p_trainable=p_trainable)
    neck.load_state_dict(dict(p=torch.tensor([4.25])), strict=True)
    x = features(2, 8, 7, 5)
    torch.testing.assert_close(
        neck(x), mmpretrain_formula(x, p=4.25), rtol=5e-6, atol=0)
    trained = [p for p in neck.parameters() if p.requires_grad]
    assert len(trained) == p_trainable


def test_state_dict_and_gradient():
    neck = GeMNeck()
    assert {k: tuple(v.shape) for k, v in neck.state_dict().items()} == {
        'p': (1, )}
    x = features(2, 8, 7, 5)
    neck((x, x)).__getitem__(1).sum().backward()
    p = torch.tensor([3.0], requires_grad=True)
    mmpretrain_formula(x, p).sum().backward()
    torch.testing.assert_close(neck.p.grad, p.grad, rtol=1e-4, atol=0)


def test_one_power_per_channel():
    neck = GeMNeck(p=[1.0, 2.0, 3.0], channels=3)
    x = features(2, 3, 4, 4)
    expected = torch.cat([
        mmpretrain_formula(x[:, c:c + 1], c + 1.0) for c in range(3)], dim=1)
    torch.testing.assert_close(neck(x), expected, rtol=5e-6, atol=0)


@pytest.mark.parametrize('inputs, got', [(None, 'NoneType'), (3, 'int'),
                                         ({}, 'dict')])
def test_bad_inputs(inputs, got):
    with pytest.raises(TypeError, match=f'inputs .*{got}'):
        GeMNeck()(inputs)


def test_bad_arguments():
    with pytest.raises(ValueError, match='eps .*0.0'):
        GeMNeck(eps=0.0)
    with pytest.raises(ValueError, match='p .*-3.0'):
        GeMNeck(p=-3.0)
