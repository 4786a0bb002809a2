"""The info files, against the devkit and mmdet3d's data set and metric."""
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
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


def transforms(nusc, data):
    """LiDAR to ego, and ego to global."""
    records = (nusc.get(table, data[f'{table}_token'])
               for table in ('calibrated_sensor', 'ego_pose'))
    return [Quaternion(record['rotation']).transformation_matrix + np.pad(
        np.array(record['translation'])[:, None], ((0, 1), (3, 0)))
            for record in records]


def test_values_are_those_of_the_tables(data_root, nusc):
    """The tables by the devkit, in the form of mmdet3d's converter."""
    for name in INFO_FILES:
        infos = pickle.loads((data_root / name).read_bytes())
        for info in infos['data_list']:
            sample = nusc.get('sample', info['token'])
            data = nusc.get('sample_data', sample['data']['LIDAR_TOP'])
            lidar2ego, ego2global = transforms(nusc, data)
            assert info['timestamp'] == sample['timestamp'] / 1e6
            np.testing.assert_allclose(
                info['ego2global'], ego2global, atol=1e-12)
            points = info['lidar_points']
            np.testing.assert_allclose(
                points['lidar2ego'], lidar2ego, atol=1e-12)
            assert points['num_pts_feats'] == 5
            assert points['lidar_path'] == Path(data['filename']).name
            lidar2global = ego2global @ lidar2ego
            check_instances(info, nusc, sample, lidar2global)
            check_sweeps(info, nusc, data, lidar2global)


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


def check_sweeps(info, nusc, data, lidar2global):
    sweeps = info.get('lidar_sweeps', [])
    assert len(sweeps) == (2 if data['prev'] else 0)
    for sweep in sweeps:
        data = nusc.get('sample_data', data['prev'])
        assert sweep['sample_data_token'] == data['token']
        assert sweep['timestamp'] == data['timestamp'] / 1e6
        assert sweep['lidar_points']['lidar_path'] == data['filename']
        lidar2ego, ego2global = transforms(nusc, data)
        np.testing.assert_allclose(
            ego2global @ lidar2ego,
            lidar2global @ np.linalg.inv(
                sweep['lidar_points']['lidar2sensor']), atol=1e-6)


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
