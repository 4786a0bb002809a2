"""Each head against the stock head that it stands in for."""
import copy
import inspect
import math
from typing import Any, NamedTuple

import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from sigplug.models import dense_heads

NUM_CLASSES, CHANNELS, SIZE = 3, 8, 128
EPS = 0.01
NMS = dict(type='nms', iou_threshold=0.5)
METAS = [dict(batch_input_shape=(SIZE, SIZE), img_shape=(SIZE, SIZE),
              border=[0, SIZE, 0, SIZE], scale_factor=(0.5, 2.0),
              box_type_3d=LiDARInstance3DBoxes)] * 2


class Case(NamedTuple):
    """A head, and what the tests have to know of it."""

    cfg: dict
    loss: str  # the name of its heatmap loss
    # Of the feature maps, all of the same stride for CornerHead.
    sizes: list[int]
    test_cfg: dict
    act: str = 'Sigmoid'
    scope: str = 'mmdet'
    num_heatmaps: int = 1  # how many of its outputs are heatmaps
    positional: tuple = ()
    # What is not given by position.
    others: dict = {}


CORNER_TEST = dict(
    corner_topk=100, local_maximum_kernel=3, distance_threshold=50.0,
    score_thr=0.01, max_per_img=30, nms=NMS)
LIMITS = [-18.0, -18.0, -10.0, 18.0, 18.0, 10.0]
TASKS = [dict(num_class=1, class_names=['car']),
         dict(num_class=2, class_names=['truck', 'bus'])]
CODER = dict(
    type='CenterPointBBoxCoder', pc_range=[-16.0, -16.0],
    post_center_range=LIMITS, max_num=60, score_threshold=0.1,
    out_size_factor=4, voxel_size=[0.25, 0.25], code_size=9)
CENTER = dict(
    common_heads=dict(
        reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
    share_conv_channel=CHANNELS,
    separate_head=dict(
        type='SeparateHead', init_bias=-2.19, final_kernel=3,
        head_conv=CHANNELS),
    loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=0.25),
    train_cfg=dict(
        grid_size=[128, 128, 40], voxel_size=[0.25, 0.25, 0.2],
        out_size_factor=4, dense_reg=1, gaussian_overlap=0.1, max_objs=12,
        min_radius=2, point_cloud_range=[-16.0, -16.0, -5.0, 16.0, 16.0, 3.0],
        code_weights=[1.0] * 8 + [0.2] * 2))
CASES = dict(
    CenterHead=Case(
        dict(CENTER, in_channels=CHANNELS, tasks=TASKS, bbox_coder=CODER),
        'loss_cls', [32],
        dict(post_center_limit_range=LIMITS, max_per_img=60,
             max_pool_nms=False, min_radius=[4, 12], score_threshold=0.1,
             out_size_factor=4, voxel_size=[0.25, 0.25], nms_type='rotate',
             pre_max_size=50, post_max_size=30, nms_thr=0.2),
        'ClipSigmoid', 'mmdet3d',
        positional=(CHANNELS, TASKS, CODER, CENTER['common_heads']),
        others={key: CENTER[key] for key in (
            'share_conv_channel', 'separate_head', 'loss_bbox')}),
    CenterNetHead=Case(
        dict(in_channels=CHANNELS, feat_channels=CHANNELS,
             num_classes=NUM_CLASSES), 'loss_center_heatmap', [32],
        dict(topk=30, local_maximum_kernel=3, max_per_img=30, nms=NMS),
        positional=(CHANNELS, 4, NUM_CLASSES,
                    dict(type='GaussianFocalLoss', loss_weight=3.0))),
    CornerHead=Case(
        dict(num_classes=NUM_CLASSES, in_channels=CHANNELS), 'loss_heatmap',
        [16, 16], CORNER_TEST, num_heatmaps=2,
        positional=(NUM_CLASSES, CHANNELS, 1, 2)),
    CentripetalHead=Case(
        dict(num_classes=NUM_CLASSES, in_channels=CHANNELS,
             corner_emb_channels=0), 'loss_heatmap', [16, 16], CORNER_TEST,
        num_heatmaps=2, positional=(NUM_CLASSES, CHANNELS, 1, 0)),
    CenterNetUpdateHead=Case(
        dict(num_classes=NUM_CLASSES, in_channels=CHANNELS,
             feat_channels=CHANNELS, stacked_convs=1,
             strides=[8, 16, 32, 64, 128],
             norm_cfg=dict(type='GN', num_groups=2, requires_grad=True)),
        'loss_cls', [16, 8, 4, 2, 1],
        dict(nms_pre=100, min_bbox_size=0, score_thr=0.05, nms=NMS,
             max_per_img=30), 'ClipSigmoid',
        positional=(NUM_CLASSES, 32, ((0, 80), (64, 1e9)), 2),
        others=dict(strides=[8, 16])))

