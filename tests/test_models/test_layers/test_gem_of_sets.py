"""``TokenGeM`` and ``SegmentGeM`` against formulas in float64."""
import pytest
import torch
from test_ops.pooling import reference

from sigplug.models import SegmentGeM, TokenGeM

from ..detectors import features


def assert_pooled(y, expected):
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize('p, groups', [
    (2.5, 1), ([1.5, 4.0, 6.0], 3), ([1.5] * 5 + [4.0], 6), (3.0, 2)])
@pytest.mark.parametrize('p_trainable', [True, False])
def test_groups_of_channels(p, groups, p_trainable):
    """Group by group, as in GGeM."""
    x = features(2, 5, 6)
    pool = TokenGeM(p, groups=groups, p_trainable=p_trainable)
    powers = p if isinstance(p, list) else [p] * groups
    assert pool.p.tolist() == powers
    assert list(pool.state_dict()) == ['p'] * p_trainable
    assert_pooled(pool(x), torch.cat([
        reference(part, power, 1)
        for part, power in zip(x.chunk(groups, 2), powers)], 1))


def test_padded_sequences():
    """As each alone; what pads them gets no gradient, nor has a part."""
    lengths = [5, 1, 0, 3]
    x = features(4, 5, 6)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    x[~mask] = float('nan')
    x.requires_grad_()
    pool = TokenGeM([2.0, 5.0], groups=2)
    y = pool(x, mask)
    for i, length in enumerate(lengths):
        alone = pool(x[i:i + 1, :length])[0] if length else torch.zeros(6)
        torch.testing.assert_close(y[i], alone, rtol=1e-6, atol=0)
    y.sum().backward()
    assert (x.grad[~mask] == 0).all() and x.grad[mask].any()
    assert pool.p.grad.isfinite().all() and pool.p.grad.all()


@pytest.mark.parametrize('p, channels', [(2.5, None), ([1.5, 4.0, 6.0], 3)])
def test_segments(p, channels):
    x, index = features(7, 3), torch.tensor([3, 0, 1, 0, 0, 3, 1])
    pool = SegmentGeM(p, channels=channels)
    assert list(pool.state_dict()) == ['p']
    y = pool(x, index, 5)
    for i in (0, 1, 3):
        assert_pooled(y[i], reference(x[index == i], p, 0))
    assert (y[[2, 4]] == 0).all()


@pytest.mark.parametrize('cls, kwargs, error, words', [
    (TokenGeM, dict(groups=0), ValueError, 'groups .*0'),
    (TokenGeM, dict(groups=3, p=[1.0, 2.0]), ValueError,
     r'p .* 3, .*\[1.0, 2.0\]'),
    (TokenGeM, dict(eps=0.0), ValueError, 'eps .*0.0'),
    (SegmentGeM, dict(eps=None), TypeError, 'eps .*None')])
def test_bad_arguments(cls, kwargs, error, words):
    with pytest.raises(error, match=words):
        cls(**kwargs)


@pytest.mark.parametrize('shape', [(2, 6), (2, 5, 7)])
def test_bad_tokens(shape):
    with pytest.raises(ValueError, match=r'\(N, T, C\).* groups=2') as error:
        TokenGeM(groups=2)(features(*shape))
    assert str(shape) in str(error.value)
