"""The generalised mean of segments against loops."""
import math

import pytest
import torch

from sigplug.ops import generalized_mean, segment_generalized_mean

from .pooling import POWERS, grads, random_input, reference
from .tolerances import DTYPES, assert_close


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
def test_equals_loop(dtype, p):
    index = random_segments(60, 12)
    for shape in ((60, ), (60, 3), (60, 3, 2)):
        x = random_input(*shape, dtype=dtype)
        y = segment_generalized_mean(x, index, 12, p)
        assert y.dtype == dtype and y.shape == (12, *shape[1:])
        assert_close(y, segment_reference(x, index, 12, p))
        assert (y[0] == 0).all() and (y[11] == 0).all()


@pytest.mark.parametrize('p_shape', [(), (1, ), (3, )])
def test_with_tensor_power(p_shape):
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
def test_gradient(p):
    x, index = random_input(60, 3), random_segments(60, 12)
    dx, = grads(lambda x: segment_generalized_mean(x, index, 12, p), x)
    expected, = grads(
        lambda x: segment_reference(x, index, 12, p), x.double())
    torch.testing.assert_close(dx.double(), expected, rtol=2e-5, atol=1e-9)


def test_equals_masked_mean():
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
def test_finite_where_the_textbook_form_overflows(dtype, p, value):
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
def test_of_nothing(p):
    index = torch.empty(0, dtype=torch.long)
    y = segment_generalized_mean(torch.empty(0, 3), index, 2, p)
    assert y.equal(torch.zeros(2, 3))
    assert segment_generalized_mean(
        torch.empty(0, 3), index, 0, p).shape == (0, 3)
    assert segment_generalized_mean(
        torch.ones(4, 0), torch.zeros(4).long(), 2, p).shape == (2, 0)


@pytest.mark.parametrize('dtype', [torch.int32, torch.int16, torch.uint8])
def test_index_dtypes(dtype):
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
def test_bad_arguments(kwargs, error, words):
    good = dict(x=torch.ones(4, 3), index=torch.zeros(4).long(),
                num_segments=4)
    with pytest.raises(error) as info:
        segment_generalized_mean(**dict(good, **kwargs))
    assert all(word in str(info.value) for word in words)


@pytest.mark.parametrize('p', [1.0, 3.0, math.inf])
@pytest.mark.parametrize('bad', [-1, 3])
def test_index_out_of_range(bad, p):
    with pytest.raises(ValueError, match=rf'index.*{bad}'):
        segment_generalized_mean(
            torch.ones(3, 2), torch.tensor([0, bad, 1]), 3, p)
