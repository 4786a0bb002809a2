"""``ClipSigmoid``: the function as a layer, alone and in a ConvModule."""
import pytest
import torch
from mmcv.cnn import ConvModule

from sigplug.models import ClipSigmoid
from sigplug.ops import clip_sigmoid


@pytest.mark.parametrize('kwargs, bounds', [
    (dict(), (1e-4, 1 - 1e-4)),
    (dict(eps=0.01), (0.01, 0.99)),
    (dict(min_val=0.2), (0.2, 1 - 1e-4)),
    (dict(eps=0.1, max_val=0.7), (0.1, 0.7)),
])
@pytest.mark.parametrize('grad', ['zero', 'straight_through'])
def test_equals_the_function(kwargs, bounds, grad):
    x = torch.linspace(-12, 12, 101).requires_grad_()
    y = ClipSigmoid(grad=grad, **kwargs)(x)
    expected = clip_sigmoid(x, *bounds, grad=grad)
    assert y.equal(expected)
    slope, = torch.autograd.grad(y.sum(), x)
    assert slope.equal(torch.autograd.grad(expected.sum(), x)[0])


@pytest.mark.parametrize('kwargs, error, words', [
    (dict(eps=0.0), ValueError, 'eps .*0.0'),
    (dict(eps=0.5), ValueError, 'eps .*0.5'),
    (dict(eps='a'), TypeError, "eps .*'a'"),
    (dict(max_val=1.0), ValueError, 'max_val .*1.0'),
    (dict(min_val=0.9, max_val=0.1), ValueError, 'min_val=0.9 .*max_val=0.1'),
    (dict(grad='through'), ValueError, "grad .*'through'"),
    (dict(inplace=1), TypeError, 'inplace .*1'),
])
def test_bad_arguments_are_refused_before_the_first_batch(
        kwargs, error, words):
    with pytest.raises(error, match=words):
        ClipSigmoid(**kwargs)


@pytest.mark.parametrize('order', [
    ('conv', 'norm', 'act'), ('act', 'conv', 'norm')])
def test_conv_module_passes_inplace(order):
    """mmcv asks any activation that it does not know to work in place."""
    module = ConvModule(
        3, 4, 3, norm_cfg=dict(type='BN'), order=order,
        act_cfg=dict(type='ClipSigmoid', eps=0.1))
    assert isinstance(module.activate, ClipSigmoid) and module.activate.inplace
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    before = x.detach().clone()
    parts = dict(conv=module.conv, norm=module.norm,
                 act=lambda x: torch.sigmoid(x).clamp(0.1, 0.9))
    expected = x
    for name in order:
        expected = parts[name](expected)
    y = module(x)
    torch.testing.assert_close(y, expected)
    assert x.detach().equal(before)
    weight, inputs = torch.randn_like(y), [x, *module.parameters()]
    for grad, other in zip(torch.autograd.grad((y * weight).sum(), inputs),
                           torch.autograd.grad((expected * weight).sum(),
                                               inputs)):
        torch.testing.assert_close(grad, other, rtol=1e-5, atol=1e-5)
