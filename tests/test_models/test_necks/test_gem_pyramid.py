"""``GeMPyramid`` against PyTorch's pooling, and in real detectors."""
import copy
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS as MMDET
from mmdet3d.registry import MODELS as MMDET3D
from mmengine.registry import DefaultScope
from torch import nn

from sigplug.models import GeMPyramid

from ..detectors import (
    centerpoint,
    clouds,
    features,
    images,
    overfit,
    retinanet,
    second_fpn,
)

CONFIG = 'gem_pyramid/retinanet_r50_fpn-gempyramid_1x_coco.py'
SIZES = [(8, 8), (7, 10), (5, 3), (1, 1), (1, 6), (2, 1)]


@pytest.mark.parametrize('size', SIZES)
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


@pytest.mark.parametrize('size', SIZES)
def test_equals_the_formula(size):
    """Windows that end at the border, one by one."""
    x = features(2, 3, *size)
    first, second = GeMPyramid(2, p=4.0)([x])
    assert first is x
    height, width = (math.ceil(n / 2) for n in size)
    assert second.shape == (2, 3, height, width)
    c = x.double().clamp(min=1e-6)
    for i in range(height):
        for j in range(width):
            cells = c[:, :, 2 * i:2 * i + 2, 2 * j:2 * j + 2].flatten(2)
            torch.testing.assert_close(
                second[:, :, i, j].double(), cells.pow(4).mean(2).pow(1 / 4),
                rtol=1e-6, atol=0)


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
    x = -features(2, 3, 8, 8).abs()
    x.requires_grad_()
    extra = GeMPyramid(2, eps=1e-3)(x)[1]
    torch.testing.assert_close(extra, torch.full_like(extra, 1e-3))
    extra.sum().backward()
    assert not x.grad.any()


@pytest.mark.parametrize('size', [(4, 4), (3, 5), (1, 1)])
def test_gradients(size):
    neck = GeMPyramid(3).double()
    x = (features(1, 2, *size).double().abs() + 0.1).requires_grad_()

    def function(x, p):
        return torch.func.functional_call(
            neck, {'gem.p': p}, ([x], ))[1:]

    assert torch.autograd.gradcheck(function, (x, neck.gem.p))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('size', SIZES)
def test_half_types(dtype, size):
    """Values at which the textbook form overflows."""
    x = (50 + features(2, 3, *size)).to(dtype).requires_grad_()
    with torch.autocast('cpu', dtype=dtype):
        outs = GeMPyramid(3, p=6.5)([x])
    expected = GeMPyramid(3, p=6.5)([x.double()])
    for y, exact in zip(outs, expected):
        assert y.dtype == dtype
        torch.testing.assert_close(
            y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0)
    outs[-1].float().sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()


def test_compile():
    torch._dynamo.reset()
    neck, x = GeMPyramid(3), features(2, 3, 7, 10)
    compiled = torch.compile(neck, fullgraph=True, backend='aot_eager')
    for y, expected in zip(compiled([x]), neck([x]), strict=True):
        torch.testing.assert_close(y, expected)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='needs a C++ compiler')
@pytest.mark.parametrize('dynamic', [False, True])
def test_compile_behind_a_convolution(dynamic):
    """For which the compiler changes the memory format; sizes may be open."""
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), GeMPyramid(2))
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for size in ((7, 10), (12, 9)) if dynamic else ((7, 10), ):
        x = features(2, 3, *size).requires_grad_()
        grads = []
        for function in (compiled, model):
            loss = sum(y.square().sum() for y in function(x))
            grads.append(torch.autograd.grad(loss, [x, *model.parameters()]))
        for got, expected in zip(*grads, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_export_with_open_sizes():
    """One program for odd and even sizes."""
    neck = GeMPyramid(3)
    opened = {dim: torch.export.Dim.DYNAMIC for dim in (0, 2, 3)}
    program = torch.export.export(
        neck, (features(2, 3, 14, 10), ), dynamic_shapes=(opened, )).module()
    for shape in ((1, 3, 9, 11), (3, 3, 16, 12)):
        x = features(*shape)
        for y, expected in zip(program(x), neck(x), strict=True):
            torch.testing.assert_close(y, expected)


@pytest.mark.parametrize('num_outs', [0, -1, 2.0, None])
def test_bad_number_of_levels(num_outs):
    with pytest.raises(ValueError, match=f'num_outs .*{num_outs}'):
        GeMPyramid(num_outs)


def test_bad_levels():
    x = features(2, 3, 4, 4)
    with pytest.raises(ValueError, match='num_outs=1 .* of 2'):
        GeMPyramid(1)([x, x])
    with pytest.raises(ValueError, match='num_outs=1 .* of 0'):
        GeMPyramid(1)([])
    with pytest.raises(TypeError, match='inputs .* NoneType'):
        GeMPyramid(1)(None)


FPN = dict(type='mmdet.FPN', in_channels=[4, 8], out_channels=6, num_outs=2)


@pytest.mark.parametrize('registry, scope', [
    (MMDET, 'mmdet'), (MMDET3D, 'mmdet3d')])
@pytest.mark.parametrize('prefix', ['', 'sigplug.'])
def test_behind_a_neck(registry, scope, prefix):
    """In a list and around it: the same levels, and stock checkpoints."""
    ours = dict(type=f'{prefix}GeMPyramid', num_outs=4)
    with DefaultScope.overwrite_default_scope(scope):
        listed = registry.build([FPN, ours])
        around = registry.build(dict(ours, inner=FPN))
        stock = registry.build(FPN)
    missing, unexpected = around.load_state_dict(
        stock.state_dict(), strict=False)
    assert (missing, unexpected) == (['gem.p'], [])
    listed[0].load_state_dict(stock.state_dict())
    levels = features(2, 4, 9, 6), features(2, 8, 5, 3)
    expected = stock(levels)
    for neck in (listed, around):
        outs = neck(levels)
        assert [tuple(y.shape[2:]) for y in outs] == [
            (9, 6), (5, 3), (3, 2), (2, 1)]
        assert all(y.equal(x) for y, x in zip(outs, expected))
    again = GeMPyramid(4, inner=FPN)
    again.load_state_dict(around.state_dict(), strict=True)
    fixed = GeMPyramid(4, p_trainable=False, inner=FPN)
    fixed.load_state_dict(stock.state_dict(), strict=True)
    fixed.load_state_dict(fixed.state_dict(), strict=True)


def test_retinanet_learns():
    model = retinanet(CONFIG)
    model.init_weights()
    inputs, samples = images()
    strides = [32 * 2**i for i in range(3)]
    levels = model.extract_feat(inputs)
    assert [tuple(x.shape[2:]) for x in levels[2:]] == [
        (math.ceil(96 / n), math.ceil(160 / n)) for n in strides]
    losses = overfit(model, inputs, samples, 20)
    assert losses[-1] < 0.3 * losses[0], losses
    assert model.neck[1].gem.p.grad.item() != 0
    results = model.eval().predict(inputs, copy.deepcopy(samples))
    assert results[0].pred_instances.scores.isfinite().all()


def test_centerpoint_learns_with_one_more_level():
    model = centerpoint(
        [dict(type='GeMPyramid', num_outs=4), second_fpn(4)], in_channels=128)
    model.init_weights()
    data = clouds(model)
    losses = overfit(model, data['inputs'], data['data_samples'], 12)
    assert losses[-1] < 0.1 * losses[0], losses
    assert model.pts_neck[0].gem.p.item() != 3.0
    results = model.eval().predict(data['inputs'], data['data_samples'])
    assert results[0].pred_instances_3d.scores_3d.isfinite().all()
