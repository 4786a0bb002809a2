"""``GeMContext`` by hand and as a plugin; as a neck: test_inner_neck.py."""
import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import load_state_dict
from test_ops.pooling import reference
from torch import nn

from sigplug.models import GeMContext

from ..detectors import features, retinanet

FUSIONS = ['channel_mul', 'channel_add']
CONFIG = 'gem_context/retinanet_r50-gemcontext_fpn_1x_coco.py'


def trained(*args, **kwargs):
    """A context that is no longer the identity."""
    layer = GeMContext(*args, **kwargs)
    for context in layer.contexts:
        nn.init.normal_(context.conv2.weight, std=0.5)
        nn.init.normal_(context.conv2.bias, std=0.5)
        nn.init.uniform_(context.conv1.bias)
    return layer


def by_hand(context, x, fusion_type='channel_mul'):
    """In float64, with matrices in place of convolutions."""
    state = {key: value.double() for key, value in
             context.state_dict().items()}
    x, d = x.double(), reference(x, state['gem.p'].item(), (2, 3))
    for name in 'conv1', 'conv2':
        d = d @ state[f'{name}.weight'].flatten(1).t() + state[f'{name}.bias']
        d = d.clamp(min=0) if name == 'conv1' else d
    t = d[..., None, None]
    return x + t if fusion_type == 'channel_add' else (
        x * 2 / (1 + torch.exp(-t)))


@pytest.mark.parametrize('fusion_type', FUSIONS)
@pytest.mark.parametrize('ratio, hidden', [(1 / 4, 2), (1e-3, 1), (2, 16)])
def test_equals_the_formula(fusion_type, ratio, hidden):
    x = features(2, 8, 5, 7)
    layer = trained(8, ratio, fusion_type, p=4.0)
    assert layer.contexts[0].conv1.out_channels == hidden
    torch.testing.assert_close(
        layer(x).double(), by_hand(layer.contexts[0], x, fusion_type),
        rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('fusion_type', FUSIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_starts_as_the_identity(fusion_type, dtype):
    x = features(2, 32, 5, 7).to(dtype)
    assert GeMContext(32, fusion_type=fusion_type).to(dtype)(x).equal(x)


@pytest.mark.parametrize('container', [tuple, list])
@pytest.mark.parametrize('in_channels', [4, [4, 4, 4]])
def test_levels(container, in_channels):
    levels = container(features(2, 4, n, n + 1) for n in (8, 4, 1))
    layer = trained(in_channels)
    outs = layer(levels)
    assert type(outs) is container
    contexts = list(layer.contexts) * (4 - len(layer.contexts))
    for out, x, context in zip(outs, levels, contexts):
        torch.testing.assert_close(
            out.double(), by_hand(context, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('in_channels, channels', [
    ([4, 8], [4]), ([4, 8], [4, 8, 8]), ([4, 8], [8, 4]), (4, [4, 8])])
def test_other_levels_than_in_channels(in_channels, channels):
    levels = [features(2, c, 3, 3) for c in channels]
    with pytest.raises(ValueError, match='in_channels=.* does not fit') as e:
        GeMContext(in_channels)(levels)
    assert str(in_channels) in str(e.value)


@pytest.mark.parametrize('kwargs, error, words', [
    (dict(in_channels=0), ValueError, 'in_channels .*0'),
    (dict(in_channels=[]), ValueError, r'in_channels .*\[\]'),
    (dict(in_channels=[4, 0.5]), ValueError, 'in_channels .*0.5'),
    (dict(ratio=0), ValueError, 'ratio .*0'),
    (dict(fusion_type='mul'), ValueError, "channel_mul.*'mul'"),
    (dict(p=0.0), ValueError, 'p .*0.0'),
])
def test_bad_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        GeMContext(**{'in_channels': 4, **kwargs})


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('fusion_type', FUSIONS)
def test_autocast(dtype, fusion_type):
    """With values whose power is out of range; dtypes are kept."""
    x = 60 * features(2, 8, 5, 7)
    layer = trained(8, ratio=1, fusion_type=fusion_type, p=6.5)
    with torch.autocast('cpu', dtype=dtype):
        for given in (x.to(dtype), x):
            y = layer(given.requires_grad_())
            assert y.dtype == given.dtype
            y.float().sum().backward()
    assert all(param.grad.isfinite().all() for param in layer.parameters())
    assert x.grad.isfinite().all() and y.isfinite().all()


# --- as a plugin ----------------------------------------------------------


def test_detector_with_plugins():
    """Starts as the stock one, also after init_weights."""
    ours, stock = retinanet(CONFIG), retinanet()
    inputs = features(2, 3, 96, 160)
    # Its Kaiming draws all convolutions again.
    ours.init_weights()
    stock.init_weights()
    context = ours.backbone.layer2[0].gem_context.contexts[0]
    assert not context.conv2.weight.any() and context.conv1.weight.any()
    load_state_dict(ours, stock.state_dict())
    # The stages without the plugin have none.
    assert not hasattr(ours.backbone.layer1[0], 'gem_context')
    for y, expected in zip(ours.eval().extract_feat(inputs),
                           stock.eval().extract_feat(inputs), strict=True):
        assert y.equal(expected) and expected.any()
    assert sum(name.endswith('gem.p') for name, _ in
               ours.named_parameters()) == 13


def test_pretrained_weights_win(tmp_path):
    """What ``init_weights`` loads is kept; what it draws is set back."""
    source = nn.ModuleDict(dict(neck=trained(8)))
    torch.save(source.state_dict(), tmp_path / 'model.pth')
    x = features(2, 8, 3, 3)
    for init_cfg, expected in (
            (dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth')),
             source.neck(x)),
            (dict(type='Kaiming', layer='Conv2d', bias=1), x)):
        model = BaseModule(init_cfg)
        model.neck = GeMContext(8)
        model.init_weights()
        assert model.neck(x).equal(expected)
    assert not source.neck(x).equal(x)
