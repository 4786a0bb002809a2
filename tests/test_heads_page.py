"""The snippets of docs/heads.md in heads like those that they are for."""
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import page_snippet
from mmdet3d.models.utils import clip_sigmoid
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from test_models.test_dense_heads.center_heads import (
    CLASSES,
    HEIGHT,
    POINT_RANGE,
    VOXEL,
    WIDTH,
    both,
    config,
    features,
    random_instances,
)
from torch import nn

snippet = partial(page_snippet, 'heads.md')
# Inside the map, as the data sets give them.
BATCH = [random_instances(30, reach=0.95), random_instances(20, 1, reach=0.95)]
COUNTS = [len(names) for names in CLASSES]


def head_of(title, base=nn.Module):
    """An own head that mixes in the parts of a snippet."""
    head = type('Head', (snippet(title)['FastParts'], base), {})()
    head.train_cfg = ConfigDict(config()['train_cfg'])
    head.num_classes, head.norm_bbox = COUNTS, True
    return head


@pytest.fixture(scope='module')
def stock():
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        return both()[0]


@pytest.fixture(scope='module')
def expected(stock):
    """Heatmaps, boxes, indices and masks of mmdet3d's head."""
    return stock.get_targets(BATCH)


def compare(found, expected):
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_bevdet(expected):
    found = head_of('BEVDet').get_targets(
        [gt.bboxes_3d for gt in BATCH], [gt.labels_3d for gt in BATCH])
    for part, want in zip(found, expected, strict=True):
        compare(part, want)


def test_dsvt(expected):
    *found, drawn = head_of('DSVT').get_targets(BATCH)
    heatmaps, boxes, index, masks = expected
    # The cosine comes first.
    boxes = [x[..., [0, 1, 2, 3, 4, 5, 7, 6]] for x in boxes]
    for part, want in zip(found, (heatmaps, boxes, index, masks)):
        compare(part, want)
    for task, mask in zip(drawn, masks):
        assert [len(x) for x in task] == mask.sum(1).tolist()
        assert all(sample.shape[1] == 9 for sample in task)


def test_awml():
    """The config instead of its head: its losses by class."""
    head_cfg = snippet('AWML')['pts_bbox_head']
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        head = MODELS.build(dict(config(), **head_cfg))
    losses = head.loss_by_feat(head(features()), BATCH)
    for task, names in enumerate(CLASSES):
        torch.testing.assert_close(
            sum(losses[f'task{task}.heatmap_{name}'] for name in names),
            losses[f'task{task}.loss_heatmap'].detach())


class PointCloudHead(nn.Module):
    """With the interface of OpenPCDet's ``CenterHead``."""

    def __init__(self):
        super().__init__()
        self.class_names = [
            *reversed([name for names in CLASSES for name in names])]
        self.class_names_each_head = CLASSES
        self.voxel_size = torch.tensor([VOXEL, VOXEL, 0.2])
        low, high = POINT_RANGE[:2], POINT_RANGE[2:]
        self.point_cloud_range = torch.tensor([*low, -5.0, *high, 3.0])
        self.model_cfg = SimpleNamespace(
            TARGET_ASSIGNER_CONFIG=SimpleNamespace(
                FEATURE_MAP_STRIDE=4, GAUSSIAN_OVERLAP=0.1, MIN_RADIUS=2,
                NUM_MAX_OBJS=12))
        self.build_losses()

    def build_losses(self):
        self.hm_loss_func = nn.Identity()


def test_openpcdet(expected):
    head = head_of('OpenPCDet', PointCloudHead)
    gt_boxes = torch.zeros(2, 35, 10)
    for rows, gt in zip(gt_boxes, BATCH):
        count = len(gt.labels_3d)
        rows[:count, :3] = gt.bboxes_3d.gravity_center
        rows[:count, 3:9] = gt.bboxes_3d.tensor[:, 3:]
        # Its classes are in another order, and count from 1.
        rows[:count, 9] = 10 - gt.labels_3d
    found = head.assign_targets(gt_boxes, feature_map_size=(HEIGHT, WIDTH))
    heatmaps, boxes, index, masks = expected
    boxes = [x[..., [0, 1, 2, 3, 4, 5, 7, 6, 8, 9]] for x in boxes]
    compare(found['heatmaps'], heatmaps)
    compare(found['target_boxes'], boxes)
    compare(found['inds'], index)
    compare(found['masks'], [mask.long() for mask in masks])

    logits = torch.randn_like(heatmaps[1])
    assert head.sigmoid(logits) is logits
    q = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    want = -torch.where(
        heatmaps[1] == 1, (1 - q)**2 * q.log(),
        (1 - heatmaps[1])**4 * q**2 * (1 - q).log()).sum()
    torch.testing.assert_close(
        head.hm_loss_func(logits, heatmaps[1]),
        want / heatmaps[1].eq(1).sum())


def test_bevfusion(expected):
    head = head_of('BEVFusion')
    head.num_classes = sum(COUNTS)
    found = head.heatmaps(BATCH)
    torch.testing.assert_close(
        found, torch.cat(expected[0], 1).transpose(2, 3), rtol=0, atol=1e-6)
    head.loss_heatmap = MODELS.build(
        dict(type='mmdet.GaussianFocalLoss', loss_weight=1.3))
    logits = 3 * torch.randn_like(found)
    torch.testing.assert_close(
        head.heatmap_focal_loss(logits, found),
        head.loss_heatmap(clip_sigmoid(logits.clone()), found,
                          avg_factor=found.eq(1).sum().item()),
        rtol=1e-6, atol=0)
