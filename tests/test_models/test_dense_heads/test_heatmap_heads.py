"""mmdet's heads with an activation by config, against the stock heads."""
import copy
import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from sigplug.models import ClipSigmoid
from sigplug.models.dense_heads import heatmap_heads

NUM_CLASSES, CHANNELS, SIZE = 3, 8, 128
EPS = 0.01
METAS = [dict(batch_input_shape=(SIZE, SIZE), img_shape=(SIZE, SIZE),
              border=[0, SIZE, 0, SIZE], scale_factor=(0.5, 2.0))] * 2
NMS = dict(type='nms', iou_threshold=0.5)


class Case(NamedTuple):
    """A head, and what the tests have to know of it."""

    cfg: dict
    # Of the feature maps.
    sizes: list[int]
    # The name of the heatmap loss, and how many of the outputs are heatmaps.
    loss: str
    num_heatmaps: int
    # Gives the stock head the bounds of ClipSigmoid(EPS).
    clip: Callable
    test_cfg: dict


def clip_logits(head, outs):
    """sigmoid(clamp(x)) is clamp(sigmoid(x))."""
    limit = math.log((1 - EPS) / EPS)
    return [[x.clamp(-limit, limit) for x in out] if i < 2 else out
            for i, out in enumerate(outs)]


def clip_probs(head, outs):
    return [[x.clamp(EPS, 1 - EPS) for x in outs[0]], *outs[1:]]


def clip_head(head, outs):
    head.sigmoid_clamp = EPS
    return outs


CORNER = dict(num_classes=NUM_CLASSES, in_channels=CHANNELS)
CORNER_TEST = dict(
    corner_topk=100, local_maximum_kernel=3, distance_threshold=50.0,
    score_thr=0.01, max_per_img=30, nms=NMS)
CASES = dict(
    CenterNetHead=Case(
        dict(in_channels=CHANNELS, feat_channels=CHANNELS,
             num_classes=NUM_CLASSES),
        [32], 'loss_center_heatmap', 1, clip_probs,
        dict(topk=30, local_maximum_kernel=3, max_per_img=30, nms=NMS)),
    CornerHead=Case(CORNER, [32, 32], 'loss_heatmap', 2, clip_logits,
                    CORNER_TEST),
    CentripetalHead=Case(
        dict(CORNER, corner_emb_channels=0), [32, 32], 'loss_heatmap', 2,
        clip_logits, CORNER_TEST),
    CenterNetUpdateHead=Case(
        dict(num_classes=NUM_CLASSES, in_channels=CHANNELS,
             feat_channels=CHANNELS, stacked_convs=1,
             strides=[8, 16, 32, 64, 128],
             norm_cfg=dict(type='GN', num_groups=2, requires_grad=True)),
        [16, 8, 4, 2, 1], 'loss_cls', 1, clip_head,
        dict(nms_pre=100, min_bbox_size=0, score_thr=0.05, nms=NMS,
             max_per_img=30)))
# Arguments of the stock heads by position.
POSITIONAL = dict(
    CenterNetHead=(CHANNELS, 4, NUM_CLASSES,
                   dict(type='GaussianFocalLoss', loss_weight=3.0)),
    CornerHead=(NUM_CLASSES, CHANNELS, 1, 2),
    CentripetalHead=(NUM_CLASSES, CHANNELS, 1, 0),
    CenterNetUpdateHead=(NUM_CLASSES, 32, ((0, 80), (64, 1e9)), 2))

every_head = pytest.mark.parametrize('name', CASES)
logits_loss = dict(type='GaussianFocalLossWithLogits', loss_weight=1.0)


@pytest.fixture(autouse=True, scope='module')
def default_scope():
    """That of mmdet's configs."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def build(name, prefix='sigplug.', **kwargs):
    case = CASES[name]
    cfg = dict(case.cfg, test_cfg=ConfigDict(case.test_cfg), **kwargs)
    return MODELS.build(dict(type=f'{prefix}{name}', **copy.deepcopy(cfg)))


def both(name, stock_loss=None, dtype=torch.float32, scale=2, **kwargs):
    """mmdet's head and ours, with the same weights."""
    key = CASES[name].loss
    stock = build(name, '', **({key: stock_loss} if stock_loss else {}))
    ours = build(name, **kwargs)
    with torch.no_grad():
        # Scores all over (0, 1).
        for param in stock.parameters():
            if param.dim() > 1:
                param.mul_(scale)
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock.to(dtype), ours.to(dtype)