every_head = pytest.mark.parametrize('name', CASES)
focal = dict(type='mmdet.GaussianFocalLoss')
of_logits = dict(type='GaussianFocalLossWithLogits')


def build(name, prefix='sigplug.', loss=None, **kwargs):
    case = CASES[name]
    cfg = dict(copy.deepcopy(case.cfg), **kwargs)
    cfg['test_cfg'] = ConfigDict(case.test_cfg)
    if loss:
        cfg[case.loss] = loss
    with DefaultScope.overwrite_default_scope(case.scope):
        return MODELS.build(dict(type=f'{prefix}{name}', **cfg))


def stock_of(name):
    return f'{CASES[name].scope}.'


def both(name, stock_loss=None, dtype=torch.float32, scale=2, **kwargs):
    """The stock head and ours, with the same weights."""
    stock = build(name, stock_of(name), stock_loss)
    ours = build(name, **kwargs)
    # Scores all over (0, 1).
    with torch.no_grad():
        for param in stock.parameters():
            if param.dim() > 1:
                param.mul_(scale)
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock.to(dtype), ours.to(dtype)


def features(name, dtype=torch.float32):
    return tuple(torch.randn(2, CHANNELS, size, size, dtype=dtype)
                 for size in CASES[name].sizes)


def instances(name, *counts, dtype=torch.float32):
    """Boxes inside of the image, or of the range of the points."""
    batch = []
    for count in counts:
        corner = torch.rand(count, 2, dtype=dtype) * 70
        size = torch.rand(count, 2, dtype=dtype) * 45 + 8
        labels = torch.randint(NUM_CLASSES, (count, ))
        if name == 'CenterHead':
            boxes = torch.cat((corner / 3 - 12, torch.randn(count, 1),
                               size / 10, torch.rand(count, 4)), dim=1)
            batch.append(InstanceData(
                bboxes_3d=LiDARInstance3DBoxes(boxes.float(), box_dim=9),
                labels_3d=labels))
        else:
            batch.append(InstanceData(
                bboxes=torch.cat((corner, corner + size), dim=1),
                labels=labels))
    return batch


def compute_losses(name, head, outs, batch) -> dict[str, torch.Tensor]:
    """Return each loss of each level."""
    losses = (head.loss_by_feat(outs, batch) if name == 'CenterHead' else
              head.loss_by_feat(*outs, batch, METAS[:len(batch)]))
    return {f'{key}.{i}': loss for key, value in losses.items()
            for i, loss in enumerate(
                [value] if isinstance(value, torch.Tensor) else value)}


def change_heatmaps(name, outs, change):
    """Return the outputs, with all of the heatmaps changed."""
    if name == 'CenterHead':
        return tuple([dict(pred, heatmap=change(pred['heatmap']))]
                     for pred, in outs)
    return tuple([change(x) for x in out]
                 if i < CASES[name].num_heatmaps else out
                 for i, out in enumerate(outs))


def heatmaps_of(name, outs):
    found = []
    change_heatmaps(name, outs, found.append)
    return found


def cut(name, outs, change=lambda x: x):
    """Return the outputs with heatmaps that collect a gradient."""
    return change_heatmaps(
        name, outs, lambda x: change(x.detach().clone()).requires_grad_())


def flatten(outs) -> list[torch.Tensor]:
    if isinstance(outs, torch.Tensor):
        return [outs]
    values = outs.values() if isinstance(outs, dict) else outs
    return [x for value in values if value is not None
            for x in flatten(value)]


