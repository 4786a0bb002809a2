"""The generalised mean of segments against loops."""
import math

import pytest
import torch

from sigplug.ops import segment_generalized_mean

from .pooling import grads, random_input, reference
from .tolerances import assert_close


def random_segments(count, num_segments):
    """Unsorted, with some segments empty and one of a single element."""
    index = torch.randint(1, num_segments - 2, (count, ))
    index[count // 2] = num_segments - 2
    return index


def loop(x, index, num_segments, p):
    """Segment by segment, in float64; differentiable."""
    rows = [x[index == s] for s in range(num_segments)]
    return torch.stack([
        reference(row, p, 0) if len(row) else x.new_zeros(
            x.shape[1:], dtype=torch.float64) for row in rows])


@pytest.mark.parametrize('shape', [(60, ), (60, 3), (60, 3, 2)])
@pytest.mark.parametrize('p', [0.5, 1.0, 3.0, 50.0])
def test_equals_loop(shape, p):
    """In its values and gradients, of which an empty segment has none."""
    x, p = random_input(*shape), torch.tensor(p)
    index = random_segments(60, 12)
    y = segment_generalized_mean(x, index, 12, p)
    assert y.shape == (12, *shape[1:])
    assert_close(y, loop(x, index, 12, p))
    assert (y[0] == 0).all() and (y[11] == 0).all()
    found = grads(
        lambda x, p: segment_generalized_mean(x, index, 12, p), x, p)
    exact = grads(
        lambda x, p: loop(x, index, 12, p), x.double(), p.double())
    for grad, expected in zip(found, exact):
        torch.testing.assert_close(
            grad.double(), expected, rtol=5e-5, atol=1e-6)


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
