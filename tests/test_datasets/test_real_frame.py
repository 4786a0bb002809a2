"""KITTI's frame 000008: mmdet3d's loading, the 7-value head, an overfit.

The frame is not part of the repository. It is looked for in the folder that
SIGPLUG_REAL_FRAMES names, then in ``../shared/real_frames`` beside the
repository.
"""
import copy
import math
import os
import pickle
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from mmdet3d.models.voxel_encoders import PillarFeatureNet
from mmdet3d.models.voxel_encoders.pillar_encoder import PFNLayer
from mmdet3d.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from sigplug.models.voxel_encoders import GeMPillarFeatureNet

FRAMES = Path(os.environ.get('SIGPLUG_REAL_FRAMES')
              or REPOSITORY.parent / 'shared/real_frames')
pytestmark = pytest.mark.skipif(
    not (FRAMES / 'kitti/000008.pkl').is_file(),
    reason=f'no KITTI frame 000008 in {FRAMES} (SIGPLUG_REAL_FRAMES)')

CONFIG, = (REPOSITORY / 'configs/centerpoint').glob('*_kitti-3d-3class.py')
PEDESTRIAN, CYCLIST, CAR = range(3)

# Nothing random but the order of the points.
FRAME_CONFIG = f"""
_base_ = ['{CONFIG}']
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=[
    transform for transform in _base_.train_pipeline if transform['type'] not
    in ('ObjectSample', 'RandomFlip3D', 'GlobalRotScaleTrans')])))
"""

# Pillars of twice the size, few channels, statistics that keep up.
OVERFIT_CONFIG = """
_base_ = ['frame.py']
voxel_size = [0.32, 0.32, 4]
model = dict(
    data_preprocessor=dict(voxel_layer=dict(voxel_size=voxel_size)),
    pts_voxel_encoder=dict(
        voxel_size=voxel_size, feat_channels=[32],
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.1)),
    pts_middle_encoder=dict(in_channels=32, output_shape=(248, 216)),
    pts_backbone=dict(
        in_channels=32, out_channels=[32, 32, 64], layer_nums=[1, 2, 2],
        norm_cfg=dict(momentum=0.1)),
    pts_neck=dict(
        in_channels=[32, 32, 64], out_channels=[32, 32, 32],
        norm_cfg=dict(momentum=0.1)),
    pts_bbox_head=dict(
        in_channels=96, share_conv_channel=32,
        bbox_coder=dict(voxel_size=voxel_size[:2])),
    train_cfg=dict(pts=dict(
        voxel_size=voxel_size, grid_size=[216, 248, 1])),
    test_cfg=dict(pts=dict(voxel_size=voxel_size[:2])))
num_iters = 80
train_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    dataset=dict(times=num_iters))
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1, val_begin=2)
optim_wrapper = dict(optimizer=dict(lr=0.005))
param_scheduler = [
    dict(type='OneCycleLR', eta_max=0.005, total_steps=num_iters,
         by_epoch=False)]
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
"""


@pytest.fixture(scope='module')
def info() -> dict:
    """What the file of the frame says."""
    with open(FRAMES / 'kitti/000008.pkl', 'rb') as file:
        return pickle.load(file)


