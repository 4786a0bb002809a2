"""Generalised means against float64, avg_pool, max_pool and loops."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from sigplug.ops import gem_pool, generalized_mean, segment_generalized_mean

from .tolerances import DTYPES, assert_close

POWERS = (0.5, 1.0, 2.5, 3.0, 6.5, 20.0, 50.0)
HALF = (torch.float16, torch.bfloat16)


def reference(x, p, dims, eps=1e-6, mask=None):
    """Power mean in float64 by logarithms, which never overflow."""
    c = x.double() if eps is None else x.double().clamp(min=eps)
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else (
        mask.expand_as(x))
    count = mask.sum(dims, keepdim=True)
    logs = (p * c.log()).masked_fill(~mask, -math.inf)
    mean = logs.logsumexp(dims, keepdim=True) - count.double().log()
    y = (mean / p).exp()
    return y.squeeze(dims)


def textbook(x, p, dims, eps=1e-6):
    """The usual form, in the dtype of ``x``."""
    return x.clamp(min=eps).pow(p).mean(dims).pow(1 / p)


def grads(function, *inputs):
    """Gradients of the sum of an output with respect to the inputs."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*inputs).sum(), inputs)


def random_input(*shape, seed=0, dtype=torch.float32):
    """Positive and negative values over several orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return (x * torch.exp(torch.randn(shape, generator=generator))).to(dtype)


# --- generalized_mean: values and gradients -------------------------------


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


# --- generalized_mean: masks ----------------------------------------------


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


# --- generalized_mean: powers ---------------------------------------------

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


# --- generalized_mean: shapes and bad arguments ---------------------------


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


# --- gem_pool -------------------------------------------------------------


def test_pool_worked_example_of_average_pooling():
    x = torch.rand(10, 3, 4, 4)
    y = gem_pool(x, p=1.0, kernel_size=(4, 4))
    assert y.shape == (10, 3, 1, 1)
    torch.testing.assert_close(y, F.avg_pool2d(x, 4))


def test_pool_worked_example_of_five_by_five():
    x = torch.ones(1, 5, 5)
    x[0, 2] = torch.tensor([0., 0., 0., 1., 1.])
    y = gem_pool(x, p=1.0, kernel_size=4)
    assert y.shape == (1, 1, 1) and round(y.item(), 4) == 0.8125
    y = gem_pool(x, p=1.0, kernel_size=4, stride=1)
    expected = torch.tensor([[[0.8125, 0.8750], [0.8125, 0.8750]]])
    torch.testing.assert_close(y, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize('p', [6.5, torch.tensor([6.5])])
def test_pool_worked_example_of_opengait(p):
    eps = 1e-6
    x = random_input(4, 3, 16, 11)
    expected = F.avg_pool2d(
        x.clamp(min=eps).pow(6.5), (1, x.size(-1))).pow(1 / 6.5)
    y = gem_pool(x, p, kernel_size=(1, None), eps=eps)
    assert y.shape == (4, 3, 16, 1)
    torch.testing.assert_close(y, expected, rtol=5e-6, atol=0)


WINDOWS = [
    # shape of x, kernel_size, stride, padding
    ((2, 3, 11), (3, ), None, 0),
    ((2, 3, 11), [4], [2], [2]),
    ((2, 3, 11), None, None, 0),
    ((2, 3, 9, 8), 3, None, 0),
    ((2, 3, 9, 8), (3, 2), (2, 1), (1, 0)),
    ((2, 3, 9, 8), [4, 4], 1, 2),
    ((2, 3, 9, 8), None, None, 0),
    ((2, 3, 9, 8), (None, 2), None, 0),
    ((2, 3, 9, 8), (3, None), (None, 1), (1, 0)),
    ((2, 3, 9, 8), (None, None), None, 0),
    ((2, 3, 9, 8), 2, 5, 1),
    ((3, 9, 8), (3, 2), (2, 1), (1, 1)),
    ((3, 9, 8), 3, 2, 0),
    ((3, 9, 8), (1, None), None, 0),
    ((2, 3, 5, 6, 4), 2, None, 0),
    ((2, 3, 5, 6, 4), (3, 2, 2), (1, 2, 1), (1, 1, 0)),
    ((2, 3, 5, 6, 4), (None, 2, 1), None, 0),
    ((2, 3, 5, 6, 4), None, None, 0),
]


def torch_windows(shape, kernel, stride, padding):
    """The same windows in the arguments of ``avg_pool*d``."""
    dims = 1 if len(shape) == 3 and kernel in (None, (3, ), [4]) else (
        2 if len(shape) == 3 else len(shape) - 2)

    def fill(value, default):
        value = value if isinstance(value, (tuple, list)) else [value] * dims
        return [d if v is None else v for v, d in zip(value, default)]

    kernel = fill(kernel, shape[-dims:])
    return dims, kernel, fill(stride, kernel), fill(padding, [0] * dims)


@pytest.mark.parametrize('shape, kernel, stride, padding', WINDOWS)
def test_pool_equals_torch_pools(shape, kernel, stride, padding):
    x = random_input(*shape)
    dims, *window = torch_windows(shape, kernel, stride, padding)
    avg_pool = getattr(F, f'avg_pool{dims}d')
    max_pool = getattr(F, f'max_pool{dims}d')

    for p in (0.5, 1.0, 3.0, 6.5, 20.0):
        y = gem_pool(x, p, kernel, stride, padding)
        expected = avg_pool(x.double().clamp(min=1e-6)**p, *window)**(1 / p)
        assert_close(y, expected)
    c = x.clamp(min=1e-6)
    assert gem_pool(x, math.inf, kernel, stride, padding).equal(
        max_pool(c, *window))


@pytest.mark.parametrize('shape, kernel, stride, padding', WINDOWS[1::3])
@pytest.mark.parametrize('p', [0.5, 1.0, 3.0])
def test_pool_gradients(shape, kernel, stride, padding, p):
    x = random_input(*shape, dtype=torch.float64)
    dims, *window = torch_windows(shape, kernel, stride, padding)
    avg_pool = getattr(F, f'avg_pool{dims}d')
    power = torch.tensor([p], dtype=torch.float64)
    actual = grads(
        lambda x, p: gem_pool(x, p, kernel, stride, padding), x, power)
    # With exponents of Python, 0 ** p of the padding has no gradient.
    expected = grads(
        lambda x, p: avg_pool(x.clamp(min=1e-6)**p, *window)**(1 / p), x,
        power)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    dx, = grads(lambda x: gem_pool(x, p, kernel, stride, padding), x)
    torch.testing.assert_close(dx, expected[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('shape, kernel', [
    ((2, 3, 8), (2, )),
    ((2, 3, 8), None),
    ((2, 3, 8, 6), (2, 3)),
    ((2, 3, 8, 6), None),
    ((3, 8, 6), (2, 3)),
    ((2, 3, 4, 4, 6), 2),
])
def test_pool_power_per_channel(shape, kernel):
    x = random_input(*shape)
    p = torch.tensor([1.0, 3.0, 9.5])
    y = gem_pool(x, p, kernel)
    channel_dim = 0 if len(shape) == 3 and shape[0] == 3 else 1
    for c in range(3):
        alone = gem_pool(x.narrow(channel_dim, c, 1), p[c].item(), kernel)
        torch.testing.assert_close(y.narrow(channel_dim, c, 1), alone)
    dp = grads(lambda p: gem_pool(x, p, kernel), p)[0]
    assert dp.shape == (3, ) and dp.isfinite().all()


@pytest.mark.parametrize('dtype', DTYPES)
def test_pool_keeps_the_dtype(dtype):
    x = random_input(2, 3, 8, 6, dtype=dtype)
    for p in (1.0, 6.5, math.inf, torch.tensor([3.0], dtype=dtype)):
        y = gem_pool(x, p, 2, 1, 1)
        assert y.dtype == dtype
        exponent = p if isinstance(p, float) else p.item()
        c = x.double().clamp(min=1e-6)
        assert_close(y, F.max_pool2d(c, 2, 1, 1) if math.isinf(exponent) else
                     F.avg_pool2d(c**exponent, 2, 1, 1)**(1 / exponent))


def test_pool_windows_that_overflow_or_are_dead():
    x = torch.zeros(1, 1, 4, 8)
    x[..., :4] = 100.0
    p = torch.tensor([20.0])
    y = gem_pool(x, p, 2)
    expected = torch.tensor([[100., 100., 1e-6, 1e-6]] * 2).double()
    assert_close(y[0, 0], expected)
    for gradient in grads(lambda x, p: gem_pool(x, p, 2), x, p):
        assert gradient.isfinite().all()


def test_pool_empty_batch_and_strides():
    assert gem_pool(torch.empty(0, 3, 4, 4), 3.0, 2).shape == (0, 3, 2, 2)
    x = random_input(2, 8, 6, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(
        gem_pool(x, 3.0, 2), gem_pool(x.contiguous(), 3.0, 2))


@pytest.mark.parametrize('kwargs, words', [
    (dict(kernel_size=0), ['kernel_size', '0']),
    (dict(kernel_size=-1), ['kernel_size', '-1']),
    (dict(kernel_size=2.5), ['kernel_size', '2.5']),
    (dict(kernel_size=(2.5, 2)), ['kernel_size', '2.5']),
    (dict(kernel_size=(1, 2, 3)), ['kernel_size', '(1, 2, 3)']),
    (dict(kernel_size=9), ['kernel_size', '9']),
    (dict(kernel_size=2, stride=0), ['stride', '0']),
    (dict(kernel_size=2, stride=(1, 2, 3)), ['stride', '(1, 2, 3)']),
    (dict(kernel_size=2, padding=2), ['padding', '2']),
    (dict(kernel_size=2, padding=-1), ['padding', '-1']),
    (dict(kernel_size=2, padding=(1, )), ['padding', '(1,)']),
    (dict(p=0.0), ['p', '0.0']),
    (dict(p=torch.ones(5)), ['p', '(5,)']),
    (dict(eps=0.0), ['eps', '0.0']),
    (dict(x=torch.ones(3, 4)), ['x', '(3, 4)']),
    (dict(x=torch.ones(1, 1, 2, 2, 2, 2)), ['x', '(1, 1, 2, 2, 2, 2)']),
])
def test_pool_bad_arguments(kwargs, words):
    kwargs = dict(dict(x=torch.ones(2, 3, 4, 5)), **kwargs)
    with pytest.raises(ValueError) as info:
        gem_pool(**kwargs)
    assert all(word in str(info.value) for word in words)


def test_pool_bad_input():
    with pytest.raises(TypeError, match='^x .*int64'):
        gem_pool(torch.ones(2, 3, 4, 5).long())


# --- segment_generalized_mean ---------------------------------------------


def segment_reference(x, index, num_segments, p, eps=1e-6):
    """A loop over the segments, in float64; differentiable."""
    c = x.double().clamp(min=eps)
    rows = []
    for s in range(num_segments):
        chosen = c[index == s]
        if len(chosen) == 0:
            rows.append(torch.zeros_like(c[0]))
        elif isinstance(p, float) and math.isinf(p):
            rows.append(chosen.amax(0))
        else:
            rows.append(chosen.pow(p).mean(0).pow(1 / p))
    return torch.stack(rows)


def random_segments(count, num_segments, seed=0):
    """Unsorted, with some segments empty and one of a single element."""
    index = torch.randint(
        1, num_segments - 2, (count, ),
        generator=torch.Generator().manual_seed(seed))
    index[count // 2] = num_segments - 2
    return index


@pytest.mark.parametrize('p', [*POWERS, math.inf])
@pytest.mark.parametrize('dtype', DTYPES)
def test_segment_equals_loop(dtype, p):
    index = random_segments(60, 12)
    for shape in ((60, ), (60, 3), (60, 3, 2)):
        x = random_input(*shape, dtype=dtype)
        y = segment_generalized_mean(x, index, 12, p)
        assert y.dtype == dtype and y.shape == (12, *shape[1:])
        assert_close(y, segment_reference(x, index, 12, p))
        assert (y[0] == 0).all() and (y[11] == 0).all()


@pytest.mark.parametrize('p_shape', [(), (1, ), (3, )])
def test_segment_with_tensor_power(p_shape):
    x, index = random_input(60, 3), random_segments(60, 12)
    p = torch.linspace(1.0, 8.0, math.prod(p_shape)).view(p_shape)
    assert_close(
        segment_generalized_mean(x, index, 12, p),
        segment_reference(x, index, 12, p.double()))
    dx, dp = grads(
        lambda x, p: segment_generalized_mean(x, index, 12, p), x, p)
    expected, expected_dp = grads(
        lambda x, p: segment_reference(x, index, 12, p), x.double(),
        p.double())
    torch.testing.assert_close(dx.double(), expected, rtol=2e-5, atol=1e-9)
    torch.testing.assert_close(dp.double(), expected_dp, rtol=5e-5, atol=1e-6)


@pytest.mark.parametrize('p', [0.5, 1.0, 3.0, 20.0, math.inf])
def test_segment_gradient(p):
    x, index = random_input(60, 3), random_segments(60, 12)
    dx, = grads(lambda x: segment_generalized_mean(x, index, 12, p), x)
    expected, = grads(
        lambda x: segment_reference(x, index, 12, p), x.double())
    torch.testing.assert_close(dx.double(), expected, rtol=2e-5, atol=1e-9)


def test_segment_equals_masked_mean():
    """The dense form of the same points, and float p against tensor p."""
    x = random_input(7, 5, 3)
    count = torch.tensor([5, 1, 0, 3, 2, 5, 4])
    mask = torch.arange(5) < count.unsqueeze(1)
    dense = generalized_mean(x, 3.0, 1, mask=mask.unsqueeze(-1))
    ragged = segment_generalized_mean(x[mask], mask.nonzero()[:, 0], 7, 3.0)
    torch.testing.assert_close(ragged, dense, rtol=1e-6, atol=0)
    for p in (1.0, math.inf):
        dense = generalized_mean(x, p, 1, mask=mask.unsqueeze(-1))
        ragged = segment_generalized_mean(x[mask], mask.nonzero()[:, 0], 7, p)
        torch.testing.assert_close(ragged, dense, rtol=1e-6, atol=0)


@pytest.mark.parametrize('dtype, p, value', [
    (torch.float16, 3.0, 41.0), (torch.float32, 20.0, 100.0),
    (torch.float32, 50.0, 3e38)
])
def test_segment_finite_where_the_textbook_form_overflows(dtype, p, value):
    x = torch.tensor([1.0, 0.5, 0.0, 0.0], dtype=torch.float64) * value
    x, index = x.to(dtype), torch.tensor([0, 0, 2, 2])
    power = torch.tensor([p], dtype=dtype)
    y = segment_generalized_mean(x, index, 3, power)
    expected = reference(x[:2], p, (0, )).view(1)
    assert_close(y[:1], expected)
    assert y[1] == 0 and y[2].item() == pytest.approx(1e-6, rel=0.05)
    for gradient in grads(
            lambda x, p: segment_generalized_mean(x, index, 3, p), x, power):
        assert gradient.isfinite().all()


@pytest.mark.parametrize('p', [1.0, 3.0, math.inf, torch.tensor([3.0])])
def test_segment_of_nothing(p):
    index = torch.empty(0, dtype=torch.long)
    y = segment_generalized_mean(torch.empty(0, 3), index, 2, p)
    assert y.equal(torch.zeros(2, 3))
    assert segment_generalized_mean(
        torch.empty(0, 3), index, 0, p).shape == (0, 3)
    assert segment_generalized_mean(
        torch.ones(4, 0), torch.zeros(4).long(), 2, p).shape == (2, 0)


@pytest.mark.parametrize('dtype', [torch.int32, torch.int16, torch.uint8])
def test_segment_index_dtypes(dtype):
    x, index = random_input(20, 3), random_segments(20, 8)
    assert segment_generalized_mean(x, index.to(dtype), 8).equal(
        segment_generalized_mean(x, index, 8))


@pytest.mark.parametrize('kwargs, error, words', [
    (dict(x=torch.ones(4, 3).long()), TypeError, ['x', 'int64']),
    (dict(index=torch.zeros(4)), TypeError, ['index', 'float32']),
    (dict(index=torch.zeros(4, dtype=torch.bool)), TypeError,
     ['index', 'bool']),
    (dict(index=torch.zeros(5).long()), ValueError, ['index', '(5,)']),
    (dict(index=torch.zeros(4, 3).long()), ValueError, ['index', '(4, 3)']),
    (dict(num_segments=-1), ValueError, ['num_segments', '-1']),
    (dict(p=0.0), ValueError, ['p', '0.0']),
    (dict(p=torch.ones(5)), ValueError, ['p', '(5,)']),
    (dict(p=torch.ones(4, 1) * 2), ValueError, ['p', '(4, 1)']),
    (dict(eps=0.0), ValueError, ['eps', '0.0']),
])
def test_segment_bad_arguments(kwargs, error, words):
    good = dict(x=torch.ones(4, 3), index=torch.zeros(4).long(),
                num_segments=4)
    with pytest.raises(error) as info:
        segment_generalized_mean(**dict(good, **kwargs))
    assert all(word in str(info.value) for word in words)


@pytest.mark.parametrize('p', [1.0, 3.0, math.inf])
@pytest.mark.parametrize('bad', [-1, 3])
def test_segment_index_out_of_range(bad, p):
    with pytest.raises(ValueError, match=rf'index.*{bad}'):
        segment_generalized_mean(
            torch.ones(3, 2), torch.tensor([0, bad, 1]), 3, p)
