"""The info files, against mmdet3d's converter, data set and metric."""
import pickle
from pathlib import Path

import mmdet3d
import numpy as np
import pytest
import torch
from conftest import load_tool
from mmdet3d.datasets import NuScenesDataset
from mmdet3d.datasets.convert_utils import NuScenesNameMapping
from mmdet3d.evaluation.metrics import NuScenesMetric
from mmengine.registry import DefaultScope
from pyquaternion import Quaternion

CLASSES = NuScenesDataset.METAINFO['classes']
INFO_FILES = ('nuscenes_infos_train.pkl', 'nuscenes_infos_val.pkl')


@pytest.fixture(autouse=True)
def mmdet3d_scope():
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        yield


@pytest.fixture(scope='module')
def converter():
    """mmdet3d's own nuScenes converter, as its wheel carries it."""
    path = Path(mmdet3d.__file__).parent / (
        '.mim/tools/dataset_converters/nuscenes_converter.py')
    if not path.is_file():
        pytest.skip('this mmdet3d comes without its tools')
    return load_tool(path)


def matrix(record):
    return Quaternion(record['rotation']).transformation_matrix + np.pad(
        np.array(record['translation'])[:, None], ((0, 1), (3, 0)))


def test_values_are_those_of_the_converter(data_root, nusc, converter):
    """Same records as mmdet3d's converter computes from the tables."""
    for name in INFO_FILES:
        for info in pickle.loads((data_root / name).read_bytes())['data_list']:
            sample = nusc.get('sample', info['token'])
            data = nusc.get('sample_data', sample['data']['LIDAR_TOP'])
            sensor = nusc.get('calibrated_sensor',
                              data['calibrated_sensor_token'])
            pose = nusc.get('ego_pose', data['ego_pose_token'])
            assert info['timestamp'] == sample['timestamp'] / 1e6
            np.testing.assert_allclose(
                info['ego2global'], matrix(pose), atol=1e-12)
            points = info['lidar_points']
            np.testing.assert_allclose(
                points['lidar2ego'], matrix(sensor), atol=1e-12)
            assert points['num_pts_feats'] == 5
            assert points['lidar_path'] == Path(data['filename']).name
            check_instances(info, nusc, sample, matrix(pose) @ matrix(sensor))
            check_sweeps(info, nusc, data, sensor, pose, converter)


def check_instances(info, nusc, sample, lidar2global):
    _, boxes, _ = nusc.get_sample_data(sample['data']['LIDAR_TOP'])
    assert len(boxes) == len(info['instances'])
    for box, instance in zip(boxes, info['instances']):
        row = nusc.get('sample_annotation', box.token)
        width, length, height = box.wlh
        yaw = box.orientation.yaw_pitch_roll[0]
        np.testing.assert_allclose(
            instance['bbox_3d'],
            [*box.center, length, width, height, yaw], atol=1e-9)
        velocity = np.linalg.inv(lidar2global[:3, :3]) @ nusc.box_velocity(
            box.token)
        np.testing.assert_allclose(
            instance['velocity'], velocity[:2], atol=1e-9)
        label = CLASSES.index(NuScenesNameMapping[box.name])
        assert instance['bbox_label'] == instance['bbox_label_3d'] == label
        assert instance['num_lidar_pts'] == row['num_lidar_pts']
        assert instance['num_radar_pts'] == 0
        assert instance['bbox_3d_isvalid'] is (row['num_lidar_pts'] > 0)


def check_sweeps(info, nusc, data, sensor, pose, converter):
    sweeps = info.get('lidar_sweeps', [])
    assert len(sweeps) == (2 if data['prev'] else 0)
    for sweep in sweeps:
        data = nusc.get('sample_data', data['prev'])
        assert sweep['sample_data_token'] == data['token']
        assert sweep['timestamp'] == data['timestamp'] / 1e6
        assert sweep['lidar_points']['lidar_path'] == data['filename']
        expected = converter.obtain_sensor2top(
            nusc, data['token'], np.array(sensor['translation']),
            Quaternion(sensor['rotation']).rotation_matrix,
            np.array(pose['translation']),
            Quaternion(pose['rotation']).rotation_matrix)
        sensor2lidar = np.linalg.inv(sweep['lidar_points']['lidar2sensor'])
        np.testing.assert_allclose(
            sensor2lidar[:3, :3], expected['sensor2lidar_rotation'],
            atol=1e-9)
        np.testing.assert_allclose(
            sensor2lidar[:3, 3], expected['sensor2lidar_translation'],
            atol=1e-6)


def test_metric_of_ground_truth(data_root):
    """mmdet3d's metric, which is the devkit's evaluation."""
    dataset = NuScenesDataset(
        data_root=str(data_root), ann_file=INFO_FILES[1], pipeline=[],
        data_prefix=dict(pts='samples/LIDAR_TOP', sweeps='sweeps/LIDAR_TOP',
                         img=''), test_mode=True,
        metainfo=dict(version='v1.0-mini'),
        modality=dict(use_lidar=True, use_camera=False))
    metric = NuScenesMetric(
        str(data_root), str(data_root / INFO_FILES[1]), metric='bbox')
    metric.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)['eval_ann_info']
        count = len(info['gt_labels_3d'])
        predictions = dict(
            bboxes_3d=info['gt_bboxes_3d'],
            labels_3d=torch.tensor(info['gt_labels_3d']),
            scores_3d=torch.full((count, ), 0.9))
        metric.process({}, [
            dict(sample_idx=i, pred_instances_3d=predictions,
                 pred_instances={})
        ])
    values = metric.evaluate(len(dataset))
    prefix = 'NuScenes metric/pred_instances_3d_NuScenes/'
    assert values[prefix + 'mAP'] > 0.99
    assert values[prefix + 'mATE'] < 0.01
    assert values[prefix + 'mAOE'] < 0.01
    assert values[prefix + 'mAVE'] < 0.01