def compare(ours, stock, got, expected, rtol=1e-6):
    """Compare losses, and their gradients of all parameters."""
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert value.isfinite()
        torch.testing.assert_close(
            got[key], value, rtol=rtol, atol=0, msg=lambda m, k=key:
            f'{k}: {m}')
    sum(got.values()).backward()
    sum(expected.values()).backward()
    params = dict(stock.named_parameters())
    for key, param in ours.named_parameters():
        grad = params[key].grad
        assert (param.grad is None) == (grad is None), key
        if grad is not None:
            torch.testing.assert_close(
                param.grad, grad, rtol=rtol,
                atol=2 * rtol * grad.abs().max().item(),
                msg=lambda m, k=key: f'{k}: {m}')


# --- construction ---------------------------------------------------------


@every_head
def test_names_and_checkpoints(name):
    stock, ours = both(name)
    assert type(ours) is getattr(dense_heads, name)
    # The bare name is the stock head's.
    assert MODELS.get(name) is None
    assert type(ours) is not type(stock) and isinstance(ours, type(stock))
    assert list(stock.state_dict()) == list(ours.state_dict())
    stock.load_state_dict(ours.state_dict(), strict=True)
    assert type(ours.heatmap_act).__name__ == CASES[name].act


@every_head
def test_positional_arguments(name):
    case, cls = CASES[name], getattr(dense_heads, name)
    with DefaultScope.overwrite_default_scope(case.scope):
        stock, ours = (
            head(*copy.deepcopy(case.positional), **copy.deepcopy(case.others))
            for head in (MODELS.get(f'{stock_of(name)}{name}'), cls))
    ours.load_state_dict(stock.state_dict(), strict=True)
    if name == 'CenterNetHead':
        assert ours.loss_center_heatmap.loss_weight == 3
    kind = inspect.signature(cls).parameters['heatmap_act'].kind
    assert kind is inspect.Parameter.KEYWORD_ONLY


@every_head
@pytest.mark.parametrize('kwargs, error, words', [
    (dict(loss=of_logits, heatmap_act=dict(type='ClipSigmoid')), ValueError,
     ('heatmap_act', 'GaussianFocalLossWithLogits', 'None')),
    (dict(loss=dict(focal, reduction='none')), ValueError,
     ("reduction='mean'", "reduction='none'")),
    (dict(heatmap_act='ClipSigmoid'), TypeError,
     ('heatmap_act', "dict(type='ClipSigmoid')")),
    (dict(heatmap_atc=dict(type='ClipSigmoid')), TypeError,
     ('heatmap_atc', )),
])
def test_refused_configs(name, kwargs, error, words):
    with pytest.raises(error) as info:
        build(name, **kwargs)
    for word in (name, *words) if 'reduction' in words[0] else words:
        assert word in str(info.value)


@pytest.mark.parametrize('name, loss', [
    ('CenterNetHead', 'loss_wh'), ('CornerHead', 'loss_offset'),
    ('CentripetalHead', 'loss_guiding_shift'),
    ('CenterNetUpdateHead', 'loss_bbox')])
def test_reduction_of_the_other_losses(name, loss):
    with pytest.raises(ValueError, match=f"{loss} of .*reduction='sum'"):
        build(name, **{loss: dict(type='mmdet.L1Loss', reduction='sum')})


# --- losses ---------------------------------------------------------------


@every_head
def test_losses_and_gradients_equal_the_stock_heads(name):
    stock, ours = both(name)
    x, batch = features(name), instances(name, 5, 3)
    compare(ours, stock, compute_losses(name, ours, ours(x), batch),
            compute_losses(name, stock, stock(x), batch))


@every_head
def test_loss_of_logits_equals_the_stock_head_at_moderate_logits(name):
    stock, ours = both(
        name, focal, torch.float64, scale=0.8, loss=of_logits)
    x = features(name, torch.float64)
    batch = instances(name, 5, 3, dtype=torch.float64)
    assert all(x.abs().max() < 8 for x in heatmaps_of(name, ours(x)))
    # Up to the 1e-12 inside of mmdet's logarithms.
    compare(ours, stock, compute_losses(name, ours, ours(x), batch),
            compute_losses(name, stock, stock(x), batch), rtol=1e-7)


