"""The generalised mean over dims against float64."""
import math

import pytest
import torch
import torch.nn.functional as F

from sigplug.ops import generalized_mean, segment_generalized_mean

from .pooling import grads, random_input, reference
from .tolerances import assert_close

pytestmark = pytest.mark.usefixtures('backend')


def test_one_is_the_mean_and_inf_the_maximum_exactly():
    x = random_input(3, 4, 5, 6).abs() + 1e-3
    for dims in ((-2, -1), (1, ), (0, 3)):
        # Accumulated in float64, hence the correctly rounded mean.
        assert generalized_mean(x, 1.0, dims).equal(
            x.double().mean(dims).float())
        assert generalized_mean(x, math.inf, dims).equal(x.amax(dims))
    dx, = grads(lambda x: generalized_mean(x, math.inf), x)
    expected, = grads(lambda x: F.adaptive_max_pool2d(x, 1), x)
    assert dx.equal(expected)


@pytest.mark.parametrize('p', [1.0, 3.0, math.inf, torch.tensor(3.0)])
def test_what_is_not_finite_stays_visible(p):
    """A NaN or an infinity reaches its own set and no other."""
    x = torch.tensor([[1., math.nan], [1., math.inf], [1., 3.]])
    y = generalized_mean(x, p, 1)
    ragged = segment_generalized_mean(
        x.flatten(), torch.tensor([0, 0, 1, 1, 2, 2]), 3, p)
    for result in (y, ragged):
        assert result[0].isnan() and result[1] == math.inf
        torch.testing.assert_close(result[2:], generalized_mean(x[2:], p, 1))


@pytest.mark.parametrize('p', [3.0, 8.0, 50.0])
def test_dead_channels_have_finite_gradients(p):
    """All of a channel at the clamp; p then has no influence at all."""
    x, power = torch.zeros(2, 3, 4, 4), torch.full((3, ), p)
    x[:, 0] = random_input(2, 4, 4)
    dx, dp = grads(generalized_mean, x, power)
    assert dx.isfinite().all() and (dx[:, 1:] == 0).all()
    assert dp[0] > 1e-3 and dp[1:].abs().max() < 1e-9


@pytest.mark.parametrize('shape', [(2, 3, 4, 5), (2, 1, 4, 5), (4, 5),
                                   (3, 1, 1), (5, )])
def test_mask_broadcasts(shape):
    x = random_input(2, 3, 4, 5)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.4
    full = mask.expand(x.shape).contiguous()
    assert generalized_mean(x, 2.5, (1, 3), mask=mask).equal(
        generalized_mean(x, 2.5, (1, 3), mask=full))


# Shape of the input, pooled dims, shape of p.
CHANNEL_LAYOUTS = {
    'image': ((2, 3, 4, 5), (2, 3), (3, )),
    'volume': ((2, 3, 4, 5, 2), (2, 3, 4), (3, )),
    'sequence': ((2, 3, 4), (2, ), (3, )),
    'points of pillars': ((2, 4, 3), (1, ), (3, )),
    'rows': ((4, 3), (0, ), (3, )),
    'batch too': ((2, 3, 4), (0, 2), (3, )),
    'broadcast': ((2, 3, 4, 5), (2, 3), (1, 3, 1, 1)),
    'each set': ((2, 3, 4, 5), (2, 3), (2, 3, 1, 1)),
    'one': ((2, 3, 4, 5), (2, 3), (1, )),
    'scalar': ((2, 3, 4, 5), (2, 3), ()),
    'one, many dims': ((2, 3, 4, 5), (2, 3), (1, 1, 1)),
}


@pytest.mark.parametrize('layout', CHANNEL_LAYOUTS)
def test_power_layouts(layout):
    shape, dims, p_shape = CHANNEL_LAYOUTS[layout]
    x = random_input(*shape)
    p = torch.linspace(1.5, 9, math.prod(p_shape)).view(p_shape)
    y = generalized_mean(x, p, dims, keepdim=True)
    if len(p_shape) == 1:
        # The channels are the dim of size 3.
        p = p.view([-1 if size == 3 else 1 for size in shape])
    assert_close(y, reference(x, p, dims, keepdim=True))


def test_other_power_dtypes():
    x = random_input(2, 3, 4, 5)
    expected = reference(x, 3.0, (-2, -1))
    for p in (3, torch.tensor(3), torch.full((3, ), 3),
              torch.full((3, ), 3.0, dtype=torch.float64)):
        y = generalized_mean(x, p)
        assert y.dtype == torch.float32
        assert_close(y, expected)


@pytest.mark.parametrize('p', [0.1, 1e-3, 1e-6, 1e-8])
def test_small_powers_tend_to_the_geometric_mean(p):
    x = torch.tensor([1.0, 4.0, 2.0])
    exact = 2 * (1 + p * math.log(2)**2 / 3)
    assert generalized_mean(x, p, 0).item() == pytest.approx(
        exact, rel=2e-7 + p**2)


@pytest.mark.parametrize('kwargs, error, words', [
    (dict(p=0.0), ValueError, 'p must.*0.0'),
    (dict(p=math.nan), ValueError, 'p must.*nan'),
    (dict(p='3'), ValueError, "p must.*'3'"),
    (dict(p=torch.tensor(0.0)), ValueError, 'p must be above 0.*0.0'),
    (dict(p=torch.tensor([1, -1, 2])), ValueError, 'p must be above 0.*-1'),
    (dict(p=torch.tensor([1, math.nan])), ValueError, 'p must be.*nan'),
    (dict(p=torch.ones(7)), ValueError, r'p .*\(7,\).*\(2, 3, 1, 1\)'),
    (dict(p=torch.ones(2, 3, 4, 1)), ValueError, r'p .*\(2, 3, 4, 1\)'),
    (dict(eps=0.0), ValueError, 'eps.*0.0'),
    (dict(eps=math.nan), ValueError, 'eps.*nan'),
    (dict(dim=4), ValueError, 'dim.*4'),
    (dict(dim=(1, -3)), ValueError, r'dim.*\(1, -3\)'),
    (dict(dim=()), ValueError, r'dim.*\(\)'),
    (dict(mask=torch.ones(2, 3, 4, 5)), TypeError, 'mask.*float32'),
    (dict(mask=torch.ones(7).bool()), ValueError, r'mask.*\(7,\)'),
    (dict(x=torch.zeros(2, 3, 0, 5)), ValueError, r'x .*\(2, 3, 0, 5\)'),
])
def test_bad_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        generalized_mean(**dict(x=torch.ones(2, 3, 4, 5)) | kwargs)