@pytest.fixture(scope='module')
def folder(tmp_path_factory, info) -> Path:
    """A working directory with ``data/kitti/`` as create_data.py leaves it."""
    folder = tmp_path_factory.mktemp('kitti')
    root = folder / 'data/kitti'
    (root / 'training').mkdir(parents=True)
    (root / 'training/velodyne_reduced').symlink_to(
        (FRAMES / 'kitti').resolve(), target_is_directory=True)
    info = copy.deepcopy(info)
    # The file is older than these two entries, which KittiMetric wants.
    info['metainfo']['categories'] = dict(
        Pedestrian=PEDESTRIAN, Cyclist=CYCLIST, Car=CAR, DontCare=-1)
    info['data_list'][0]['sample_idx'] = 8
    for split in ('train', 'val'):
        (root / f'kitti_infos_{split}.pkl').write_bytes(pickle.dumps(info))
    (folder / 'frame.py').write_text(FRAME_CONFIG)
    (folder / 'overfit.py').write_text(OVERFIT_CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv('OMP_NUM_THREADS', '1')
        yield folder


@pytest.fixture(scope='module')
def cfg(folder) -> Config:
    init_default_scope('mmdet3d')
    return Config.fromfile(folder / 'frame.py')


@pytest.fixture(scope='module')
def sample(cfg) -> dict:
    """The frame from the training pipeline."""
    return DATASETS.build(cfg.train_dataloader.dataset)[0]


@pytest.fixture(scope='module')
def cars(info) -> np.ndarray:
    """The annotated cars, by KITTI's definition and its calibration.

    In float64: centre of the bottom, length, width, height, yaw.
    """
    info = info['data_list'][0]
    lidar_to_camera = (np.array(info['images']['R0_rect'])
                       @ np.array(info['lidar_points']['Tr_velo_to_cam']))
    boxes = []
    for instance in info['instances']:
        if instance['bbox_label_3d'] == CAR:
            *location, length, height, width, turn = instance['bbox_3d']
            bottom = np.linalg.solve(lidar_to_camera, [*location, 1])[:3]
            # The camera looks along the LiDAR's x, and turns clockwise.
            yaw = math.remainder(-turn - math.pi / 2, 2 * math.pi)
            boxes.append([*bottom, length, width, height, yaw])
    return np.array(boxes)


def turned(yaw: np.ndarray) -> np.ndarray:
    """How far an angle is from 0, in radians."""
    return np.abs(np.angle(np.exp(1j * yaw)))


def check_boxes(found: np.ndarray, expected: np.ndarray, atol: float) -> None:
    """The same boxes in any order."""
    assert found.shape == expected.shape
    away = np.linalg.norm(found[:, None, :3] - expected[:, :3], axis=2)
    found = found[away.argmin(0)]
    np.testing.assert_allclose(found[:, :6], expected[:, :6], atol=atol)
    assert turned(found[:, 6] - expected[:, 6]).max() < atol


def test_loading_gives_the_annotated_cars(sample, cars, info):
    gt = sample['data_samples'].gt_instances_3d
    assert gt.labels_3d.tolist() == [CAR] * 6
    check_boxes(gt.bboxes_3d.tensor.numpy(), cars, atol=1e-3)
    # The file says how many points lie in each car.
    xyz = sample['inputs']['points'][:, :3].double().numpy()
    assert len(xyz) == 16897
    for box, instance in zip(cars, info['data_list'][0]['instances']):
        x, y, z = (xyz - box[:3]).T
        cos, sin = np.cos(box[6]), np.sin(box[6])
        inside = ((np.abs(cos * x + sin * y) <= box[3] / 2)
                  & (np.abs(cos * y - sin * x) <= box[4] / 2)
                  & (z >= 0) & (z <= box[5]))
        assert inside.sum() == instance['num_lidar_pts']


def test_targets_have_a_peak_in_the_cell_of_each_car(cfg, sample, cars):
    head = MODELS.build(cfg.model).pts_bbox_head
    (heatmap, ), _, _, _ = head.get_targets(
        [sample['data_samples'].gt_instances_3d])
    assert heatmap.shape == (1, 3, 248, 216)
    column = np.floor(cars[:, 0] / 0.32)
    row = np.floor((cars[:, 1] + 39.68) / 0.32)
    assert {tuple(peak) for peak in heatmap.eq(1).nonzero().tolist()} == {
        (0, CAR, y, x) for y, x in zip(row, column)}


def test_perfect_predictions_decode_to_the_annotated_cars(cfg, sample, cars):
    head = MODELS.build(cfg.model).pts_bbox_head
    (heatmap, ), (boxes, ), (cells, ), (mask, ) = head.get_targets(
        [sample['data_samples'].gt_instances_3d])
    known = mask[0].bool()
    assert known.sum() == 6 and boxes.shape[2] == 8
    values = torch.zeros(8, heatmap[0, 0].numel())
    values[:, cells[0, known]] = boxes[0, known].t()
    reg, height, dim, rot = values.view(1, 8, 248, 216).split([2, 1, 3, 2], 1)
    # Only the peaks: everything around them is sure to be nothing.
    preds = dict(heatmap=torch.where(heatmap == 1, 8.0, -8.0), reg=reg,
                 height=height, dim=dim, rot=rot)
    found, = head.predict_by_feat(
        ([preds], ), [sample['data_samples'].metainfo])
    assert found.labels_3d.tolist() == [CAR] * 6
    assert (found.scores_3d > 0.99).all()
    check_boxes(found.bboxes_3d.tensor.numpy(), cars, atol=1e-3)


def test_loss_gradients_and_predictions_at_full_size(cfg, sample):
    model = MODELS.build(cfg.model)
    model.pts_bbox_head.init_weights()
    batch = pseudo_collate([sample])
    loss, logs = model.parse_losses(
        model(**model.data_preprocessor(copy.deepcopy(batch), True),
              mode='loss'))
    assert logs.keys() == {'loss', 'task0.loss_heatmap', 'task0.loss_bbox'}
    assert all(value.isfinite() and value > 0 for value in logs.values())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all()
               for p in model.parameters())
    model.eval()
    with torch.no_grad():
        found = model.test_step(batch)[0].pred_instances_3d
    assert found.bboxes_3d.tensor.shape == (len(found.scores_3d), 7)
    assert found.bboxes_3d.tensor.isfinite().all()


@pytest.fixture(scope='module')
def pillars(cfg, sample) -> dict:
    """The real pillars, of 1 to 32 points each."""
    voxels = MODELS.build(cfg.model.data_preprocessor)(
        pseudo_collate([sample]), False)['inputs']['voxels']
    counts = voxels['num_points']
    assert counts.min() == 1 and counts.max() == 32
    return voxels


