"""``GeMNeck`` against the formula that mmpretrain publishes, and its own."""
import math
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from sigplug.models import GeMNeck
from sigplug.ops import gem_pool


def features(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def mmpretrain_formula(x, p=3.0, eps=1e-6, clamp=True):
    """Clamp, power, average over the full extent, root, flatten."""
    powers = (x.clamp(min=eps) if clamp else x) ** p
    mean = F.avg_pool2d(powers, powers.shape[2:])
    return (mean ** (1 / p)).flatten(1)


@pytest.mark.parametrize('kwargs', [
    dict(),
    dict(p=2.5, eps=1e-3),
    dict(p=4.0, clamp=False),
    dict(p=1.0, p_trainable=False),
])
def test_equals_the_published_formula(kwargs):
    x = features(2, 8, 7, 5)
    if not kwargs.get('clamp', True):
        x = x.abs()
    formula = {k: v for k, v in kwargs.items() if k != 'p_trainable'}
    neck = GeMNeck(**kwargs)
    torch.testing.assert_close(
        neck(x), mmpretrain_formula(x, **formula), rtol=5e-6, atol=0)


@pytest.mark.parametrize('container', [tuple, list])
def test_levels(container):
    levels = container([features(2, 8, 8, 8), features(2, 16, 4, 3)])
    outs = GeMNeck()(levels)
    assert isinstance(outs, tuple)
    for out, x in zip(outs, levels):
        torch.testing.assert_close(
            out, mmpretrain_formula(x), rtol=5e-6, atol=0)
    single = GeMNeck()(levels[0])
    assert isinstance(single, torch.Tensor) and single.equal(outs[0])


def test_single_image_and_other_spatial_dims():
    assert GeMNeck()(features(1, 8, 1, 1)).shape == (1, 8)
    assert GeMNeck()(features(2, 8, 9)).shape == (2, 8)
    x = features(2, 8, 3, 4, 5)
    assert GeMNeck()(x).equal(gem_pool(x, torch.tensor([3.0])).flatten(1))


@pytest.mark.parametrize('p_trainable', [True, False])
def test_loads_mmpretrain_checkpoints(p_trainable):
    """mmpretrain stores p as a parameter, trained or not."""
    neck = GeMNeck(p_trainable=p_trainable)
    neck.load_state_dict(dict(p=torch.tensor([4.25])), strict=True)
    x = features(2, 8, 7, 5)
    torch.testing.assert_close(
        neck(x), mmpretrain_formula(x, p=4.25), rtol=5e-6, atol=0)
    trained = [p for p in neck.parameters() if p.requires_grad]
    assert len(trained) == p_trainable


def test_state_dict_and_gradient():
    neck = GeMNeck()
    assert {k: tuple(v.shape) for k, v in neck.state_dict().items()} == {
        'p': (1, )}
    x = features(2, 8, 7, 5)
    neck((x, x)).__getitem__(1).sum().backward()
    p = torch.tensor([3.0], requires_grad=True)
    mmpretrain_formula(x, p).sum().backward()
    torch.testing.assert_close(neck.p.grad, p.grad, rtol=1e-4, atol=0)


def test_one_power_per_channel():
    neck = GeMNeck(p=[1.0, 2.0, 3.0], channels=3)
    x = features(2, 3, 4, 4)
    expected = torch.cat([
        mmpretrain_formula(x[:, c:c + 1], c + 1.0) for c in range(3)], dim=1)
    torch.testing.assert_close(neck(x), expected, rtol=5e-6, atol=0)


def double(x):
    return x.detach().double().requires_grad_()


@pytest.fixture(scope='module')
def mmpretrain():
    """The originals, imported one by one, as they need no torchvision.

    mmdet may have tried the whole before, and then a part of the packages is
    there. They stay: mmengine knows a scope once and for all.
    """
    loaded = sys.modules.get('mmpretrain')
    root = Path((loaded.__path__ if loaded else find_spec(
        'mmpretrain').submodule_search_locations)[0])
    for name in ('', '.models', '.models.backbones', '.models.classifiers',
                 '.models.heads', '.models.losses', '.models.necks',
                 '.models.utils', '.evaluation', '.evaluation.metrics'):
        if f'mmpretrain{name}' not in sys.modules:
            module = ModuleType(f'mmpretrain{name}')
            module.__path__ = [str(root.joinpath(*name.split('.')))]
            sys.modules[module.__name__] = module
    metrics = import_module('mmpretrain.evaluation.metrics.single_label')
    sys.modules['mmpretrain.evaluation.metrics'].Accuracy = metrics.Accuracy
    for name in ('backbones.resnet_cifar', 'classifiers.image', 'necks.gap',
                 'heads.linear_head', 'losses.cross_entropy_loss',
                 'utils.data_preprocessor'):
        import_module(f'mmpretrain.models.{name}')
    original = import_module('mmpretrain.models.necks.gem')
    return SimpleNamespace(
        neck=original.GeneralizedMeanPooling,
        DataSample=import_module('mmpretrain.structures').DataSample)


@pytest.mark.parametrize('kwargs', [
    dict(),
    dict(p=2.5, eps=1e-3),
    dict(p=6.0, p_trainable=False),
    dict(p=4.0, clamp=False),
    dict(p=1.0, p_trainable=False),
])
def test_equals_the_original(mmpretrain, kwargs):
    """Values and gradients; in float64, as its own float32 is less exact."""
    ours, original = GeMNeck(**kwargs), mmpretrain.neck(**kwargs)
    for shape in ((2, 8, 7, 5), (3, 16, 1, 1), (1, 4, 30, 41)):
        x = 3 * features(*shape)
        if not kwargs.get('clamp', True):
            x = x.abs()
        x.requires_grad_()
        wide = double(x)
        y, expected = ours(x), original.double()(wide)
        torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(
            ours.double()(double(x)), expected, rtol=1e-12, atol=0)
        ours.float()
        weight = torch.linspace(0.5, 1.5, y.numel()).view(y.shape)
        for module, out in ((ours, y), (original, expected)):
            module.zero_grad()
            (out * weight).sum().backward()
        torch.testing.assert_close(
            x.grad.double(), wide.grad, rtol=2e-6, atol=1e-12)
        if kwargs.get('p_trainable', True):
            torch.testing.assert_close(
                ours.p.grad.double(), original.p.grad, rtol=1e-5, atol=1e-7)


def test_levels_of_the_original(mmpretrain):
    levels = features(2, 8, 7, 5), features(2, 16, 4, 3)
    outs = GeMNeck()(levels)
    expected = mmpretrain.neck().double()(tuple(x.double() for x in levels))
    assert type(outs) is type(expected) is tuple
    for out, exact in zip(outs, expected):
        torch.testing.assert_close(out.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize('p_trainable', [True, False])
def test_checkpoints_of_the_original(mmpretrain, p_trainable):
    """In both directions, strictly, trained or not."""
    ours = GeMNeck(p=2.5, p_trainable=p_trainable)
    original = mmpretrain.neck(p=4.25, p_trainable=p_trainable)
    stored = {key: value.clone()
              for key, value in original.state_dict().items()}
    original.load_state_dict(ours.state_dict(), strict=True)
    assert original.p.tolist() == [2.5]
    ours.load_state_dict(stored, strict=True)
    assert ours.p.tolist() == [4.25]
    x = features(2, 8, 7, 5)
    torch.testing.assert_close(
        ours(x), mmpretrain_formula(x, 4.25), rtol=5e-6, atol=0)


def test_config_of_the_original_with_another_type(mmpretrain):
    kwargs = dict(p=2.5, eps=1e-3, clamp=True, p_trainable=True)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        original, ours = (
            MODELS.build(dict(type=name, **kwargs))
            for name in ('GeneralizedMeanPooling', 'GeMNeck'))
    assert type(original) is mmpretrain.neck and type(ours) is GeMNeck
    x = features(2, 8, 7, 5)
    torch.testing.assert_close(ours(x), original(x), rtol=5e-6, atol=0)


CONFIGS = Path(__file__).parents[3] / 'configs' / 'gem_neck'


@pytest.mark.parametrize('name', ['gem', 'gem-strips'])
def test_classifier_trains(mmpretrain, name):
    """mmpretrain's classifier of a sample config learns eight images."""
    cfg = Config.fromfile(CONFIGS / f'resnet18-{name}_8xb16_cifar10.py').model
    cfg.backbone.update(base_channels=8, stem_channels=8)
    cfg.head.in_channels //= 8
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg)
    assert type(model).__name__ == 'ImageClassifier'
    assert type(model.neck) is GeMNeck
    images = features(8, 3, 32, 32)
    samples = [mmpretrain.DataSample().set_gt_label(i) for i in range(8)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(15):
        loss = model.loss(images, samples)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0], losses
    assert model.neck.p.item() != 3.0
    scores = model.eval().predict(images, samples)[0].pred_score
    assert scores.shape == (10, ) and scores.isfinite().all()


# --- one power per level, and per channel of each level -------------------


@pytest.mark.parametrize('p', [3.0, [4.5], [1.5, 2.0, 5.0], (1.5, 2.0, 5.0)])
@pytest.mark.parametrize('p_trainable', [True, False])
def test_one_power_per_level(p, p_trainable):
    levels = [features(2, c, 8 - c, 3) for c in (3, 5, 4)]
    neck = GeMNeck(p=p, num_levels=3, p_trainable=p_trainable)
    values = [p] * 3 if isinstance(p, float) else list(p) * (3 // len(p))
    assert neck.p.shape == (3, ) and neck.p.tolist() == values
    for out, x, value in zip(neck(levels), levels, values, strict=True):
        torch.testing.assert_close(
            out, mmpretrain_formula(x, value), rtol=5e-6, atol=0)
    if p_trainable:
        neck(levels)[1].sum().backward()
        assert (neck.p.grad != 0).tolist() == [False, True, False]


def test_fixed_maximum_of_one_level():
    levels = features(2, 3, 4, 4), features(2, 3, 4, 4)
    neck = GeMNeck(p=[1.0, math.inf], num_levels=2, p_trainable=False)
    assert neck(levels)[1].equal(levels[1].amax((2, 3)).clamp(min=1e-6))


def test_one_power_per_channel_of_each_level():
    p = [1.5, 2.0, 6.0, 1.0, 4.0]
    levels = features(2, 3, 4, 5), features(2, 2, 3, 3)
    neck = GeMNeck(p=p, channels=(3, 2))
    assert neck.p.shape == (5, )
    pooled = torch.cat(neck(levels), dim=1)
    columns = [x[:, c:c + 1] for x in levels for c in range(x.shape[1])]
    expected = torch.cat([
        mmpretrain_formula(x, value) for x, value in zip(columns, p)], dim=1)
    torch.testing.assert_close(pooled, expected, rtol=5e-6, atol=0)
    again = GeMNeck(channels=[3, 2])
    again.load_state_dict(neck.state_dict(), strict=True)
    assert torch.cat(again(levels), dim=1).equal(pooled)


@pytest.mark.parametrize('kwargs, inputs, words', [
    (dict(num_levels=3), [(3, 4), (3, 2)], '3 levels, .* has 2'),
    (dict(num_levels=2), (3, 4), '2 levels, .* has 1'),
    (dict(channels=[3, 2]), [(3, 4)], '2 levels, .* has 1'),
    (dict(channels=[3, 2]), [(3, 4), (3, 4)], r'\[3, 2\], but has \[3, 3\]'),
    # One power fits any number of channels, were they not asked for.
    (dict(channels=[1, 2]), [(3, 4), (2, 4)], r'\[1, 2\], but has \[3, 2\]'),
    (dict(channels=4), [(4, 4), (3, 4)], r'\(4,\)'),
])
def test_other_levels_than_those_of_the_power(kwargs, inputs, words):
    make = [features(2, c, h, 3) for c, h in (
        inputs if isinstance(inputs, list) else [inputs])]
    with pytest.raises(ValueError, match=words):
        GeMNeck(**kwargs)(make if isinstance(inputs, list) else make[0])


# --- horizontal strips ----------------------------------------------------


def strips_by_hand(x, bins, powers):
    """Rows gathered one by one, in float64; strip by strip, as documented."""
    rows, out = x.shape[2], []
    for b in bins:
        for i in range(b):
            taken = [r for r in range(rows)
                     if r < (i + 1) * rows / b and r + 1 > i * rows / b]
            strip = x[:, :, taken].double().clamp(min=1e-6)
            p = torch.as_tensor(powers, dtype=torch.float64).view(-1, 1, 1)
            out.append(strip.pow(p).mean((2, 3)).pow(1 / p.flatten()))
    return torch.cat(out, dim=1)


@pytest.mark.parametrize('bins', [(1, ), (1, 2, 4), [4], (3, 1), (1, 2, 4, 8)])
@pytest.mark.parametrize('rows', [1, 3, 4, 7, 8, 16])
def test_strips(bins, rows):
    x = features(2, 3, rows, 5)
    for p, channels in ((3.0, None), ([1.0, 2.5, 6.0], 3)):
        y = GeMNeck(p=p, channels=channels, bins=bins)(x)
        assert y.shape == (2, 3 * sum(bins))
        torch.testing.assert_close(
            y.double(), strips_by_hand(x, bins, p), rtol=1e-6, atol=0)


@pytest.mark.parametrize('rows', [2, 7, 8])
def test_strips_are_those_of_adaptive_pooling(rows):
    x = features(2, 3, rows, 5).abs() + 0.1
    mean, maximum = (
        GeMNeck(p=p, p_trainable=False, bins=(4, ))(x)
        for p in (1.0, math.inf))
    for y, pool, rtol in ((mean, F.adaptive_avg_pool2d, 1e-6),
                          (maximum, F.adaptive_max_pool2d, 0)):
        expected = pool(x, (4, 1)).flatten(2)
        for strip in range(4):
            torch.testing.assert_close(
                y.view(2, -1, 3)[:, strip], expected[..., strip], rtol=rtol,
                atol=0)


@pytest.mark.parametrize('shape', [(2, 3, 8), (2, 3, 7, 4, 5)])
def test_strips_of_other_spatial_dims(shape):
    x = features(*shape)
    y = GeMNeck(bins=(1, 2))(x)
    flat = x.reshape(*shape[:3], -1)
    torch.testing.assert_close(
        y.double(), strips_by_hand(flat, (1, 2), 3.0), rtol=1e-6, atol=0)


def test_strips_of_levels_with_their_own_powers():
    levels = features(2, 3, 8, 5), features(2, 4, 5, 3)
    outs = GeMNeck(p=[2.0, 5.0], num_levels=2, bins=(1, 3))(levels)
    for out, x, p in zip(outs, levels, (2.0, 5.0), strict=True):
        torch.testing.assert_close(
            out.double(), strips_by_hand(x, (1, 3), p), rtol=1e-6, atol=0)


@pytest.mark.parametrize('rows', [4, 5])
@pytest.mark.parametrize('kwargs', [
    dict(), dict(channels=2, p=[2.0, 3.0]), dict(num_levels=1)])
def test_gradients_of_strips(rows, kwargs):
    neck = GeMNeck(bins=(1, 2, 4), **kwargs).double()
    x = (features(2, 2, rows, 3).double().abs() + 0.1).requires_grad_()

    def function(x, p):
        return torch.func.functional_call(neck, dict(p=p), (x, ))

    assert torch.autograd.gradcheck(function, (x, neck.p))


# --- the surroundings -----------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    """Values at which the textbook form overflows."""
    x = 50 + features(2, 8, 7, 5)
    neck = GeMNeck(p=6.5, bins=(1, 2))
    expected = neck(x)
    with torch.autocast('cpu', dtype=dtype):
        y = neck(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(
        y.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize('kwargs', [
    dict(), dict(channels=3), dict(bins=(1, 2, 4)),
    dict(bins=(3, ), num_levels=1)])
def test_export_with_open_sizes(kwargs):
    neck = GeMNeck(**kwargs)
    opened = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC,
              3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(
        neck, (features(2, 3, 8, 6), ), dynamic_shapes=(opened, )).module()
    for shape in ((1, 3, 11, 9), (3, 3, 16, 13)):
        x = features(*shape)
        torch.testing.assert_close(program(x), neck(x), rtol=1e-6, atol=0)


@pytest.mark.parametrize('inputs, got', [(None, 'NoneType'), (3, 'int'),
                                         ({}, 'dict')])
def test_bad_inputs(inputs, got):
    with pytest.raises(TypeError, match=f'inputs .*{got}'):
        GeMNeck()(inputs)


def test_bad_arguments():
    with pytest.raises(ValueError, match='eps .*0.0'):
        GeMNeck(eps=0.0)
    with pytest.raises(ValueError, match='p .*-3.0'):
        GeMNeck(p=-3.0)
    with pytest.raises(ValueError, match='bins=.* cut .*height.*2, 3'):
        GeMNeck(bins=(1, 2))(features(2, 3))


@pytest.mark.parametrize('kwargs, error, words', [
    (dict(num_levels=0), ValueError, ['num_levels', '0']),
    (dict(num_levels=2.0), ValueError, ['num_levels', '2.0']),
    (dict(num_levels=2, p=[1.0, 2.0, 3.0]), ValueError,
     ['p ', 'num_levels=2', '[1.0, 2.0, 3.0]']),
    (dict(num_levels=2, channels=[3, 4]), ValueError,
     ['num_levels=2', 'channels=[3, 4]']),
    (dict(channels=[]), ValueError, ['channels', 'none']),
    (dict(channels=[3, 0]), ValueError, ['channels', '3, 0']),
    (dict(channels=[3, 2], p=[1.0, 2.0]), ValueError, ['channels=5', '2']),
    (dict(bins=4), TypeError, ['bins', '4']),
    (dict(bins=()), ValueError, ['bins', 'none']),
    (dict(bins=(1, -2)), ValueError, ['bins', '1, -2']),
])
def test_bad_levels_and_strips(kwargs, error, words):
    with pytest.raises(error) as info:
        GeMNeck(**kwargs)
    assert all(word in str(info.value) for word in words), info.value
