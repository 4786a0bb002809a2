"""All heads, their stock twins, and what both compute."""
import copy
from typing import NamedTuple

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

try:
    from mmdet3d.structures import CameraInstance3DBoxes, LiDARInstance3DBoxes

    from .center_heads import config as center_config
except ModuleNotFoundError:  # mmdet's heads do without
    CameraInstance3DBoxes = LiDARInstance3DBoxes = None
    center_config = dict

NUM_CLASSES, CHANNELS, SIZE = 3, 8, 128
NMS = dict(type='nms', iou_threshold=0.5)
METAS = [dict(batch_input_shape=(SIZE, SIZE), img_shape=(SIZE, SIZE),
              border=[0, SIZE, 0, SIZE], scale_factor=(0.5, 2.0),
              box_type_3d=LiDARInstance3DBoxes)] * 2
MONO = 'SMOKEMono3DHead'
MONO_METAS = [dict(
    pad_shape=(SIZE, SIZE), img_shape=(SIZE, SIZE), affine_aug=aug,
    cam2img=[[90.0, 0, 60, 1], [0, 90, 62, 2], [0, 0, 1, 0], [0, 0, 0, 1]],
    trans_mat=[[0.25, 0, 0], [0, 0.25, 0], [0, 0, 1]],
    box_type_3d=CameraInstance3DBoxes) for aug in (False, True)]


class Case(NamedTuple):
    """A head, and what the tests have to know of it."""

    cfg: dict
    loss: str  # the name of its heatmap loss
    # Of the feature maps, all of the same stride for CornerHead.
    sizes: list
    test_cfg: dict
    act: str = 'Sigmoid'
    scope: str = 'mmdet'
    num_heatmaps: int = 1  # how many of its outputs are heatmaps


CORNER_TEST = dict(
    corner_topk=100, local_maximum_kernel=3, distance_threshold=50.0,
    score_thr=0.01, max_per_img=30, nms=NMS)
SMOKE = dict(
    dim_channel=[3, 4, 5], ori_channel=[6, 7], stacked_convs=0,
    feat_channels=CHANNELS, use_direction_classifier=False,
    diff_rad_by_sin=False, pred_attrs=False, pred_velo=False, dir_offset=0,
    group_reg_dims=(8, ), cls_branch=(32, ), reg_branch=((32, ), ),
    num_attrs=0, bbox_code_size=7, dir_branch=(), attr_branch=(),
    # In front of a norm a bias has no gradient but rounding.
    conv_bias=False, dcn_on_last_conv=False, strides=None, loss_attr=None,
    bbox_coder=dict(
        type='SMOKECoder', base_depth=(28.01, 16.32), code_size=7,
        base_dims=((0.88, 1.73, 0.67), (1.78, 1.70, 0.58),
                   (3.88, 1.63, 1.53))),
    loss_dir=dict(type='mmdet.CrossEntropyLoss'),
    # Upstream's default is misspelt.
    loss_cls=dict(type='mmdet.GaussianFocalLoss', loss_weight=1.0),
    loss_bbox=dict(type='mmdet.L1Loss', reduction='sum', loss_weight=1 / 300))
CASES = dict(
    CenterHead=Case(
        center_config(), 'loss_cls', [(24, 32)],
        center_config().get('test_cfg', {}), 'ClipSigmoid', 'mmdet3d'),
    CenterNetHead=Case(
        dict(in_channels=CHANNELS, feat_channels=CHANNELS,
             num_classes=NUM_CLASSES), 'loss_center_heatmap', [32],
        dict(topk=30, local_maximum_kernel=3, max_per_img=30, nms=NMS)),
    CornerHead=Case(
        dict(num_classes=NUM_CLASSES, in_channels=CHANNELS), 'loss_heatmap',
        [16, 16], CORNER_TEST, num_heatmaps=2),
    CentripetalHead=Case(
        dict(num_classes=NUM_CLASSES, in_channels=CHANNELS,
             corner_emb_channels=0), 'loss_heatmap', [16, 16], CORNER_TEST,
        num_heatmaps=2),
    CenterNetUpdateHead=Case(
        dict(num_classes=NUM_CLASSES, in_channels=CHANNELS,
             feat_channels=CHANNELS, stacked_convs=1,
             strides=[8, 16, 32, 64, 128],
             norm_cfg=dict(type='GN', num_groups=2, requires_grad=True)),
        'loss_cls', [16, 8, 4, 2, 1],
        dict(nms_pre=100, min_bbox_size=0, score_thr=0.05, nms=NMS,
             max_per_img=30), 'ClipSigmoid'),
    SMOKEMono3DHead=Case(
        dict(SMOKE, num_classes=NUM_CLASSES, in_channels=CHANNELS),
        'loss_cls', [32], dict(), 'ClipSigmoid', 'mmdet3d'))

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


def spread_scores(head, scale=2):
    """Scale the weights, for scores all over (0, 1)."""
    for param in head.parameters():
        if param.dim() > 1:
            param.data.mul_(scale)
    return head


def both(name, stock_loss=None, dtype=torch.float32, scale=2, **kwargs):
    """The stock head and ours, with the same weights."""
    stock = spread_scores(build(name, stock_of(name), stock_loss), scale)
    ours = build(name, **kwargs)
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock.to(dtype), ours.to(dtype)


def features(name, dtype=torch.float32):
    return tuple(torch.randn(
        2, CHANNELS, *(size if isinstance(size, tuple) else (size, size)),
        dtype=dtype) for size in CASES[name].sizes)


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
            continue
        batch.append(InstanceData(
            bboxes=torch.cat((corner, corner + size), dim=1), labels=labels))
        if name == MONO:
            boxes = torch.rand(count, 7, dtype=dtype) * 3 + 1
            batch[-1].update(InstanceData(
                bboxes_3d=CameraInstance3DBoxes(boxes, box_dim=7),
                labels_3d=labels, centers_2d=corner + size / 3))
    return batch


def compute_losses(name, head, outs, batch) -> dict[str, torch.Tensor]:
    """Return each loss of each level."""
    losses = (head.loss_by_feat(outs, batch) if name == 'CenterHead' else
              head.loss_by_feat(*outs, batch, batch, MONO_METAS[:len(batch)])
              if name == MONO else
              head.loss_by_feat(*outs, batch, METAS[:len(batch)]))
    return {f'{key}.{i}': loss for key, value in losses.items()
            for i, loss in enumerate(
                [value] if isinstance(value, torch.Tensor) else value)}


def predict(name, head, outs) -> list[tuple[torch.Tensor, ...]]:
    """Return scores, labels and boxes of each sample."""
    if name in ('CenterHead', MONO):
        found = (head.predict_by_feat(outs, METAS) if name == 'CenterHead' else
                 head.predict_by_feat(*outs, MONO_METAS))
        return [(r.scores_3d, r.labels_3d, r.bboxes_3d.tensor) for r in found]
    return [(r.scores, r.labels, r.bboxes) for r in head.predict_by_feat(
        *outs, batch_img_metas=METAS, rescale=True, with_nms=True)]


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
