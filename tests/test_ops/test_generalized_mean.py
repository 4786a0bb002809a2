"""The generalised mean over dims against float64."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from sigplug.ops import gem_pool, generalized_mean, segment_generalized_mean

from .pooling import HALF, POWERS, grads, random_input, reference, textbook
from .tolerances import DTYPES, assert_close

# --- values and gradients -------------------------------


@pytest.mark.parametrize('p', POWERS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_equals_float64_formula(dtype, p):
    x = random_input(3, 4, 5, 6, dtype=dtype)
    for dims in ((-2, -1), (1, ), (0, 2, 3), (3, ), (0, 1, 2, 3)):
        y = generalized_mean(x, p, dims)
        assert y.dtype == dtype
        assert_close(y, reference(x, p, dims))
        kept = generalized_mean(x, p, dims, keepdim=True)
        assert kept.dim() == 4 and kept.flatten().equal(y.flatten())


@pytest.mark.parametrize('p', POWERS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_gradient_equals_closed_form(dtype, p):
    """dy/dx = (c/y)^(p-1) / N, dy/dp = (y/p) (r - ln y)."""
    x = random_input(3, 4, 20, dtype=dtype)
    power = torch.tensor(p, dtype=dtype)
    dx, dp = grads(lambda x, p: generalized_mean(x, p, -1), x, power)

    c = x.double().clamp(min=1e-6)
    y = reference(x, p, (-1, )).unsqueeze(-1)
    expected = (c / y)**(p - 1) / 20 * (x >= 1e-6)
    # c/y is raised to the power p - 1, which multiplies its rounding.
    torch.testing.assert_close(
        dx.double(), expected, rtol=(
            2e-5 if dtype == torch.float32 else 1e-11), atol=1e-20)
    weight = torch.softmax(p * c.log(), -1)
    r = (weight * c.log()).sum(-1, keepdim=True)
    terms = y / p * (r - y.log())
    torch.testing.assert_close(
        dp.double(), terms.sum(), rtol=(
            5e-5 if dtype == torch.float32 else 1e-10), atol=1e-12)


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


@pytest.mark.parametrize('dtype', DTYPES)
def test_tensor_power_one_and_inf(dtype):
    x = random_input(3, 2, 5, 6, dtype=dtype)
    p = torch.tensor([1.0, math.inf], dtype=dtype)
    y = generalized_mean(x, p)
    c = x.double().clamp(min=1e-6)
    assert_close(y, torch.stack(
        [c[:, 0].mean((1, 2)), c[:, 1].amax((1, 2))], dim=1))


def test_gradient_of_a_tensor_power_of_inf():
    """The channel of the maximum: as with the float, not NaN."""
    x = random_input(3, 2, 5, 6)
    p = torch.tensor([1.0, math.inf])
    dx, = grads(lambda x: generalized_mean(x, p), x)
    for channel, power in enumerate((1.0, math.inf)):
        expected, = grads(
            lambda x, p=power: generalized_mean(x, p), x[:, channel])
        torch.testing.assert_close(dx[:, channel], expected)


def test_lies_between_the_mean_and_the_maximum_and_grows_with_p():
    x = random_input(64, 50).abs()
    y = torch.stack([generalized_mean(x, p, 1) for p in (1.0, *POWERS[2:])])
    assert (y.diff(dim=0) > -1e-6 * y[1:]).all()
    assert (y[-1] <= x.amax(1)).all()


@pytest.mark.parametrize('dtype, p, value', [
    (torch.float16, 3.0, 41.0),
    (torch.float16, 6.5, 6.0),
    (torch.float16, 3.0, 65504.0),
    (torch.bfloat16, 20.0, 100.0),
    (torch.float32, 20.0, 100.0),
    (torch.float32, 50.0, 3e38),
    (torch.float64, 50.0, 1e300),
])
def test_finite_where_the_textbook_form_overflows(dtype, p, value):
    x = (random_input(2, 3, 4, 4, seed=1).abs().clamp(0.01, 1)).double()
    x = (x / x.amax((-2, -1), keepdim=True) * value).to(dtype)
    assert textbook(x, p, (-2, -1)).isinf().any()
    assert_close(generalized_mean(x, p), reference(x, p, (-2, -1)))
    power = torch.tensor([p], dtype=dtype)
    # Divided, because the true sum over all outputs may overflow.
    for gradient in grads(lambda x, p: generalized_mean(x, p) / 64, x, power):
        assert gradient.isfinite().all()


@pytest.mark.parametrize('function', [
    lambda x: generalized_mean(x, 1.0, 0),
    lambda x: gem_pool(x.view(1, 1, -1), 1.0),
    lambda x: segment_generalized_mean(x, x.new_zeros(4).long(), 1, 1.0),
], ids=['generalized_mean', 'gem_pool', 'segment'])
def test_mean_near_the_largest_float_is_finite(function):
    """The mean of four values is representable, their sum is not."""
    x = torch.full((4, ), 2e38)
    assert_close(function(x).flatten(), torch.tensor([2e38]).double())


@pytest.mark.parametrize('value', [1e-30, 1e-38, 1e-40])
@pytest.mark.parametrize('p', [0.5, 3.0, 20.0])
def test_tiny_values_do_not_vanish(p, value):
    """Without a clamp: relative to the maximum no power underflows."""
    x = torch.full((2, 4), value)
    torch.testing.assert_close(
        generalized_mean(x, p, 1, eps=None), x[:, 0], rtol=1e-4, atol=0)


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


@pytest.mark.parametrize('p', [3.0, 8.0, 20.0, 50.0])
def test_dead_channels_have_finite_gradients(p):
    """All of a channel at the clamp; p then has no influence at all."""
    x = torch.zeros(2, 3, 4, 4)
    x[:, 0] = random_input(2, 4, 4)
    power = torch.full((3, ), p)
    y = generalized_mean(x, power)
    assert_close(y, reference(x, p, (-2, -1)))
    dx, dp = grads(generalized_mean, x, power)
    assert dx.isfinite().all() and (dx[:, 1:] == 0).all()
    expected, = grads(
        lambda p: reference(x[:, :1], p, (-2, -1)), torch.tensor(p).double())
    assert dp[0].item() == pytest.approx(expected.item(), rel=1e-4)
    assert dp[1:].abs().max() < 1e-9
    if p >= 8:
        _, textbook_dp = grads(
            lambda x, p: textbook(x, p, (-2, -1)), x[:, 1], torch.tensor(p))
        assert not textbook_dp.isfinite()


@pytest.mark.parametrize('p', [0.5, 1.0, 3.0, 8.0])
def test_all_zero_without_clamp(p):
    x = torch.zeros(2, 5)
    assert generalized_mean(x, p, 1, eps=None).equal(torch.zeros(2))
    dx, dp = grads(
        lambda x, p: generalized_mean(x, p, 1, eps=None), x, torch.tensor(p))
    assert dx.isfinite().all() and dp == 0
    dx, = grads(lambda x: generalized_mean(x, p, 1, eps=None), x)
    assert dx.isfinite().all()


def test_gradient_at_the_clamp():
    """Passed at equality, as by clamp, and stopped below it."""
    x = torch.tensor([[1e-6, 0.0, 1.0]])
    dx, = grads(lambda x: generalized_mean(x, 1.0, 1), x)
    torch.testing.assert_close(dx, torch.tensor([[1., 0., 1.]]) / 3)


# --- masks ----------------------------------------------


@pytest.mark.parametrize('p', [0.5, 1.0, 3.0, 20.0, math.inf])
@pytest.mark.parametrize('dtype', DTYPES)
def test_mask_equals_selection(dtype, p):
    x = random_input(4, 3, 5, 5, dtype=dtype)
    mask = torch.rand(
        4, 3, 5, 5, generator=torch.Generator().manual_seed(1)) > 0.6
    mask[0, 0] = True
    mask[1, 1] = False
    for power in (p, torch.tensor([p], dtype=dtype)):
        y = generalized_mean(x, power, mask=mask)
        assert y.dtype == dtype
        for n, c in itertools.product(range(4), range(3)):
            selected = x[n, c][mask[n, c]].double().clamp(min=1e-6)
            if len(selected) == 0:
                expected = torch.zeros((), dtype=torch.float64)
            elif math.isinf(p):
                expected = selected.amax()
            else:
                expected = selected.pow(p).mean().pow(1 / p)
            assert_close(y[n, c], expected)


@pytest.mark.parametrize('p', [0.5, 1.0, 3.0, 8.0, math.inf])
@pytest.mark.parametrize('eps', [1e-6, None])
def test_mask_excludes_even_what_is_not_finite(p, eps):
    x = torch.tensor([[1., math.nan, 2., math.inf, 0.],
                      [math.nan, math.inf, 1., 3., -1.],
                      [math.nan] * 5])
    mask = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0] * 5]).bool()
    powers = [p] if math.isinf(p) else [p, torch.tensor(p)]
    for power in powers:
        y = generalized_mean(x, power, 1, eps=eps, mask=mask)
        assert y.isfinite().all() and y[2] == 0
        dx, = grads(
            lambda x, p=power: generalized_mean(
                x, p, 1, eps=eps, mask=mask), x)
        assert dx.isfinite().all() and (dx[~mask] == 0).all()
        kept = x[:2][mask[:2]].view(2, 2)
        assert_close(y[:2], generalized_mean(kept.double(), p, 1))
        expected, = grads(lambda x: generalized_mean(x, p, 1), kept.double())
        # (c/y)^(p-1): the power multiplies the rounding of y and of c/y.
        torch.testing.assert_close(
            dx[:2][mask[:2]].double(), expected.flatten(), atol=0.,
            rtol=2**-24 * (2 * min(p, 50.) + 4))


@pytest.mark.parametrize('p', [1.0, 3.0, 20.0])
def test_fully_masked_gives_zero_and_no_gradient(p):
    x = random_input(2, 3, 4)
    mask = torch.zeros(2, 1, 4, dtype=torch.bool)
    mask[0] = True
    power = torch.full((3, ), p)
    assert generalized_mean(x, power, 2, mask=mask)[1].equal(torch.zeros(3))
    dx, dp = grads(
        lambda x, p: generalized_mean(x, p, 2, mask=mask), x, power)
    expected, expected_dp = grads(
        lambda x, p: generalized_mean(x, p, 2), x[:1], power)
    torch.testing.assert_close(dx[:1], expected)
    torch.testing.assert_close(dp, expected_dp)
    assert (dx[1] == 0).all()


@pytest.mark.parametrize('shape', [(2, 3, 4, 5), (2, 1, 4, 5), (4, 5),
                                   (3, 1, 1), (5, )])
def test_mask_broadcasts(shape):
    x = random_input(2, 3, 4, 5)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.4
    full = mask.expand(x.shape).contiguous()
    assert generalized_mean(x, 2.5, (1, 3), mask=mask).equal(
        generalized_mean(x, 2.5, (1, 3), mask=full))


# --- powers ---------------------------------------------

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
    assert list(y.shape) == [
        1 if d in dims else size for d, size in enumerate(shape)]
    for place in itertools.product(*map(range, y.shape)):
        chosen = x[tuple(
            slice(None) if d in dims else i for d, i in enumerate(place))]
        channel = p.flatten()[0] if p.numel() == 1 else (
            p[place[shape.index(3)]] if p.dim() == 1 else
            p.expand(y.shape)[place])
        assert_close(y[place],
                     reference(chosen.flatten(), channel.item(), (0, )))


@pytest.mark.parametrize('dtype', HALF)
def test_half_power_is_computed_in_float32(dtype):
    """A module cast to half holds a half p, but 1/p must not round."""
    x = torch.zeros(1, 4, 128, 128, dtype=dtype)
    x[:, :, 0, 0] = 30.0
    p = torch.tensor([1.125, 1.5, 1.75, 3.5], dtype=dtype)
    for c in range(4):
        expected = reference(x[:, c], p[c].item(), (1, 2))
        assert_close(generalized_mean(x, p)[:, c], expected)
        assert_close(generalized_mean(x[:, c:c + 1], p[c])[:, 0], expected)


def test_other_power_dtypes():
    x = random_input(2, 3, 4, 5)
    expected = reference(x, 3.0, (-2, -1))
    for p in (3, torch.tensor(3), torch.full((3, ), 3),
              torch.full((3, ), 3.0, dtype=torch.float64)):
        y = generalized_mean(x, p)
        assert y.dtype == torch.float32
        assert_close(y, expected)


# --- shapes and bad arguments ---------------------------


def test_shapes_and_strides():
    x = random_input(4, 6, 5)
    for view in (x.transpose(0, 2), x[:, ::2], x[::2, :, 1:]):
        assert_close(generalized_mean(view, 3.0, 1),
                     reference(view, 3.0, (1, )))
    assert generalized_mean(x.new_empty(0, 3, 4, 4)).shape == (0, 3)
    assert generalized_mean(x.new_empty(2, 0, 4, 4), 1.0).shape == (2, 0)
    assert_close(generalized_mean(x[0, 0], 3.0, 0),
                 reference(x[0, 0], 3.0, (0, )))
    assert generalized_mean(x, 3.0, -1).equal(generalized_mean(x, 3.0, [2]))


def test_input_is_left_untouched():
    x = random_input(2, 3, 4)
    before = x.clone()
    generalized_mean(x, 3.0, 2)
    gem_pool(x, 3.0)
    segment_generalized_mean(x, torch.tensor([0, 1]), 2)
    assert x.equal(before)


@pytest.mark.parametrize('kwargs, error, words', [
    (dict(x=torch.zeros(2, 2, dtype=torch.int64)), TypeError, ['x', 'int64']),
    (dict(x=[[1.0]]), TypeError, ['x', 'list']),
    (dict(p=0.0), ValueError, ['p', '0.0']),
    (dict(p=-2.0), ValueError, ['p', '-2.0']),
    (dict(p=math.nan), ValueError, ['p', 'nan']),
    (dict(p='3'), ValueError, ['p', "'3'"]),
    (dict(p=torch.ones(7)), ValueError, ['p', '(7,)', '(2, 3, 1, 1)']),
    (dict(p=torch.ones(5, 1, 1, 1, 1)), ValueError,
     ['p', '(5, 1, 1, 1, 1)']),
    (dict(p=torch.ones(2, 3, 4, 1)), ValueError, ['p', '(2, 3, 4, 1)']),
    (dict(eps=0.0), ValueError, ['eps', '0.0']),
    (dict(eps=-1e-6), ValueError, ['eps', '-1e-06']),
    (dict(eps=math.inf), ValueError, ['eps', 'inf']),
    (dict(eps=math.nan), ValueError, ['eps', 'nan']),
    (dict(dim=4), ValueError, ['dim', '4']),
    (dict(dim=(1, -3)), ValueError, ['dim', '(1, -3)']),
    (dict(dim=()), ValueError, ['dim', '()']),
    (dict(mask=torch.ones(2, 3, 4, 5)), TypeError, ['mask', 'float32']),
    (dict(mask=torch.ones(7, dtype=torch.bool)), ValueError,
     ['mask', '(7,)']),
    (dict(mask=torch.ones(9, 2, 3, 4, 5, dtype=torch.bool)), ValueError,
     ['mask', '(9, 2, 3, 4, 5)']),
    (dict(x=torch.zeros(2, 3, 0, 5)), ValueError, ['x', '(2, 3, 0, 5)']),
])
def test_bad_arguments(kwargs, error, words):
    kwargs = dict(dict(x=torch.ones(2, 3, 4, 5)), **kwargs)
    with pytest.raises(error) as info:
        generalized_mean(**kwargs)
    assert all(word in str(info.value) for word in words)


@pytest.mark.parametrize('p', [0.1, 1e-3, 1e-6, 1e-8])
def test_small_powers_tend_to_the_geometric_mean(p):
    x = torch.tensor([1.0, 4.0, 2.0])
    exact = 2 * (1 + p * math.log(2)**2 / 3)
    assert generalized_mean(x, p, 0).item() == pytest.approx(
        exact, rel=2e-7 + p**2)


@pytest.mark.parametrize('p', [0.0, -1.0, math.nan])
def test_values_of_a_tensor_power(p):
    x = torch.rand(2, 3)
    for bad in (torch.tensor(p), torch.tensor([1.0, p, 2.0])):
        with pytest.raises(ValueError, match='p must be above 0, but got'):
            generalized_mean(x, bad, 0)
        with pytest.raises(ValueError, match='p must be above 0, but got'):
            segment_generalized_mean(x, torch.tensor([0, 1]), 2, bad)
