"""KITTI's frame 000008 through mmdet3d's loading and the 7-value head.

The frame is not part of the repository. It is looked for in the folder that
SIGPLUG_REAL_FRAMES names, then in ``../shared/real_frames`` beside the
repository.
"""
import copy
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from mmdet3d.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

FRAMES = Path(os.environ.get('SIGPLUG_REAL_FRAMES')
              or REPOSITORY.parent / 'shared/real_frames')
pytestmark = pytest.mark.skipif(
    not (FRAMES / 'kitti/000008.pkl').is_file(),
    reason=f'no KITTI frame 000008 in {FRAMES} (SIGPLUG_REAL_FRAMES)')

CONFIG, = (REPOSITORY / 'configs/centerpoint').glob('*_kitti-3d-3class.py')
PEDESTRIAN, CYCLIST, CAR = range(3)
RANDOM = ('ObjectSample', 'RandomFlip3D', 'GlobalRotScaleTrans')


def to_lidar(lidar_to_camera, x, y, z, length, height, width, turn):
    """A box of KITTI's camera in the LiDAR, in float64.

    Its centre of the bottom, length, width, height, yaw.
    """
    bottom = np.linalg.solve(lidar_to_camera, [x, y, z, 1])[:3]
    # The camera looks along the LiDAR's x, and turns clockwise.
    yaw = math.remainder(-turn - math.pi / 2, 2 * math.pi)
    return [*bottom, length, width, height, yaw]


@pytest.fixture(scope='module')
def info() -> dict:
    """The content of the frame's info file."""
    with open(FRAMES / 'kitti/000008.pkl', 'rb') as file:
        return pickle.load(file)


@pytest.fixture(scope='module')
def cfg(tmp_path_factory, info) -> Config:
    """The sample config over ``data/kitti/`` as create_data.py leaves it."""
    folder = tmp_path_factory.mktemp('kitti')
    root = folder / 'data/kitti'
    (root / 'training').mkdir(parents=True)
    (root / 'training/velodyne_reduced').symlink_to(
        (FRAMES / 'kitti').resolve(), target_is_directory=True)
    info = copy.deepcopy(info)
    # The file is older than these two entries.
    info['metainfo']['categories'] = dict(
        Pedestrian=PEDESTRIAN, Cyclist=CYCLIST, Car=CAR, DontCare=-1)
    info['data_list'][0]['sample_idx'] = 8
    (root / 'kitti_infos_train.pkl').write_bytes(pickle.dumps(info))
    init_default_scope('mmdet3d')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cfg = Config.fromfile(CONFIG)
        frames = cfg.train_dataloader.dataset.dataset
        # Nothing random but the order of the points.
        frames.pipeline = [transform for transform in frames.pipeline
                           if transform['type'] not in RANDOM]
        yield cfg


@pytest.fixture(scope='module')
def sample(cfg) -> dict:
    """The frame from the training pipeline."""
    return DATASETS.build(cfg.train_dataloader.dataset)[0]


@pytest.fixture(scope='module')
def cars(info) -> np.ndarray:
    """The annotated cars, by KITTI's definition and its calibration."""
    info = info['data_list'][0]
    lidar_to_camera = (np.array(info['images']['R0_rect'])
                       @ np.array(info['lidar_points']['Tr_velo_to_cam']))
    return np.array([
        to_lidar(lidar_to_camera, *instance['bbox_3d'])
        for instance in info['instances']
        if instance['bbox_label_3d'] == CAR])


def check_boxes(found: np.ndarray, expected: np.ndarray) -> None:
    """The same boxes in any order."""
    assert found.shape == expected.shape
    away = np.linalg.norm(found[:, None, :3] - expected[:, :3], axis=2)
    found = found[away.argmin(0)]
    np.testing.assert_allclose(found[:, :6], expected[:, :6], atol=1e-3)
    turns = np.exp(1j * (found[:, 6] - expected[:, 6]))
    assert np.abs(np.angle(turns)).max() < 1e-3


def test_loading_gives_the_annotated_cars(sample, cars, info):
    gt = sample['data_samples'].gt_instances_3d
    assert gt.labels_3d.tolist() == [CAR] * 6
    check_boxes(gt.bboxes_3d.tensor.numpy(), cars)
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


def test_targets_decode_to_the_annotated_cars(cfg, sample, cars):
    """Each has a peak in its cell; as predictions they give the boxes."""
    head = MODELS.build(cfg.model).pts_bbox_head
    (heatmap, ), (boxes, ), (cells, ), (mask, ) = head.get_targets(
        [sample['data_samples'].gt_instances_3d])
    column = np.floor(cars[:, 0] / 0.32)
    row = np.floor((cars[:, 1] + 39.68) / 0.32)
    assert {tuple(peak) for peak in heatmap.eq(1).nonzero().tolist()} == {
        (0, CAR, y, x) for y, x in zip(row, column)}
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
    check_boxes(found.bboxes_3d.tensor.numpy(), cars)
