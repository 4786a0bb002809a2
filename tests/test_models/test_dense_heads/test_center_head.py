"""Where ``sigplug.CenterHead`` differs from mmdet3d's head, or may not."""
import math

import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes

from sigplug.models.dense_heads import CenterHead

from .center_heads import (
    BATCHES,
    CHANNELS,
    CLASSES,
    NoWaiting,
    both,
    box,
    config,
    cuda_waits,
    features,
    instances,
    to,
)

METAS = [dict(box_type_3d=LiDARInstance3DBoxes)] * 2
DCN = dict(
    type='DCNSeparateHead', init_bias=-2.19, final_kernel=3,
    head_conv=CHANNELS,
    dcn_config=dict(type='DCN', in_channels=CHANNELS, kernel_size=3,
                    out_channels=CHANNELS, padding=1, groups=4))


@pytest.fixture(scope='module')
def heads():
    return both()


def compare_losses(actual, expected, rtol=1e-6):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=1e-9)


# --- construction ---------------------------------------------------------


@pytest.mark.parametrize('train_cfg', [
    None, {}, dict(code_weights=[1.0] * 10), dict(grid_size=None)])
def test_needs_train_cfg_for_its_losses_alone(train_cfg):
    stock = both()[0].eval()
    head = CenterHead(**config(train_cfg=train_cfg)).eval()
    head.load_state_dict(stock.state_dict())
    x = features()
    for ours, wanted in zip(head.predict_by_feat(head(x), METAS),
                            stock.predict_by_feat(stock(x), METAS),
                            strict=True):
        torch.testing.assert_close(ours.scores_3d, wanted.scores_3d)
    with pytest.raises(ValueError, match='losses need grid_size, .*train_cfg'):
        head.loss_by_feat(head(x), BATCHES['random'])


GOOD = config()


@pytest.mark.parametrize('change, words', [
    *((dict(train_cfg=dict(GOOD['train_cfg'], code_weights=weights)),
       ('code_weights', str(weights)))
      for weights in ([1.0] * 9 + [math.nan], [1.0] * 9 + [-0.2],
                      [1.0] * 8)),
    (dict(loss_bbox=dict(type='mmdet.L1Loss', reduction='sum')),
     ('loss_bbox', 'sum')),
])
def test_values_that_give_no_targets(change, words):
    with pytest.raises(ValueError) as info:
        CenterHead(**config(**change))
    assert all(word in str(info.value) for word in words)


def changed(part, **values):
    """The part of the config, without the values that are None."""
    part = {**GOOD[part], **values}
    return {name: value for name, value in part.items() if value is not None}


@pytest.mark.parametrize('nms_type, name, value, remedy', [
    ('circle', 'min_radius', None, 'a list of numbers, .* each of 6 tasks'),
    ('circle', 'min_radius', [4, 12, 10], 'each of 6 tasks'),
    ('circle', 'min_radius', 4.0, 'each of 6 tasks'),
    ('circle', 'post_max_size', None, 'an integer'),
    ('rotate', 'nms_thr', None, 'a number'),
    ('rotate', 'nms_thr', [0.2] * 6, 'a number'),
    ('rotate', 'score_threshold', None, 'a number'),
    ('rotate', 'pre_max_size', 0, 'an integer'),
    ('rotate', 'post_max_size', 'all', 'an integer'),
    ('rotate', 'post_center_limit_range', None, 'six numbers'),
    ('rotate', 'post_center_limit_range', [], 'six numbers'),
    (['rotate'], 'nms_type', ['rotate'], 'a list of them for 6 tasks'),
    ('size', 'nms_type', 'size', "'circle' or 'rotate'"),
    (['circle'] + ['rotate'] * 5, 'nms_thr', None, 'a number'),
])
def test_test_cfg_that_gives_no_predictions(nms_type, name, value, remedy):
    test_cfg = changed('test_cfg', **{'nms_type': nms_type, name: value})
    with pytest.raises(ValueError, match=fr'test_cfg\.{name} .*{remedy}'):
        CenterHead(**config(test_cfg=test_cfg))
    # They are read by no one else.
    CenterHead(**config(test_cfg=None))
    other = 'rotate' if nms_type == 'circle' else 'circle'
    if name not in ('nms_type', 'post_max_size'):
        CenterHead(**config(test_cfg=dict(test_cfg, nms_type=other)))


