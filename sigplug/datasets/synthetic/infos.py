"""mmdet3d v2 info files, from the nuScenes tables.

Fields and conventions are those that mmdet3d 1.4.0's converter
(``tools/create_data.py nuscenes``) leaves for the LiDAR of a data set.
"""
from collections.abc import Sequence
from typing import Any

import numpy as np

from .config import VERSION
from .tables import Table

CLASSES = ('car', 'truck', 'trailer', 'bus', 'construction_vehicle', 'bicycle',
           'motorcycle', 'pedestrian', 'traffic_cone', 'barrier')
_DETECTION_NAMES = {
    'vehicle.car': 'car',
    'vehicle.truck': 'truck',
    'vehicle.trailer': 'trailer',
    'vehicle.bus.rigid': 'bus',
    'vehicle.construction': 'construction_vehicle',
    'vehicle.bicycle': 'bicycle',
    'vehicle.motorcycle': 'motorcycle',
    'human.pedestrian.adult': 'pedestrian',
    'human.pedestrian.child': 'pedestrian',
    'human.pedestrian.construction_worker': 'pedestrian',
    'movable_object.trafficcone': 'traffic_cone',
    'movable_object.barrier': 'barrier',
}


def build_infos(tables: dict[str, Table], scenes: Sequence[str],
                max_sweeps: int) -> dict[str, Any]:
    """Make the content of one info file.

    Args:
        tables (dict[str, list[dict]]): All nuScenes tables.
        scenes (Sequence[str]): Names of the scenes of this split.
        max_sweeps (int): Most earlier sweeps listed for a key frame.

    Returns:
        dict: ``metainfo`` and ``data_list``.
    """
    by_token = {
        name: {row['token']: row
               for row in rows}
        for name, rows in tables.items()
    }
    wanted = {s['token'] for s in tables['scene'] if s['name'] in scenes}
    samples = [s for s in tables['sample'] if s['scene_token'] in wanted]
    key_data = {
        row['sample_token']: row
        for row in tables['sample_data'] if row['is_key_frame']
    }
    boxes: dict[str, Table] = {}
    for row in tables['sample_annotation']:
        boxes.setdefault(row['sample_token'], []).append(row)
    data_list = [
        _sample_info(i, sample, key_data[sample['token']],
                     boxes.get(sample['token'], []), by_token, max_sweeps)
        for i, sample in enumerate(samples)
    ]
    metainfo = dict(
        categories={name: i
                    for i, name in enumerate(CLASSES)},
        dataset='nuscenes', version=VERSION, info_version='1.1')
    return dict(metainfo=metainfo, data_list=data_list)


def _sample_info(index: int, sample: dict, data: dict, boxes: Table,
                 by_token: dict[str, dict[str, dict]],
                 max_sweeps: int) -> dict[str, Any]:
    lidar2ego, ego2global = _poses(data, by_token)
    lidar2global = ego2global @ lidar2ego
    info = dict(
        sample_idx=index, token=sample['token'],
        timestamp=sample['timestamp'] / 1e6, ego2global=ego2global.tolist(),
        lidar_points=dict(
            num_pts_feats=5, lidar_path=data['filename'].split('/')[-1],
            lidar2ego=lidar2ego.tolist()),
        instances=[_instance(box, lidar2global, by_token) for box in boxes])
    sweeps: list[dict] = []
    while data['prev'] and len(sweeps) < max_sweeps:
        data = by_token['sample_data'][data['prev']]
        sweeps.append(_sweep(data, lidar2global, by_token))
    if sweeps:  # like the converter: no key without a sweep
        info['lidar_sweeps'] = sweeps
    return info


def _sweep(data: dict, lidar2global: np.ndarray,
           by_token: dict[str, dict[str, dict]]) -> dict[str, Any]:
    lidar2ego, ego2global = _poses(data, by_token)
    # "sensor" is the LiDAR at the time of the sweep.
    lidar2sensor = np.linalg.inv(ego2global @ lidar2ego) @ lidar2global
    return dict(
        timestamp=data['timestamp'] / 1e6, ego2global=ego2global.tolist(),
        lidar_points=dict(
            lidar_path=data['filename'], lidar2ego=lidar2ego.tolist(),
            lidar2sensor=lidar2sensor.tolist()),
        sample_data_token=data['token'])


def _instance(box: dict, lidar2global: np.ndarray,
              by_token: dict[str, dict[str, dict]]) -> dict[str, Any]:
    category = by_token['instance'][box['instance_token']]['category_token']
    name = by_token['category'][category]['name']
    label = CLASSES.index(_DETECTION_NAMES[name])
    rotation = lidar2global[:3, :3].T
    center = rotation @ (np.array(box['translation']) - lidar2global[:3, 3])
    width, length, height = box['size']
    ahead = rotation @ _matrix(box['rotation'], (0, 0, 0))[:3, 0]
    yaw = float(np.arctan2(ahead[1], ahead[0]))
    velocity = rotation @ _velocity(box, by_token)
    return dict(
        bbox_label=label,
        # Centre of gravity, then length, width, height, yaw.
        bbox_3d=[*center.tolist(), length, width, height, yaw],
        bbox_3d_isvalid=box['num_lidar_pts'] + box['num_radar_pts'] > 0,
        bbox_label_3d=label, num_lidar_pts=box['num_lidar_pts'],
        num_radar_pts=box['num_radar_pts'], velocity=velocity[:2].tolist())


def _velocity(box: dict, by_token: dict[str, dict[str, dict]]) -> np.ndarray:
    """Difference between the neighbouring key frames, as the devkit does."""
    boxes, samples = by_token['sample_annotation'], by_token['sample']
    first, last = boxes.get(box['prev'], box), boxes.get(box['next'], box)
    microseconds = samples[last['sample_token']]['timestamp'] - \
        samples[first['sample_token']]['timestamp']
    travel = np.array(last['translation']) - np.array(first['translation'])
    return travel / (microseconds / 1e6)


def _poses(data: dict, by_token: dict[str, dict[str, dict]]):
    """lidar2ego and ego2global of one sample_data, 4 x 4 each."""
    sensor = by_token['calibrated_sensor'][data['calibrated_sensor_token']]
    pose = by_token['ego_pose'][data['ego_pose_token']]
    return (_matrix(sensor['rotation'], sensor['translation']),
            _matrix(pose['rotation'], pose['translation']))


def _matrix(rotation: Sequence[float],
            translation: Sequence[float]) -> np.ndarray:
    """Rigid transform of a quaternion about the z axis and a shift."""
    w, _, _, z = rotation
    cos, sin = w * w - z * z, 2 * w * z
    out = np.eye(4)
    out[:2, :2] = [[cos, -sin], [sin, cos]]
    out[:3, 3] = translation
    return out