def features(name, dtype=torch.float32):
    return tuple(torch.randn(2, CHANNELS, size, size, dtype=dtype)
                 for size in CASES[name].sizes)


def instances(*counts, dtype=torch.float32):
    """Boxes inside of the image."""
    batch = []
    for count in counts:
        corner = torch.rand(count, 2, dtype=dtype) * 70
        size = torch.rand(count, 2, dtype=dtype) * 45 + 8
        batch.append(InstanceData(
            bboxes=torch.cat((corner, corner + size), dim=1),
            labels=torch.randint(NUM_CLASSES, (count, ))))
    return batch


def total(losses):
    return sum(loss if isinstance(loss, torch.Tensor) else sum(loss)
               for loss in losses.values())


def flat(losses):
    return {f'{key}{i}': loss for key, value in losses.items()
            for i, loss in enumerate(
                [value] if isinstance(value, torch.Tensor) else value)}


def compare(ours, stock, got, expected, rtol=1e-6):
    """Losses, and their gradients of all parameters."""
    got_each, expected_each = flat(got), flat(expected)
    assert got_each.keys() == expected_each.keys()
    for key, value in expected_each.items():
        assert value.isfinite()
        torch.testing.assert_close(
            got_each[key], value, rtol=rtol, atol=0, msg=lambda m, k=key:
            f'{k}: {m}')
    total(got).backward()
    total(expected).backward()
    params = dict(stock.named_parameters())
    for key, param in ours.named_parameters():
        grad = params[key].grad
        assert (param.grad is None) == (grad is None), key
        if grad is not None:
            torch.testing.assert_close(
                param.grad, grad, rtol=rtol,
                atol=rtol * grad.abs().max().item(), msg=lambda m, k=key:
                f'{k}: {m}')


def leaves(name, outs, value=None, dtype=None):
    """The outputs cut off from the head; heatmaps filled or converted."""
    outs = [[x if x is None else x.detach().clone() for x in out]
            for out in outs]
    heatmaps = outs[:CASES[name].num_heatmaps]
    for out in heatmaps:
        for i, x in enumerate(out):
            if value is not None:
                x.fill_(value)
            out[i] = x.to(dtype or x.dtype).requires_grad_()
    return outs, [x for out in heatmaps for x in out]


# --- construction ---------------------------------------------------------


@every_head
def test_registered_under_the_prefixed_name_only(name):
    cls = getattr(heatmap_heads, name)
    assert MODELS.get(f'sigplug.{name}') is cls
    assert MODELS.get(name) is cls.__mro__[
        2 if name == 'CentripetalHead' else 1]


@every_head
def test_checkpoints_load_both_ways(name):
    stock, ours = both(name)
    assert list(stock.state_dict()) == list(ours.state_dict())
    stock.load_state_dict(ours.state_dict(), strict=True)
    act = ClipSigmoid if name == 'CenterNetUpdateHead' else nn.Sigmoid
    assert type(ours.heatmap_act) is act


@every_head
def test_positional_arguments(name):
    cls = getattr(heatmap_heads, name)
    args = POSITIONAL[name]
    strides = (dict(strides=[8, 16]) if name == 'CenterNetUpdateHead' else {})
    stock, ours = (
        head(*args, **strides) for head in (MODELS.get(name), cls))
    ours.load_state_dict(stock.state_dict(), strict=True)
    if name == 'CenterNetHead':
        assert ours.loss_center_heatmap.loss_weight == 3
    kind = inspect.signature(cls).parameters['heatmap_act'].kind
    assert kind is inspect.Parameter.KEYWORD_ONLY


@every_head
def test_activation_in_front_of_a_loss_of_logits(name):
    with pytest.raises(ValueError) as info:
        build(name, heatmap_act=dict(type='ClipSigmoid'),
              **{CASES[name].loss: logits_loss})
    for word in ('heatmap_act', 'GaussianFocalLossWithLogits'):
        assert word in str(info.value)