@pytest.mark.parametrize('velocity, coder, words', [
    (True, dict(post_center_range=None), 'bbox_coder.post_center_range'),
    (True, dict(code_size=7), "bbox_coder.code_size must be 9 .* with 'vel'"),
    (False, {}, "bbox_coder.code_size must be 7 .* without 'vel'")])
def test_coder_that_gives_no_predictions(velocity, coder, words):
    coder = changed('bbox_coder', **coder)
    if 'post_center_range' not in coder:
        coder['post_center_range'] = None
    with pytest.raises(ValueError, match=words):
        CenterHead(**config(velocity, bbox_coder=coder))
    CenterHead(**config(velocity, bbox_coder=coder, test_cfg=None))


class OwnLoss(CenterHead):
    def loss_by_feat(self, preds_dicts, *args, **kwargs):
        return dict(loss=preds_dicts[0][0]['heatmap'].sigmoid().mean())


class OwnLossLater(OwnLoss):
    def loss(self, *args, **kwargs):
        return super().loss(*args, **kwargs)


class OwnLossWithAct(CenterHead):
    def loss_by_feat(self, preds_dicts, *args, **kwargs):
        return dict(loss=self.heatmap_act(preds_dicts[0][0]['heatmap']).mean())


class MoreLoss(CenterHead):
    def loss_by_feat(self, *args, **kwargs):
        return dict(super().loss_by_feat(*args, **kwargs), more=0)


@pytest.mark.parametrize('cls', [OwnLoss, OwnLossLater])
def test_warns_of_a_loss_without_the_activation(cls):
    with pytest.warns(UserWarning, match=r'OwnLoss\.loss_by_feat .*super'):
        cls(**config())


@pytest.mark.filterwarnings('error:.*heatmap_act')
@pytest.mark.parametrize('cls', [CenterHead, OwnLossWithAct, MoreLoss])
def test_does_not_warn_of_a_loss_with_the_activation(cls):
    cls(**config())


@pytest.mark.parametrize('separate', [
    dict(type='SeparateHead', init_bias=-2.19, final_kernel=3), DCN])
def test_init_weights_sets_the_prior_score_and_nothing_else(separate):
    """Upstream's init_bias never takes effect: the scores start at 0.5."""
    head = CenterHead(**config(separate_head=separate))
    drawn = {k: v.clone() for k, v in head.state_dict().items()}
    head.init_weights()
    for task in head.task_heads:
        branch = getattr(task, 'heatmap', None) or task.cls_head
        assert (branch[-1].bias == -2.19).all()
    changed = {k for k, v in head.state_dict().items()
               if k.startswith('task_heads') and (v != drawn[k]).any()}
    assert len(changed) == len(CLASSES)


# --- losses ---------------------------------------------------------------


def test_losses_with_deformable_convolutions_equal_the_stock_heads():
    """As in mmdet3d's *_dcn configs; of two levels the first counts."""
    stock, ours = both(separate_head=DCN)
    x, batch = features() + features(seed=1), BATCHES['random']
    compare_losses(ours.loss_by_feat(ours(x), batch),
                   stock.loss_by_feat(stock(x), batch))


@pytest.mark.parametrize('name', ['random', 'all empty'])
@pytest.mark.parametrize('options', [{}, dict(
    class_weights=[2.0] * 10, log_class_losses=True, ignore_label=-1)])
@pytest.mark.parametrize('loss', [
    'mmdet.GaussianFocalLoss', 'GaussianFocalLossWithLogits'])
