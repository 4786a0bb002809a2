"""KITTI's frames in its own files, through the 7-value head and the stock one.

They are not part of the repository. They are looked for in the folder that
SIGPLUG_REAL_FRAMES names, then in ``../shared/real_frames`` beside the
repository.
"""
import copy
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from sigplug.visualization import draw_bev, save_png

FRAMES = Path(os.environ.get('SIGPLUG_REAL_FRAMES')
              or REPOSITORY.parent / 'shared/real_frames')
CONFIG, = (REPOSITORY / 'configs/centerpoint').glob('*_kitti-3d-3class.py')
NAMES = '000000', '000001', '000002', '000134'
pytestmark = pytest.mark.skipif(
    not all((FRAMES / f'kitti/{name}.label.txt').is_file() for name in NAMES),
    reason=f'no KITTI frames {NAMES} in {FRAMES} (SIGPLUG_REAL_FRAMES)')

CLASSES = ['Pedestrian', 'Cyclist', 'Car']
METAS = [dict(box_type_3d=LiDARInstance3DBoxes)] * len(NAMES)


def lines(name, kind):
    return (FRAMES / f'kitti/{name}.{kind}.txt').read_text().splitlines()


def read(name):
    """The points of a frame and its annotations of the three classes."""
    calibration = {}
    for key, _, values in (line.partition(': ') for line in lines(
            name, 'calib') if line):
        calibration[key] = np.array(values.split(), dtype=float)
    turned = np.eye(4)
    turned[:3, :3] = calibration['R0_rect'].reshape(3, 3)
    lidar_to_camera = turned @ np.vstack([
        calibration['Tr_velo_to_cam'].reshape(3, 4), [0, 0, 0, 1]])
    boxes, labels = [], []
    for kind, *values in (line.split() for line in lines(name, 'label')):
        if kind in CLASSES:
            height, width, length, x, y, z, turn = map(float, values[7:])
            labels.append(CLASSES.index(kind))
            # The camera looks along the LiDAR's x, and turns clockwise.
            boxes.append([
                *np.linalg.solve(lidar_to_camera, [x, y, z, 1])[:3],
                length, width, height,
                math.remainder(-turn - math.pi / 2, 2 * math.pi)])
    points = np.fromfile(FRAMES / f'kitti/{name}.bin', '<f4').reshape(-1, 4)
    return points, torch.tensor(boxes).float(), torch.tensor(labels)


@pytest.fixture(scope='module')
def frames():
    return [read(name) for name in NAMES]


def instances(boxes, labels):
    gt = InstanceData()
    gt.bboxes_3d = LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[1])
    gt.labels_3d = labels
    return gt


def maps(points):
    """Density, height and intensity over the cells of the head."""
    x, y, z, intensity = points.T
    return np.arcsinh([np.histogram2d(
        y, x, (248, 216), ((-39.68, 39.68), (0, 69.12)), weights=weights)[0]
        for weights in (np.ones_like(x), z, intensity)]).astype('f4')


@pytest.fixture(scope='module')
def heads():
    """The stock head, which needs a velocity, of weight 0; and ours."""
    model = Config.fromfile(CONFIG).model
    cfg = dict(
        model.pts_bbox_head, in_channels=3, share_conv_channel=8,
        separate_head=dict(
            type='SeparateHead', init_bias=-2.19, head_conv=8),
        train_cfg=model.train_cfg.pts, test_cfg=model.test_cfg.pts)
    stock_cfg = copy.deepcopy(dict(
        cfg, type='CenterHead', loss_cls=dict(type='mmdet.GaussianFocalLoss')))
    stock_cfg['common_heads']['vel'] = (2, 2)
    stock_cfg['bbox_coder']['code_size'] = 9
    stock_cfg['train_cfg']['code_weights'] = [1.0] * 8 + [0.0] * 2
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        stock, ours = map(MODELS.build, (stock_cfg, cfg))
    # Scores all over (0, 1), and beyond the clip.
    for param in stock.parameters():
        if param.dim() > 1:
            param.data.mul_(3)
    state = stock.state_dict()
    ours.load_state_dict({key: state[key] for key in ours.state_dict()})
    return stock, ours


@pytest.fixture(scope='module')
def batches(frames):
    """The annotations for either head: of 9 values and of 7."""
    return ([instances(torch.nn.functional.pad(boxes, (0, 2)), labels)
             for _, boxes, labels in frames],
            [instances(boxes, labels) for _, boxes, labels in frames])


@pytest.fixture
def outputs(frames, heads):
    """What both predict; anew, as the stock loss overwrites the logits."""
    x = torch.from_numpy(np.stack([maps(points) for points, *_ in frames]))
    return [head([x]) for head in heads]


