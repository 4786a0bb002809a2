"""``GeMNeck`` against mmpretrain's neck, and strip by strip."""
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from test_ops.pooling import reference

from sigplug.models import GeMNeck

from ..detectors import features, mmpretrain_gem


def by_hand(x, p=3.0, bins=(1, )):
    """Rows gathered one by one, in float64; strip by strip, as documented."""
    x, out = x.flatten(3) if x.dim() > 3 else x.unsqueeze(3), []
    p = torch.as_tensor(p).view(-1, 1, 1)
    for b in bins:
        for i in range(b):
            taken = [r for r in range(x.shape[2]) if r < (
                i + 1) * x.shape[2] / b and r + 1 > i * x.shape[2] / b]
            out.append(reference(x[:, :, taken], p, (2, 3)))
    return torch.cat(out, dim=1)


def assert_pooled(y, expected):
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=0)


@pytest.fixture(scope='module')
def original():
    return mmpretrain_gem().GeneralizedMeanPooling


@pytest.mark.parametrize('kwargs', [
    dict(),
    dict(p=2.5, eps=1e-3),
    dict(p=4.0, clamp=False),
    dict(p=1.0, p_trainable=False),
])
def test_equals_the_original(original, kwargs):
    """In values and gradients; its own float32 is less exact."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs, ours = (
            MODELS.build(dict(type=name, **kwargs))
            for name in ('GeneralizedMeanPooling', 'GeMNeck'))
    assert type(theirs) is original and type(ours) is GeMNeck
    levels = [
        3 * features(*shape) for shape in ((2, 8, 7, 5), (3, 16, 1, 1))]
    if not kwargs.get('clamp', True):
        levels = [x.abs() for x in levels]
    pairs = []
    for module, dtype in (ours, torch.float32), (theirs, torch.float64):
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in levels]
        outs = module.to(dtype)(tuple(inputs))
        assert type(outs) is tuple
        sum(out.square().sum() for out in outs).backward()
        pairs.append((*outs, *(x.grad for x in inputs), *(
            p.grad for p in module.parameters() if p.requires_grad)))
    for y, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(
            y.double(), expected.double(), rtol=1e-5, atol=1e-7)
    assert ours(list(levels))[0].equal(ours(levels[0]))


@pytest.mark.parametrize('p_trainable', [True, False])
def test_checkpoints_of_the_original(original, p_trainable):
    """In both directions, strictly, trained or not."""
    ours = GeMNeck(p=2.5, p_trainable=p_trainable)
    theirs = original(p=4.25, p_trainable=p_trainable)
    stored = {key: value.clone() for key, value in theirs.state_dict().items()}
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert theirs.p.tolist() == [2.5]
    ours.load_state_dict(stored, strict=True)
    x = features(2, 8, 7, 5)
    assert_pooled(ours(x), by_hand(x, 4.25))
    assert len(list(ours.parameters())) == p_trainable


@pytest.mark.parametrize('p', [3.0, [4.5], [1.5, 2.0, 5.0], (1.5, 2.0, 5.0)])
@pytest.mark.parametrize('p_trainable', [True, False])
def test_one_power_per_level(p, p_trainable):
    levels = [features(2, c, 8 - c, 3) for c in (3, 5, 4)]
    neck = GeMNeck(p, num_levels=3, p_trainable=p_trainable, bins=(1, 3))
    values = [p] * 3 if isinstance(p, float) else list(p) * (3 // len(p))
    assert neck.p.shape == (3, ) and neck.p.tolist() == values
    outs = neck(levels)
    for out, x, value in zip(outs, levels, values, strict=True):
        assert_pooled(out, by_hand(x, value, (1, 3)))
    if p_trainable:
        outs[1].sum().backward()
        assert (neck.p.grad != 0).tolist() == [False, True, False]


def test_one_power_per_channel_of_each_level():
    p = [1.5, 2.0, 6.0, 1.0, 4.0]
    levels = features(2, 3, 4, 5), features(2, 2, 3, 3)
    neck = GeMNeck(p=p, channels=(3, 2))
    assert neck.p.shape == (5, )
    for out, x, power in zip(neck(levels), levels, (p[:3], p[3:])):
        assert_pooled(out, by_hand(x, power))


@pytest.mark.parametrize('shape', [
    (2, 3, 1, 5), (2, 3, 4, 5), (2, 3, 7, 5), (2, 3, 8, 5), (2, 3, 16, 1),
    (2, 3, 8), (2, 3, 7, 4, 5)])
@pytest.mark.parametrize('bins', [(1, ), (1, 2, 4), [4], (3, 1), (1, 8)])
def test_strips(shape, bins):
    x = features(*shape)
    for p, channels in ((3.0, None), ([1.0, 2.5, 6.0], 3)):
        y = GeMNeck(p=p, channels=channels, bins=bins)(x)
        assert y.shape == (2, 3 * sum(bins))
        assert_pooled(y, by_hand(x, p, bins))
        parts = GeMNeck(p=p, channels=channels, bins=bins, keep_parts=True)(x)
        assert parts.shape == (2, 3, sum(bins))
        assert parts.mT.flatten(1).equal(y)


@pytest.mark.parametrize('kwargs, shapes, words', [
    (dict(num_levels=3), [(2, 3, 4), (2, 3, 2)], '3 levels, .* has 2'),
    (dict(channels=[3, 2]), [(2, 3, 4)], '2 levels, .* has 1'),
    # One power fits any number of channels, were they not asked for.
    (dict(channels=[1, 2]), [(2, 3, 4), (2, 2, 4)], r'2\], but has \[3, 2'),
    (dict(channels=4), [(2, 4, 4), (2, 3, 4)], r'\(4,\)'),
    (dict(bins=(1, 2)), [(2, 3, 0, 4)], 'must not be empty'),
])
def test_bad_levels(kwargs, shapes, words):
    with pytest.raises(ValueError, match=words):
        GeMNeck(**kwargs)([features(*shape) for shape in shapes])


@pytest.mark.parametrize('kwargs, error, words', [
    (dict(eps=0.0), ValueError, 'eps .*0.0'),
    (dict(num_levels=0), ValueError, 'num_levels .*0'),
    (dict(num_levels=2, p=[1.0, 2.0, 3.0]), ValueError,
     r'p .* 2, .*\[1.0, 2.0, 3.0\]'),
    (dict(num_levels=2, channels=[3, 4]), ValueError,
     r'num_levels=2 .*channels=\[3, 4\]'),
    (dict(channels=[]), TypeError, r'channels .*\[\]'),
    (dict(channels=[3, 0]), ValueError, 'channels .*0'),
    (dict(channels=[3, 2], p=[1.0, 2.0]), ValueError, r'p .* 5, .*\[1.0'),
    (dict(keep_parts=1), TypeError, 'keep_parts .*1'),
    (dict(bins=4), TypeError, 'bins .*4'),
    (dict(bins=()), TypeError, r'bins .*\(\)'),
    (dict(bins=(1, -2)), ValueError, 'bins .*-2'),
])
def test_bad_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        GeMNeck(**kwargs)