def test_losses_do_not_wait(no_peaks, name, loss, options):
    head = CenterHead(**config(loss_cls=dict(type=loss)), **options)
    preds = head(features(len(BATCHES[name])))
    with NoWaiting():
        losses = head.loss_by_feat(preds, BATCHES[name])
        losses = [value for key, value in losses.items() if 'loss' in key]
        sum(losses).backward()
    assert len(losses) == 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_losses_do_not_wait_for_cuda(no_peaks):
    head = CenterHead(**config()).cuda()
    batch = to(BATCHES['random'], 'cuda')
    preds = head([x.cuda() for x in features()])
    head.loss_by_feat(preds, batch)
    with cuda_waits() as waits:
        losses = head.loss_by_feat(preds, batch)
        sum(losses.values()).backward()
    assert not waits


def test_reduction_of_the_box_loss_does_not_matter(heads):
    """Upstream's default is 'none', which mmengine averages its own way."""
    head = CenterHead(**config(loss_bbox=dict(
        type='mmdet.L1Loss', reduction='none', loss_weight=0.25)))
    head.load_state_dict(heads[0].state_dict())
    x, batch = features(), BATCHES['random']
    compare_losses(head.loss_by_feat(head(x), batch),
                   heads[0].loss_by_feat(heads[0](x), batch))


def test_observers_see_what_the_loss_sees(heads):
    head, seen = heads[1], []
    head.heatmap_observers.append(lambda *args: seen.append(args))
    preds = head(features())
    head.loss_by_feat(preds, BATCHES['random'])
    head.heatmap_observers.clear()
    heatmaps = head.get_targets(BATCHES['random'])[0]
    for i, (pred, target) in enumerate(zip(preds, heatmaps, strict=True)):
        assert seen[i][0] == i
        assert seen[i][1].equal(pred[0]['heatmap'])
        assert seen[i][2].equal(target)


@pytest.mark.parametrize('unknown, column', [
    (dict(vx=math.nan), 8), (dict(dz=0.0), 5), (dict(dz=-1.0), 5)])
def test_what_is_not_finite_takes_only_itself_out(heads, unknown, column):
    """Upstream's mask multiplies NaN by 0, which is NaN."""
    batch = [instances([box(1.5, 1.5, **unknown), box(-4, 2)], [0, 0])]
    head = heads[1]
    preds = head(features(1))
    target, index, mask = (part[0] for part in head.get_targets(batch)[1:])
    assert not target[0, 0, column].isfinite()
    target[0, 0, column] = 0
    pred = torch.cat([preds[0][0][key] for key in (
        'reg', 'height', 'dim', 'rot', 'vel')], dim=1)
    rows = pred.flatten(2)[0].t()[index[0]]
    weights = torch.tensor(head.train_cfg['code_weights']) * mask[0, :, None]
    weights[0, column] = 0
    expected = 0.25 * ((rows - target[0]).abs() * weights).sum() / 2.0001
    loss = head.loss_by_feat(preds, batch)['task0.loss_bbox']
    torch.testing.assert_close(loss, expected)


# --- boxes without velocity -----------------------------------------------


def test_boxes_with_velocity_into_a_head_without():
    """It leaves theirs out; losses of 7 values: test_properties.py."""
    head = CenterHead(**config(velocity=False))
    preds, batch = head(features()), BATCHES['random']
    compare_losses(head.loss_by_feat(preds, batch), head.loss_by_feat(preds, [
        instances(gt.bboxes_3d.tensor[:, :7], gt.labels_3d) for gt in batch]))


def test_takes_features_in_the_layout_of_convolutions():
    """Code on top of upstream's calls ``view`` on the maps."""
    head = CenterHead(**config()).eval()
    x = features()
    expected = head(x)
    found = head([f.to(memory_format=torch.channels_last) for f in x])
    for (ours, ), (plain, ) in zip(found, expected, strict=True):
        for name, maps in ours.items():
            assert maps.is_contiguous()
            torch.testing.assert_close(maps, plain[name])
