"""``ClipSigmoid``: the function as a layer, alone and in a ConvModule."""
import pytest
import torch
from mmcv.cnn import ConvModule, build_activation_layer

from sigplug.models import ClipSigmoid
from sigplug.ops import clip_sigmoid


@pytest.mark.parametrize('kwargs, bounds', [
    (dict(), (1e-4, 1 - 1e-4)),
    (dict(eps=0.01), (0.01, 0.99)),
    (dict(min_val=0.01, max_val=0.99), (0.01, 0.99)),
    (dict(min_val=0.2), (0.2, 1 - 1e-4)),
    (dict(eps=0.1, max_val=0.7), (0.1, 0.7)),
])
@pytest.mark.parametrize('grad', ['zero', 'straight_through'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_equals_the_function(kwargs, bounds, grad, dtype):
    x = torch.linspace(-12, 12, 101).to(dtype).requires_grad_()
    y = ClipSigmoid(grad=grad, **kwargs)(x)
    expected = clip_sigmoid(x, *bounds, grad=grad)
    assert y.equal(expected)
    slope, = torch.autograd.grad(y.sum(), x)
    assert slope.equal(torch.autograd.grad(expected.sum(), x)[0])


def test_worked_example():
    y = ClipSigmoid(min_val=0.01, max_val=0.99)(
        torch.tensor([-2., -4., 0., 6., 8.]))
    assert [round(value, 4) for value in y.tolist()] == [
        0.1192, 0.0180, 0.5, 0.99, 0.99]


def test_has_no_state_and_shows_its_arguments():
    act = ClipSigmoid(eps=0.25, grad='straight_through')
    assert not act.state_dict()
    for part in ('0.25', '0.75', 'straight_through', 'inplace=False'):
        assert part in repr(act)


def test_inplace():
    x = torch.randn(5)
    expected = clip_sigmoid(x)
    assert ClipSigmoid(inplace=True)(x) is x and x.equal(expected)
    x = torch.randn(5)
    before = x.clone()
    ClipSigmoid()(x)
    assert x.equal(before)


@pytest.mark.parametrize('kwargs, words', [
    (dict(eps=0.0), ['eps', '0.0']),
    (dict(eps=0.5), ['eps', '0.5']),
    (dict(eps=-1e-4), ['eps', '-0.0001']),
    (dict(min_val=0.0), ['min_val', '0.0']),
    (dict(max_val=1.0), ['max_val', '1.0']),
    (dict(min_val=0.9, max_val=0.1), ['min_val', '0.9', 'max_val', '0.1']),
    (dict(grad='through'), ['grad', 'through']),
])
def test_bad_arguments(kwargs, words):
    with pytest.raises(ValueError) as info:
        ClipSigmoid(**kwargs)
    assert all(word in str(info.value) for word in words)


@pytest.mark.parametrize('order', [('conv', 'norm', 'act'),
                                   ('act', 'conv', 'norm'),
                                   ('conv', 'act', 'norm')])
@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN')])
def test_conv_module_passes_inplace(order, norm_cfg):
    """mmcv asks any activation that it does not know to work in place."""
    torch.manual_seed(0)
    module = ConvModule(
        3, 4, 3, norm_cfg=norm_cfg, order=order,
        act_cfg=dict(type='ClipSigmoid', eps=0.1))
    assert isinstance(module.activate, ClipSigmoid) and module.activate.inplace
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    before = x.detach().clone()

    def plain(x):
        for layer in order:
            if layer == 'conv':
                x = module.conv(x)
            elif layer == 'act':
                x = torch.sigmoid(x).clamp(0.1, 0.9)
            elif norm_cfg is not None:
                x = module.norm(x)
        return x

    inputs = [x, *module.parameters()]
    weight = torch.randn(2, 4, 4, 4)
    grads = torch.autograd.grad((module(x) * weight).sum(), inputs)
    assert x.detach().equal(before)
    expected = torch.autograd.grad((plain(x) * weight).sum(), inputs)
    for grad, other in zip(grads, expected):
        torch.testing.assert_close(grad, other, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(before.clone()),
                                   plain(before.clone()))


def test_build_activation_layer():
    act = build_activation_layer(dict(type='ClipSigmoid', eps=1e-3))
    assert isinstance(act, ClipSigmoid) and act.min_val == 1e-3
