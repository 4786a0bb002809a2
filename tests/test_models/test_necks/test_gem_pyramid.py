"""``GeMPyramid`` against PyTorch's pooling, and in real detectors."""
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigplug.models import GeMPyramid

from ..detectors import features

SIZES = pytest.mark.parametrize(
    'size', [(8, 8), (7, 10), (5, 3), (1, 1), (1, 6), (2, 1)])


@SIZES
def test_mean_and_maximum_are_those_of_pytorch(size):
    x = features(2, 3, *size).abs() + 0.1
    mean, maximum = (
        GeMPyramid(4, p=p, p_trainable=False)((x, )) for p in (1, math.inf))
    assert len(mean) == len(maximum) == 4
    expected = [x.double(), x]
    for y, z in zip(mean, maximum):
        torch.testing.assert_close(
            y.double(), expected[0], rtol=1e-6, atol=0)
        assert z.equal(expected[1])
        expected = [
            F.avg_pool2d(expected[0], 2, 2, ceil_mode=True,
                         count_include_pad=False),
            F.max_pool2d(expected[1], 2, 2, ceil_mode=True)]


@pytest.mark.parametrize('dtype', [
    torch.float32, torch.float16, torch.bfloat16])
@SIZES
def test_equals_the_formula(size, dtype):
    """With values whose power is out of range, also under autocast."""
    x = (50 + features(2, 3, *size)).to(dtype).requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16,
                        enabled=dtype == torch.bfloat16):
        first, second = GeMPyramid(2, p=6.5)([x])
    assert first is x and second.dtype == dtype
    # A window over the border is one over the cells that there are.
    powers = F.avg_pool2d(x.double().clamp(min=1e-6).pow(6.5), 2, 2,
                          ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(
        second.double(), powers.pow(1 / 6.5),
        rtol=max(1e-6, torch.finfo(dtype).eps), atol=0)
    second.float().sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()


@pytest.mark.parametrize('container', [tuple, list])
def test_levels(container):
    levels = container([features(2, 3, 8, 8), features(2, 3, 5, 4)])
    outs = GeMPyramid(4)(levels)
    assert type(outs) is container and len(outs) == 4
    assert outs[0] is levels[0] and outs[1] is levels[1]
    assert outs[2].equal(GeMPyramid(2)(levels[1])[1])
    assert outs[3].equal(GeMPyramid(2)(outs[2])[1])
    assert len(GeMPyramid(2)(levels)) == 2


def test_extra_levels_hold_no_negative_values():
    extra = GeMPyramid(2, eps=1e-3)(-features(2, 3, 8, 8).abs())[1]
    torch.testing.assert_close(extra, torch.full_like(extra, 1e-3))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='needs a C++ compiler')
def test_compile_behind_a_convolution():
    """For which the compiler changes the memory format; sizes are open."""
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), GeMPyramid(2))
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for size in (7, 10), (12, 9):
        x = features(2, 3, *size).requires_grad_()
        grads = []
        for function in (compiled, model):
            loss = sum(y.square().sum() for y in function(x))
            grads.append(torch.autograd.grad(loss, [x, *model.parameters()]))
        for got, expected in zip(*grads, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_export_with_open_sizes():
    """One program for odd and even sizes."""
    neck = GeMPyramid(2)
    opened = {dim: torch.export.Dim.DYNAMIC for dim in (0, 2, 3)}
    program = torch.export.export(
        neck, (features(2, 3, 14, 10), ), dynamic_shapes=(opened, )).module()
    for shape in ((1, 3, 9, 11), (3, 3, 16, 12)):
        x = features(*shape)
        torch.testing.assert_close(program(x)[1], neck(x)[1])


@pytest.mark.parametrize('num_outs', [0, 2.0, None])
def test_bad_number_of_levels(num_outs):
    with pytest.raises(ValueError, match=f'num_outs .*{num_outs}'):
        GeMPyramid(num_outs)


def test_bad_levels():
    x = features(2, 3, 4, 4)
    for levels in [x, x], []:
        words = f'num_outs=1 .* of {len(levels)}'
        with pytest.raises(ValueError, match=words):
            GeMPyramid(1)(levels)
