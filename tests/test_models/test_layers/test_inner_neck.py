"""Necks around or behind another one: levels, checkpoints, errors."""
import pytest
from mmdet.registry import MODELS as MMDET
from mmdet3d.registry import MODELS as MMDET3D
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from sigplug.models import GeMContext, GeMPyramid
from sigplug.models.layers.inner_neck import InnerNeck

from ..detectors import features

FPN = dict(type='mmdet.FPN', in_channels=[4, 8], out_channels=6, num_outs=2)


@pytest.mark.parametrize('registry, scope', [
    (MMDET, 'mmdet'), (MMDET3D, 'mmdet3d')])
@pytest.mark.parametrize('prefix', ['', 'sigplug.'])
def test_around_and_behind_a_neck(registry, scope, prefix):
    """The same levels, and checkpoints of the stock neck."""
    pyramid = dict(type=f'{prefix}GeMPyramid', num_outs=4)
    context = dict(type=f'{prefix}GeMContext', in_channels=6)
    with DefaultScope.overwrite_default_scope(scope):
        stock, listed, around, both = map(registry.build, (
            FPN, [FPN, pyramid], dict(pyramid, inner=FPN),
            dict(context, inner=[FPN, pyramid])))
    missing, unexpected = around.load_state_dict(
        stock.state_dict(), strict=False)
    assert (missing, unexpected) == (['gem.p'], [])
    listed[0].load_state_dict(stock.state_dict())
    both.inner.load_state_dict(listed.state_dict())
    levels = features(2, 4, 9, 6), features(2, 8, 5, 3)
    expected = stock(levels)
    for neck in listed, around, both:
        outs = neck(levels)
        assert type(outs) is tuple
        assert [tuple(y.shape[2:]) for y in outs] == [
            (9, 6), (5, 3), (3, 2), (2, 1)]
        assert all(y.equal(x) for y, x in zip(outs, expected))
    again = GeMPyramid(4, inner=FPN)
    again.load_state_dict(around.state_dict(), strict=True)
    fixed = GeMPyramid(4, p_trainable=False, inner=FPN)
    fixed.load_state_dict(stock.state_dict(), strict=True)
    fixed.load_state_dict(fixed.state_dict(), strict=True)


@pytest.mark.parametrize('load', [
    lambda model, state: model.load_state_dict(state, strict=False),
    load_state_dict], ids=['torch', 'mmengine'])
def test_checkpoints_of_a_model(load):
    """That of the stock model, and its own strictly."""
    stock, ours = (nn.ModuleDict(dict(neck=neck)) for neck in (
        MMDET.build(FPN), GeMContext(6, inner=FPN)))
    load(ours, stock.state_dict())
    state = ours.state_dict()
    for key, value in stock.state_dict().items():
        assert state[key.replace('neck.', 'neck.inner.')].equal(value)
    nn.init.ones_(state['neck.contexts.0.conv2.bias'])
    ours.load_state_dict(state, strict=True)
    assert ours.neck.contexts[0].conv2.bias.all()


def test_init_weights_reaches_the_inner_neck():
    """FPN's Xavier, which a plain module in between would cut off."""
    init_cfg = dict(type='Constant', layer='Conv2d', val=0.5)
    model = BaseModule()
    model.neck = GeMContext(6, inner=dict(FPN, init_cfg=init_cfg))
    model.init_weights()
    assert (model.neck.inner.lateral_convs[0].conv.weight == 0.5).all()


@pytest.mark.parametrize('inner', [
    'FPN', dict(tpye='FPN'), [], [FPN, 3]], ids=repr)
def test_bad_config(inner):
    with pytest.raises(TypeError, match='inner must be a config'):
        InnerNeck(inner)
