"""mmdet3d v2 info files.

Fields and conventions are those that mmdet3d 1.4.0's converter
(``tools/create_data.py nuscenes``) leaves for the LiDAR of a data set.
"""
from collections.abc import Sequence
from typing import Any

import numpy as np

from .config import VERSION
from .lidar import TRANSLATION, YAW
from .scene import Box, Scene
from .tables import quaternion

CLASSES = ('car', 'truck', 'trailer', 'bus', 'construction_vehicle', 'bicycle',
           'motorcycle', 'pedestrian', 'traffic_cone', 'barrier')


def build_infos(scenes: Sequence[Scene], boxes: dict[str, list[list[Box]]]
                ) -> dict[str, Any]:
    """Make the content of the info file of a split.

    ``boxes`` are those of all sweeps by the scene's name.
    """
    data_list = [
        _sample_info(scene, number, boxes[scene.name])
        for scene in scenes for number in range(len(scene.key_frames))]
    for i, info in enumerate(data_list):
        info['sample_idx'] = i
    metainfo = dict(
        categories={name: i for i, name in enumerate(CLASSES)},
        dataset='nuscenes', version=VERSION, info_version='1.1')
    return dict(metainfo=metainfo, data_list=data_list)


def _sample_info(scene: Scene, number: int,
                 boxes: list[list[Box]]) -> dict[str, Any]:
    index = scene.key_frames[number]
    step = scene.config.sweeps_per_sample
    lidar2ego, ego2global = _poses(scene, index)
    lidar2global = ego2global @ lidar2ego
    # The key frames before and after, where there are such.
    near = [{box.track: (box, scene.timestamp(i)) for box in boxes[i]}
            for i in (index - step, index + step) if 0 <= i < len(boxes)]
    info = dict(
        token=scene.token('sample', number),
        timestamp=scene.timestamp(index) / 1e6, ego2global=ego2global.tolist(),
        lidar_points=dict(
            num_pts_feats=5, lidar_path=scene.filename(index).split('/')[-1],
            lidar2ego=lidar2ego.tolist()),
        instances=[
            _instance(box, scene, lidar2global, _velocity(
                [*(part[box.track] for part in near if box.track in part),
                 (box, scene.timestamp(index))]))
            for box in boxes[index]])
    # The sweeps since the last key frame and that key frame itself: half a
    # second, as much as ten sweeps of the real data set.
    sweeps = [_sweep(scene, i, lidar2global)
              for i in range(index - 1, max(index - step, 0) - 1, -1)]
    if sweeps:  # like the converter: no key without a sweep
        info['lidar_sweeps'] = sweeps
    return info


def _sweep(scene: Scene, index: int,
           lidar2global: np.ndarray) -> dict[str, Any]:
    lidar2ego, ego2global = _poses(scene, index)
    # "sensor" is the LiDAR at the time of the sweep.
    lidar2sensor = np.linalg.inv(ego2global @ lidar2ego) @ lidar2global
    return dict(
        timestamp=scene.timestamp(index) / 1e6, ego2global=ego2global.tolist(),
        lidar_points=dict(
            lidar_path=scene.filename(index), lidar2ego=lidar2ego.tolist(),
            lidar2sensor=lidar2sensor.tolist()),
        sample_data_token=scene.token('sample_data', index))


def _instance(box: Box, scene: Scene, lidar2global: np.ndarray,
              velocity: np.ndarray) -> dict[str, Any]:
    track = scene.tracks[box.track]
    label = CLASSES.index(track.kind.name)
    rotation = lidar2global[:3, :3].T
    center = rotation @ (np.array(box.translation) - lidar2global[:3, 3])
    width, length, height = track.size.tolist()
    ahead = rotation @ _matrix(box.yaw, (0, 0, 0))[:3, 0]
    yaw = float(np.arctan2(ahead[1], ahead[0]))
    return dict(
        bbox_label=label,
        # Centre of gravity, then length, width, height, yaw.
        bbox_3d=[*center.tolist(), length, width, height, yaw],
        bbox_3d_isvalid=box.num_lidar_pts > 0, bbox_label_3d=label,
        num_lidar_pts=box.num_lidar_pts, num_radar_pts=0,
        velocity=(rotation @ velocity)[:2].tolist())


def _velocity(boxes: list[tuple[Box, int]]) -> np.ndarray:
    """Divide the shift between key frames by the time, like the devkit."""
    boxes = sorted(boxes, key=lambda pair: pair[1])
    (first, start), (last, end) = boxes[0], boxes[-1]
    travel = np.array(last.translation) - np.array(first.translation)
    return travel / ((end - start) / 1e6)


def _poses(scene: Scene, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lidar2ego and ego2global at one sweep, 4 x 4 each."""
    *position, yaw = scene.ego[index]
    return _matrix(YAW, TRANSLATION), _matrix(yaw, position)


def _matrix(yaw: float, translation: Sequence[float]) -> np.ndarray:
    """Return the 4 x 4 matrix of a turn about z and a shift."""
    w, _, _, z = quaternion(yaw)
    cos, sin = w * w - z * z, 2 * w * z
    out = np.eye(4)
    out[:2, :2] = [[cos, -sin], [sin, cos]]
    out[:3, 3] = translation
    return out