def clip_stock(name, stock, outs):
    """Give the stock head the bounds of ``ClipSigmoid(EPS)``."""
    if name == 'CenterNetUpdateHead':
        stock.sigmoid_clamp = EPS
        return outs
    # sigmoid(clamp(x)) is clamp(sigmoid(x)).
    limit = math.log((1 - EPS) / EPS)
    bounds = (EPS, 1 - EPS) if name == 'CenterNetHead' else (-limit, limit)
    return change_heatmaps(name, outs, lambda x: x.clamp(*bounds))


@every_head
@pytest.mark.parametrize('clip', [
    dict(heatmap_act=dict(type='ClipSigmoid', eps=EPS)),
    dict(loss=dict(of_logits, clip=EPS))])
def test_other_bounds_equal_the_stock_head_with_them(name, clip):
    stock, ours = both(name, focal, torch.float64, scale=6,
                       **dict(dict(loss=focal), **clip))
    x = features(name, torch.float64)
    batch = instances(name, 5, 3, dtype=torch.float64)
    assert all((x.sigmoid() < EPS).any() and (x.sigmoid() > 1 - EPS).any()
               for x in heatmaps_of(name, ours(x)) if x.numel() > 300)
    compare(ours, stock, compute_losses(name, ours, ours(x), batch),
            compute_losses(name, stock, clip_stock(name, stock, stock(x)),
                           batch), rtol=1e-7)


@every_head
def test_activation_and_loss_run_as_configured(name):
    """The loss gets what the activation makes of the logits; hooks work."""
    head = build(name, heatmap_act=dict(type='ClipSigmoid', eps=0.3))
    seen: list[Any] = []
    loss = getattr(head, CASES[name].loss)
    loss.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    outs = head(features(name))
    compute_losses(name, head, outs, instances(name, 5, 3))
    got = torch.cat([x.flatten() for x in seen]).sort()[0]
    logits = torch.cat([x.flatten() for x in heatmaps_of(name, outs)])
    torch.testing.assert_close(
        got, logits.sigmoid().clamp(0.3, 0.7).sort()[0])


class SquaredError(nn.Module):
    def forward(self, pred, target, *args, avg_factor=None, **kwargs):
        return (pred - target).square().sum() / avg_factor


class SquaredErrorOfLogits(SquaredError):
    """A loss that takes logits, and takes the sigmoid itself."""

    from_logits = True

    def forward(self, pred, *args, **kwargs):
        return super().forward(pred.sigmoid(), *args, **kwargs)


@every_head
def test_losses_of_ones_own(name):
    losses = []
    for loss in (SquaredError, SquaredErrorOfLogits):
        MODELS.register_module(module=loss, force=True)
        torch.manual_seed(0)
        head = build(name, loss=dict(type=loss.__name__),
                     heatmap_act=None if losses else dict(type='Sigmoid'))
        losses.append(compute_losses(
            name, head, head(features(name)), instances(name, 5, 3)))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


@every_head
@pytest.mark.parametrize('value', [-200.0, 200.0])
@pytest.mark.parametrize('dtype', [
    torch.float32, torch.float16, torch.bfloat16])
def test_loss_of_logits_of_confident_cells(name, value, dtype):
    head = build(name, loss=of_logits)
    outs = cut(name, head(features(name)),
               lambda x: x.fill_(value).to(dtype))
    losses = compute_losses(name, head, outs, instances(name, 5, 3))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    grads = [x.grad for x in heatmaps_of(name, outs)]
    assert all(grad.isfinite().all() for grad in grads)
    # A level of CenterNetUpdateHead may be without a peak.
    assert any(grad.any() for grad in grads)


@every_head
@pytest.mark.parametrize('dtype, autocast', [
    (torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True)])