def test_targets(heads, batches):
    expected, found = (
        head.get_targets(batch) for head, batch in zip(heads, batches))
    (heatmap, ), (boxes, ), (cells, ), (mask, ) = found
    torch.testing.assert_close(heatmap, expected[0][0], rtol=0, atol=1e-6)
    assert heatmap.eq(1).sum((1, 2, 3)).tolist() == [1, 2, 1, 15]
    torch.testing.assert_close(
        boxes, expected[1][0][..., :8], rtol=1e-6, atol=1e-6)
    assert cells.equal(expected[2][0]) and mask.equal(expected[3][0])
    assert mask.sum() == 19


def test_losses_and_gradients(heads, batches, outputs):
    expected, found = (
        head.loss_by_feat(preds, batch)
        for head, preds, batch in zip(heads, outputs, batches))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=0)
    grads = [
        dict(zip(dict(head.named_parameters()), torch.autograd.grad(
            sum(losses.values()), list(head.parameters()), allow_unused=True,
            retain_graph=True)))
        for head, losses in zip(heads, (expected, found))]
    largest = max(grad.abs().max() for grad in grads[1].values())
    for key, grad in grads[1].items():
        torch.testing.assert_close(
            grad, grads[0][key], rtol=1e-6, atol=1e-6 * largest.item())


def test_predictions(heads, outputs):
    with torch.no_grad():
        results = [head.predict_by_feat(preds, METAS)
                   for head, preds in zip(heads, outputs)]
    for expected, got in zip(*results, strict=True):
        assert len(expected.scores_3d) > 20
        assert got.bboxes_3d.tensor.equal(expected.bboxes_3d.tensor[:, :7])
        assert got.scores_3d.equal(expected.scores_3d)
        assert got.labels_3d.equal(expected.labels_3d)


# Around the 15 objects of the last frame.
RANGE = [0, -25.6, -3, 35.84, 15.36, 1]


def small_detector():
    """The sample config with a few channels, over a part of its range."""
    cfg = Config.fromfile(CONFIG)
    norm_cfg = dict(type='BN', eps=1e-3, momentum=0.1)
    cfg.merge_from_dict(dict(model=dict(
        data_preprocessor=dict(voxel_layer=dict(point_cloud_range=RANGE)),
        pts_voxel_encoder=dict(
            feat_channels=[16], point_cloud_range=RANGE,
            norm_cfg=dict(norm_cfg, type='BN1d')),
        pts_middle_encoder=dict(in_channels=16, output_shape=(256, 224)),
        pts_backbone=dict(
            in_channels=16, out_channels=[16, 32], layer_nums=[1, 1],
            layer_strides=[2, 2], norm_cfg=norm_cfg),
        pts_neck=dict(
            in_channels=[16, 32], out_channels=[16, 16],
            upsample_strides=[1, 2], norm_cfg=norm_cfg),
        pts_bbox_head=dict(
            in_channels=32, share_conv_channel=16,
            norm_cfg=dict(norm_cfg, type='BN2d'),
            separate_head=dict(head_conv=16),
            bbox_coder=dict(pc_range=RANGE[:2])),
        train_cfg=dict(pts=dict(
            point_cloud_range=RANGE, grid_size=[224, 256, 1])),
        test_cfg=dict(pts=dict(pc_range=RANGE[:2])))))
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        return MODELS.build(cfg.model)


@pytest.mark.slow
def test_overfit_finds_the_annotated_boxes(frames, tmp_path):
    """Through all of the detector; the picture stays in ``tmp_path``."""
    points, boxes, labels = frames[-1]
    model = small_detector()
    sample = Det3DDataSample(metainfo=METAS[0])
    sample.gt_instances_3d = instances(boxes, labels)
    data = model.data_preprocessor(dict(
        inputs=dict(points=[torch.from_numpy(points)]),
        data_samples=[sample]), training=True)
    steps = 200
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for _ in range(steps):
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found, = model.eval()(**data, mode='predict')
    found = found.pred_instances_3d
    found = found[found.scores_3d > 0.3]
    at, found_labels = found.bboxes_3d.tensor, found.labels_3d
    save_png(draw_bev(
        points, gt_bboxes=boxes, gt_labels=labels, pred_bboxes=at,
        pred_labels=found_labels, pred_scores=found.scores_3d,
        class_names=CLASSES, bev_range=(*RANGE[:2], *RANGE[3:5]),
        title='KITTI 000134, overfitted'), tmp_path / 'frame.png')
    # Each annotated object once, and nothing else.
    assert len(at) == len(boxes)
    nearest = torch.cdist(boxes[:, :3], at[:, :3]).argmin(1)
    assert found_labels[nearest].equal(labels)
    torch.testing.assert_close(
        at[nearest, :6], boxes[:, :6], rtol=0, atol=0.02)
    assert (at[nearest, 6] - boxes[:, 6]).cos().min() > 0.999