# --- losses ---------------------------------------------------------------


@every_head
def test_losses_and_gradients_equal_the_stock_heads(name):
    stock, ours = both(name)
    x, batch = features(name), instances(5, 3)
    compare(ours, stock, ours.loss_by_feat(*ours(x), batch, METAS),
            stock.loss_by_feat(*stock(x), batch, METAS))


@every_head
def test_clip_sigmoid_equals_the_stock_head_with_those_bounds(name):
    stock, ours = both(
        name, dtype=torch.float64, scale=6,
        heatmap_act=dict(type='ClipSigmoid', eps=EPS))
    x = features(name, torch.float64)
    batch = instances(5, 3, dtype=torch.float64)
    heatmaps = leaves(name, ours(x))[1]
    assert all((x.sigmoid() < EPS).any() and (x.sigmoid() > 1 - EPS).any()
               for x in heatmaps if x.numel() > 500)
    outs = CASES[name].clip(stock, stock(x))
    compare(ours, stock, ours.loss_by_feat(*ours(x), batch, METAS),
            stock.loss_by_feat(*outs, batch, METAS), rtol=1e-10)


@every_head
def test_loss_of_logits_equals_the_stock_head_at_moderate_logits(name):
    weights = (dict(pos_weight=0.25, neg_weight=0.75)
               if name == 'CenterNetUpdateHead' else {})
    stock, ours = both(
        name, dict(type='GaussianFocalLoss', **weights), torch.float64,
        scale=1, **{CASES[name].loss: dict(logits_loss, **weights)})
    x = features(name, torch.float64)
    batch = instances(5, 3, dtype=torch.float64)
    assert all(x.abs().max() < 8 for x in leaves(name, ours(x))[1])
    # Up to the 1e-12 inside of mmdet's logarithms.
    compare(ours, stock, ours.loss_by_feat(*ours(x), batch, METAS),
            stock.loss_by_feat(*stock(x), batch, METAS), rtol=1e-8)


@every_head
@pytest.mark.parametrize('value', [-200.0, 200.0])
@pytest.mark.parametrize('dtype', [
    torch.float32, torch.float16, torch.bfloat16])
def test_loss_of_logits_of_confident_cells(name, value, dtype):
    head = build(name, **{CASES[name].loss: logits_loss})
    outs, heatmaps = leaves(name, head(features(name)), value, dtype)
    losses = head.loss_by_feat(*outs, instances(5, 3), METAS)
    assert all(loss.isfinite() for loss in flat(losses).values())
    total(losses).backward()
    for x in heatmaps:
        assert x.grad.isfinite().all()
    # A level of CenterNetUpdateHead may be without a peak.
    assert any(x.grad.any() for x in heatmaps)


@every_head
@pytest.mark.parametrize('dtype, autocast', [
    (torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True)])
def test_half_precision_logits_of_confident_cells(name, dtype, autocast):
    """Half types round these scores to 1, and the stock loss overflows."""
    stock, ours = both(name)
    outs, heatmaps = leaves(name, ours(features(name)), 12.0, dtype)
    batch = instances(5, 3)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        losses = ours.loss_by_feat(*outs, batch, METAS)
        stock_outs = ([[x.sigmoid() for x in outs[0]], *outs[1:]]
                      if name == 'CenterNetHead' else outs)
        overflown = stock.loss_by_feat(*stock_outs, batch, METAS)
    assert not total(overflown).isfinite() or dtype == torch.bfloat16
    assert all(loss.isfinite() and loss.dtype == torch.float32
               for loss in flat(losses).values())
    total(losses).backward()
    assert all(x.grad.dtype == dtype and x.grad.isfinite().all()
               for x in heatmaps)
    exact = ours.loss_by_feat(
        *leaves(name, outs, dtype=torch.float32)[0], batch, METAS)
    torch.testing.assert_close(total(losses), total(exact), rtol=0.02, atol=0)