def test_half_precision_logits_of_confident_cells(name, dtype, autocast):
    """In float32; half-precision dtypes round these scores to 1."""
    head = build(name)
    outs = cut(name, head(features(name)), lambda x: x.fill_(12).to(dtype))
    batch = instances(name, 5, 3)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        losses = compute_losses(name, head, outs, batch)
    assert all(loss.isfinite() and loss.dtype == torch.float32
               for loss in losses.values())
    sum(losses.values()).backward()
    assert all(x.grad.dtype == dtype and x.grad.isfinite().all()
               for x in heatmaps_of(name, outs))
    exact = compute_losses(
        name, head, cut(name, outs, torch.Tensor.float), batch)
    torch.testing.assert_close(losses, exact, rtol=0.02, atol=0)


# The deformable convolutions of CentripetalHead know no bfloat16 on a CPU.
@pytest.mark.parametrize('name', [
    name for name in CASES if name != 'CentripetalHead'])
def test_forward_and_losses_under_autocast(name):
    head = build(name)
    x, batch = features(name), instances(name, 5, 3)
    exact = compute_losses(name, head, head(x), batch)
    with torch.autocast('cpu', torch.bfloat16):
        outs = head(x)
        losses = compute_losses(name, head, outs, batch)
    assert heatmaps_of(name, outs)[0].dtype == torch.bfloat16
    for key in (key for key in losses if CASES[name].loss[5:] in key
                or 'heatmap' in key or 'det' in key):
        assert losses[key].dtype == torch.float32
        torch.testing.assert_close(losses[key], exact[key], rtol=0.05, atol=0)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters()
               if p.grad is not None)


@every_head
@pytest.mark.parametrize('inplace', [False, True])
def test_outputs_are_not_overwritten(name, inplace):
    head = build(name, heatmap_act=dict(type='ClipSigmoid', inplace=inplace))
    batch = instances(name, 5, 3)
    for no_grad in (False, True):
        with torch.set_grad_enabled(not no_grad):
            outs = head(features(name))
            before = [x.clone() for x in flatten(outs)]
            first = compute_losses(name, head, outs, batch)
            second = compute_losses(name, head, outs, batch)
        for x, kept in zip(flatten(outs), before, strict=True):
            assert x.equal(kept)
        assert all(first[key].equal(second[key]) for key in first)


@pytest.mark.parametrize('name', [
    name for name in CASES if name != 'CenterNetUpdateHead'])
@pytest.mark.parametrize('counts', [(0, 0), (0, 4)])
def test_samples_without_boxes(name, counts):
    stock, ours = both(name)
    x, batch = features(name), instances(name, *counts)
    compare(ours, stock, compute_losses(name, ours, ours(x), batch),
            compute_losses(name, stock, stock(x), batch))


# --- predictions ----------------------------------------------------------


@every_head
@pytest.mark.parametrize('act', [None, dict(type='ClipSigmoid', eps=0.3)])
def test_predictions_equal_the_stock_heads(name, act):
    """With any activation: the clip is there for the loss."""
    stock, ours = both(name, scale=1.4, heatmap_act=act)
    x = features(name)
    found = []
    for head in (stock, ours):
        # With the statistics of the batch, as no others have been learnt.
        with torch.no_grad():
            outs = head(x)
            # The loss comes first, as in a validation that also logs it.
            if head is ours:
                compute_losses(name, head, outs, instances(name, 5, 3))
            if name == 'CenterHead':
                results = head.predict_by_feat(outs, METAS)
                found.append([
                    (r.scores_3d, r.labels_3d, r.bboxes_3d.tensor)
                    for r in results])
                continue
            # Untrained shifts of CentripetalHead bring no two corners
            # together.
            torch.manual_seed(1)
            for out in outs[6:]:
                out[:] = [3 * torch.rand_like(x) for x in out]
            found.append([
                (r.scores, r.labels, r.bboxes) for r in head.predict_by_feat(
                    *outs, batch_img_metas=METAS, rescale=True,
                    with_nms=True)])
    for expected, got in zip(*found, strict=True):
        # Some of them beyond the bounds of the activation.
        assert 0.7 < expected[0].max() < 1
        assert all(x.equal(y) for x, y in zip(got, expected, strict=True))