def pillar_net(cfg: Config, cls: type, **kwargs) -> PillarFeatureNet:
    cfg = cfg.model.pts_voxel_encoder.copy()
    del cfg['type'], cfg['p']
    torch.manual_seed(0)
    net = cls(**cfg, **kwargs).eval()
    norm = net.pfn_layers[0].norm
    # Rows of zeros are no longer zero after such an offset.
    torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return net


@torch.no_grad()
def test_gem_of_infinite_power_is_the_stock_maximum_of_real_points(
        cfg, pillars):
    voxels, counts = pillars['voxels'], pillars['num_points']
    stock = pillar_net(cfg, PillarFeatureNet)
    gem = pillar_net(
        cfg, GeMPillarFeatureNet, p=math.inf, p_trainable=False)
    gem.load_state_dict(stock.state_dict(), strict=True)
    found = gem(voxels.clone(), counts, pillars['coors'])
    assert found.shape == (len(counts), 64) and found.isfinite().all()

    layer, = stock.pfn_layers
    rows = []
    handle = layer.register_forward_pre_hook(
        lambda module, args: rows.append(args[0].clone()))
    padded = stock(voxels.clone(), counts, pillars['coors'])
    handle.remove()
    # Padding that repeats the first point of a pillar changes no maximum.
    is_real = torch.arange(32) < counts.unsqueeze(1)
    rows = torch.where(is_real.unsqueeze(2), rows[0], rows[0][:, :1])
    expected = PFNLayer.forward(layer, rows, counts).squeeze(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1.1e-6)
    # Where no padding was, the stock net says so itself; elsewhere it errs.
    full = counts == 32
    torch.testing.assert_close(
        found[full], padded[full], rtol=1e-5, atol=1.1e-6)
    assert (padded[~full] - found[~full]).max() > 0.1


@torch.no_grad()
def test_pillars_without_points_are_zero_and_the_others_are_not(cfg, pillars):
    model = MODELS.build(cfg.model).eval()
    coors = pillars['coors'].long()
    features = model.pts_voxel_encoder(
        pillars['voxels'], pillars['num_points'], coors)
    canvas = model.pts_middle_encoder(features, coors, 1)
    occupied = torch.zeros(496, 432, dtype=torch.bool)
    occupied[coors[:, 2], coors[:, 3]] = True
    assert occupied.sum() == len(coors) > 3000
    assert (canvas[0].amax(0) > 0).equal(occupied)


@pytest.fixture(scope='module')
def trained(folder, run_tool) -> Path:
    """The checkpoint of a small model that has seen the frame 80 times."""
    run_tool('train.py', 'overfit.py', '--work-dir', 'run', cwd=folder)
    return folder / 'run/epoch_1.pth'


@pytest.mark.slow
def test_overfit_finds_the_cars(folder, trained, run_tool, cars, monkeypatch):
    # KittiMetric computes overlaps by CUDA, which numba can imitate.
    monkeypatch.setenv('NUMBA_ENABLE_CUDASIM', '1')
    printed = run_tool(
        'test.py', 'overfit.py', trained, '--work-dir', 'run', '--out',
        'found.pkl', cwd=folder)
    with open(folder / 'found.pkl', 'rb') as file:
        found = pickle.load(file)[0]['pred_instances_3d']
    # The six surest ones are the six cars, one each.
    scores = found['scores_3d']
    assert (scores[:6] > 0.5).all() and (scores[6:] < 0.3).all()
    assert (found['labels_3d'][:6] == CAR).all()
    boxes = found['bboxes_3d'].tensor.numpy()[:6]
    away = np.linalg.norm(boxes[:, None, :2] - cars[:, :2], axis=2)
    match = away.argmin(0)
    assert sorted(match) == list(range(6))
    assert away.min(0).max() < 0.5
    assert np.abs(boxes[match] - cars)[:, 2:6].max() < 0.3
    assert turned(boxes[match, 6] - cars[:, 6]).max() < 0.2
    # The same by KITTI's rules, after the way back to the camera. So few cars
    # reach one of its eleven steps of recall.
    _, figures = printed.split('Car AP11@0.70, 0.70, 0.70:')
    figures = dict(re.findall(r'(\w+) +AP11:(\d+\.\d\d)', figures)[:4])
    assert figures == dict.fromkeys(('bbox', 'bev', '3d', 'aos'), '9.09')


@pytest.mark.slow
def test_overfit_is_drawn(folder, trained, run_tool):
    printed = run_tool(
        'analysis_tools/visualize_bev.py', 'overfit.py', trained, '--out-dir',
        'bev', '--bev-range', 0, -20, 45, 12, cwd=folder)
    assert printed.splitlines()[-1] == 'bev/bev_0000.png'
    picture = matplotlib.image.imread(folder / 'bev/bev_0000.png')
    assert picture.shape[:2] == (1200, 1969)
    # The colours of the cars and of the heatmap.
    red, green, blue = picture[..., :3].transpose(2, 0, 1)
    assert ((red > 0.5) & (green > 0.5) & (blue < 0.3)).sum() > 500
    assert ((red > 0.6) & (green < 0.4) & (blue < 0.2)).sum() > 500