@every_head
@pytest.mark.parametrize('inplace', [False, True])
def test_outputs_are_not_overwritten(name, inplace):
    head = build(name, heatmap_act=dict(type='ClipSigmoid', inplace=inplace))
    for no_grad in (False, True):
        with torch.set_grad_enabled(not no_grad):
            outs = head(features(name))
            before = [[None if x is None else x.clone() for x in out]
                      for out in outs]
            batch = instances(5, 3)
            first = flat(head.loss_by_feat(*outs, batch, METAS))
            second = flat(head.loss_by_feat(*outs, batch, METAS))
        for out, kept in zip(outs, before):
            assert all(x is y is None or x.equal(y)
                       for x, y in zip(out, kept))
        assert all(first[key].equal(second[key]) for key in first)


class SigmoidOfLogits(nn.Module):
    """A loss that takes logits, and takes the sigmoid itself."""

    from_logits = True

    def forward(self, pred, target, *args, avg_factor=None, **kwargs):
        return (pred.sigmoid() - target).square().sum() / avg_factor


class SquaredError(SigmoidOfLogits):
    from_logits = False

    def forward(self, pred, target, *args, avg_factor=None, **kwargs):
        return (pred - target).square().sum() / avg_factor


@every_head
def test_sigmoid_inside_of_a_loss_stays(name):
    losses = []
    for loss in (SigmoidOfLogits, SquaredError):
        torch.manual_seed(0)
        MODELS.register_module(module=loss, force=True)
        head = build(name, **{CASES[name].loss: dict(type=loss.__name__)})
        head.heatmap_act = (nn.Identity if loss.from_logits else nn.Sigmoid)()
        losses.append(head.loss_by_feat(
            *head(features(name)), instances(5, 3), METAS))
    torch.testing.assert_close(*map(flat, losses), rtol=1e-6, atol=0)


@every_head
def test_loss_under_a_compiler(name):
    """Mmdet's loops break the graph; what is left of it is the same."""
    head = build(name)
    outs, batch = head(features(name)), instances(2, 1)
    expected = head.loss_by_feat(*outs, batch, METAS)
    torch._dynamo.reset()
    got = torch.compile(head.loss_by_feat, backend='eager')(
        *outs, batch, METAS)
    torch.testing.assert_close(flat(got), flat(expected))


# --- no boxes -------------------------------------------------------------


@pytest.mark.parametrize('name', [
    'CenterNetHead', 'CornerHead', 'CentripetalHead'])
@pytest.mark.parametrize('counts', [(0, 0), (0, 4), (4, 0)])
def test_images_without_boxes_as_in_the_stock_head(name, counts):
    stock, ours = both(name)
    x, batch = features(name), instances(*counts)
    compare(ours, stock, ours.loss_by_feat(*ours(x), batch, METAS),
            stock.loss_by_feat(*stock(x), batch, METAS))


@pytest.mark.parametrize('loss, clip', [
    (dict(type='GaussianFocalLoss'), 1e-4), (logits_loss, 0.0)])
@pytest.mark.parametrize('counts', [(0, 0), (0, 4), (4, 0)])
def test_images_without_boxes_are_background(loss, clip, counts):
    """Each of their cells weighs as much as one far from any box."""
    name = 'CenterNetUpdateHead'
    _, ours = both(name, loss_cls=loss)
    outs, batch = ours(features(name)), instances(*counts)
    seen = []
    ours.loss_cls.register_forward_hook(
        lambda *call: seen.append(call[2]), with_kwargs=True)
    loss = ours.loss_by_feat(*outs, batch, METAS)['loss_cls']
    options, = seen

    avg_factor = float(options['avg_factor'])
    assert (avg_factor > 1) == any(counts)
    expected = 0
    for i, count in enumerate(counts):
        image = [[x[i:i + 1] for x in out] for out in outs]
        if count:
            # It brings all of the peaks, also when it is alone.
            part = ours.loss_by_feat(*image, batch[i:i + 1], METAS[:1])
            expected += part['loss_cls'].double()
        else:
            q = torch.cat([x.double().flatten() for x in image[0]]).sigmoid()
            q = q.clamp(clip, 1 - clip)
            expected -= (q**2 * (1 - q).log()).sum() / avg_factor
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


# --- predictions ----------------------------------------------------------


@every_head
@pytest.mark.parametrize('act', [None, dict(type='ClipSigmoid', eps=0.3)])
def test_predictions_equal_the_stock_heads(name, act):
    """With any activation: the clip is there for the loss."""
    stock, ours = both(name, scale=1.4, heatmap_act=act)
    x = features(name)
    with torch.no_grad():
        # With the statistics of the batch, as no others have been learnt.
        stock_outs, outs = stock(x), ours(x)
        # Untrained shifts of CentripetalHead bring no two corners together.
        for out, other in zip(stock_outs[6:], outs[6:]):
            out[:] = other[:] = [3 * torch.rand_like(x) for x in out]
        expected = stock.predict_by_feat(
            *stock_outs, batch_img_metas=METAS, rescale=True, with_nms=True)
        # The loss comes first, as in a validation that also logs it.
        ours.loss_by_feat(*outs, instances(5, 3), METAS)
        got = ours.predict_by_feat(
            *outs, batch_img_metas=METAS, rescale=True, with_nms=True)
    for result, other in zip(got, expected, strict=True):
        # Some of them beyond the bounds of the activation.
        assert 0.7 < other.scores.max() < 1
        for key in ('bboxes', 'scores', 'labels'):
            assert result[key].equal(other[key]), key


# --- a whole detector -----------------------------------------------------


def detector(head='CenterNetHead', **kwargs):
    torch.manual_seed(0)
    return MODELS.build(dict(
        type='CenterNet',
        data_preprocessor=dict(
            type='DetDataPreprocessor', mean=[127.5] * 3, std=[64.0] * 3),
        backbone=dict(
            type='ResNet', depth=18, norm_eval=False,
            norm_cfg=dict(type='BN')),
        neck=dict(
            type='CTResNetNeck', in_channels=512, use_dcn=False,
            num_deconv_filters=(32, 16, CHANNELS),
            num_deconv_kernels=(4, 4, 4)),
        bbox_head=dict(
            type=head, in_channels=CHANNELS, feat_channels=16,
            num_classes=NUM_CLASSES, **kwargs),
        test_cfg=ConfigDict(
            topk=20, local_maximum_kernel=3, max_per_img=20)))


def samples(size=64):
    """Two images, in each a bright box of its class's colour."""
    images, batch = [], []
    for i in range(2):
        image = torch.full((3, size, size), 100, dtype=torch.uint8)
        x, y = 8 + 20 * i, 24 - 10 * i
        image[i, y:y + 20, x:x + 28] = 255
        sample = DetDataSample(
            gt_instances=InstanceData(
                bboxes=torch.tensor([[x, y, x + 28.0, y + 20]]),
                labels=torch.tensor([i])),
            metainfo=dict(
                img_shape=(size, size), batch_input_shape=(size, size),
                ori_shape=(size, size), border=[0, size, 0, size],
                scale_factor=(1.0, 1.0)))
        images.append(image)
        batch.append(sample)
    return dict(inputs=images, data_samples=batch)


def run(model, mode):
    data = model.data_preprocessor(samples(), training=mode == 'loss')
    return model(**data, mode=mode)


def test_detector_equals_the_stock_one():
    stock, ours = detector(), detector('sigplug.CenterNetHead')
    ours.load_state_dict(stock.state_dict(), strict=True)
    compare(ours, stock, run(ours, 'loss'), run(stock, 'loss'))
    with torch.no_grad():
        got, expected = (
            [sample.pred_instances for sample in run(model.eval(), 'predict')]
            for model in (ours, stock))
    for result, other in zip(got, expected, strict=True):
        assert len(other.scores) == 20
        for key in ('bboxes', 'scores', 'labels'):
            assert result[key].equal(other[key]), key


@pytest.mark.parametrize('kwargs', [
    dict(heatmap_act=dict(type='ClipSigmoid')),
    dict(heatmap_act=dict(type='ClipSigmoid', grad='straight_through')),
    dict(loss_center_heatmap=logits_loss)])
def test_detector_learns(kwargs):
    model = detector('sigplug.CenterNetHead', **kwargs)
    model.init_weights()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        loss = total(run(model, 'loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3]), losses
