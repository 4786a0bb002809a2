"""The thirteen tables of the nuScenes v1.0 schema.

https://www.nuscenes.org/nuscenes#data-format
"""
import hashlib
import math
from collections.abc import Sequence
from typing import Any

from .config import GeneratorConfig
from .lidar import TRANSLATION, YAW
from .simulate import Frame, SceneRecord

Table = list[dict[str, Any]]

# All categories of the data set, so that category tokens cover any tool's
# expectations; objects are made of ten detection classes only.
CATEGORIES = ('human.pedestrian.adult', 'human.pedestrian.child',
              'human.pedestrian.wheelchair', 'human.pedestrian.stroller',
              'human.pedestrian.personal_mobility',
              'human.pedestrian.police_officer',
              'human.pedestrian.construction_worker', 'animal', 'vehicle.car',
              'vehicle.motorcycle', 'vehicle.bicycle', 'vehicle.bus.bendy',
              'vehicle.bus.rigid', 'vehicle.truck', 'vehicle.construction',
              'vehicle.emergency.ambulance', 'vehicle.emergency.police',
              'vehicle.trailer', 'movable_object.barrier',
              'movable_object.trafficcone', 'movable_object.pushable_pullable',
              'movable_object.debris', 'static_object.bicycle_rack')
ATTRIBUTES = ('vehicle.moving', 'vehicle.stopped', 'vehicle.parked',
              'cycle.with_rider', 'cycle.without_rider',
              'pedestrian.sitting_lying_down', 'pedestrian.standing',
              'pedestrian.moving')
# Token, level, and the share of visible rays from which on it applies.
VISIBILITIES = (('1', 'v0-40', 0.0), ('2', 'v40-60', 0.4),
                ('3', 'v60-80', 0.6), ('4', 'v80-100', 0.8))


def quaternion(yaw: float) -> list[float]:
    """Rotation about the z axis as w, x, y, z."""
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]


def token(config: GeneratorConfig, *parts: Any) -> str:
    """32 hexadecimal digits that depend on the seed and the parts alone."""
    text = '/'.join(map(str, (config.seed, *parts)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def visibility_token(share: float) -> str:
    """Token of the level of visibility for a share in [0, 1]."""
    return [name for name, _, low in VISIBILITIES if share >= low][-1]


def build_tables(records: Sequence[SceneRecord],
                 config: GeneratorConfig) -> dict[str, Table]:
    """Make all tables.

    Args:
        records (Sequence[SceneRecord]): The simulated scenes.
        config (GeneratorConfig): Its seed goes into the tokens.

    Returns:
        dict[str, list[dict]]: Table name to its rows.
    """
    tables: dict[str, Table] = dict(
        category=[
            dict(token=token(config, 'category', name), name=name,
                 description='') for name in CATEGORIES
        ],
        attribute=[
            dict(token=token(config, 'attribute', name), name=name,
                 description='') for name in ATTRIBUTES
        ],
        visibility=[
            dict(token=number, level=level,
                 description=f'at least {low:.0%} of the LiDAR rays arrive')
            for number, level, low in VISIBILITIES
        ],
        instance=[],
        sensor=[
            dict(token=token(config, 'sensor'), channel='LIDAR_TOP',
                 modality='lidar')
        ],
        calibrated_sensor=[],
        ego_pose=[],
        log=[],
        scene=[],
        sample=[],
        sample_data=[],
        sample_annotation=[],
        map=[])
    for record in records:
        _add_scene(tables, record, config)
        _add_samples(tables, record, config)
        _add_sample_data(tables, record, config)
        _add_annotations(tables, record, config)
    return tables


def map_filename(name: str) -> str:
    """Path of a scene's map under the data root."""
    return f'maps/synthetic-{name}.png'


def _link(rows: Table) -> None:
    """Fill ``prev`` and ``next`` of rows in order of time."""
    tokens = ['', *(row['token'] for row in rows), '']
    for i, row in enumerate(rows):
        row.update(prev=tokens[i], next=tokens[i + 2])


def _key_frames(record: SceneRecord) -> list[Frame]:
    return [frame for frame in record.frames if frame.is_key_frame]


def _add_scene(tables: dict[str, Table], record: SceneRecord,
               config: GeneratorConfig) -> None:
    name, samples = record.name, _key_frames(record)
    log = token(config, name, 'log')
    tables['log'].append(
        dict(token=log, logfile=f'synthetic-{name}', vehicle='synthetic',
             date_captured='2018-06-26', location='synthetic'))
    tables['map'].append(
        dict(token=token(config, name, 'map'), category='semantic_prior',
             filename=map_filename(name), log_tokens=[log]))
    tables['calibrated_sensor'].append(
        dict(token=token(config, name, 'calibrated_sensor'),
             sensor_token=token(config, 'sensor'),
             translation=list(TRANSLATION), rotation=quaternion(YAW),
             camera_intrinsic=[]))
    tables['scene'].append(
        dict(token=token(config, name, 'scene'), log_token=log,
             nbr_samples=len(samples),
             first_sample_token=token(config, name, 'sample', 0),
             last_sample_token=token(config, name, 'sample',
                                     len(samples) - 1),
             name=name,
             description=f'Synthetic street, seed {config.seed}'))


def _add_samples(tables: dict[str, Table], record: SceneRecord,
                 config: GeneratorConfig) -> None:
    rows = [
        dict(token=token(config, record.name, 'sample', i),
             timestamp=frame.timestamp, prev='', next='',
             scene_token=token(config, record.name, 'scene'))
        for i, frame in enumerate(_key_frames(record))
    ]
    _link(rows)
    tables['sample'].extend(rows)


def _add_sample_data(tables: dict[str, Table], record: SceneRecord,
                     config: GeneratorConfig) -> None:
    name, rows, key = record.name, [], -1
    for i, frame in enumerate(record.frames):
        key += frame.is_key_frame
        # A sweep belongs to the key frame that follows it.
        sample = key if frame.is_key_frame else key + 1
        pose = token(config, name, 'ego_pose', i)
        tables['ego_pose'].append(
            dict(token=pose, timestamp=frame.timestamp,
                 rotation=quaternion(frame.ego[3]),
                 translation=frame.ego[:3]))
        rows.append(
            dict(token=token(config, name, 'sample_data', i),
                 sample_token=token(config, name, 'sample', sample),
                 ego_pose_token=pose,
                 calibrated_sensor_token=token(config, name,
                                               'calibrated_sensor'),
                 timestamp=frame.timestamp, fileformat='pcd',
                 is_key_frame=frame.is_key_frame, height=0, width=0,
                 filename=frame.filename, prev='', next=''))
    _link(rows)
    tables['sample_data'].extend(rows)


def _add_annotations(tables: dict[str, Table], record: SceneRecord,
                     config: GeneratorConfig) -> None:
    name = record.name
    by_track: dict[int, Table] = {}
    for i, frame in enumerate(_key_frames(record)):
        for box in frame.annotations:
            attributes = [token(config, 'attribute', box.attribute)
                          ] if box.attribute else []
            row = dict(
                token=token(config, name, 'annotation', i, box.track),
                sample_token=token(config, name, 'sample', i),
                instance_token=token(config, name, 'instance', box.track),
                visibility_token=visibility_token(box.visibility),
                attribute_tokens=attributes, translation=box.translation,
                size=record.sizes[box.track], rotation=quaternion(box.yaw),
                prev='', next='', num_lidar_pts=box.num_lidar_pts,
                num_radar_pts=0)
            by_track.setdefault(box.track, []).append(row)
            tables['sample_annotation'].append(row)
    for track, rows in sorted(by_track.items()):
        _link(rows)
        tables['instance'].append(
            dict(token=rows[0]['instance_token'],
                 category_token=token(config, 'category',
                                      record.categories[track]),
                 nbr_annotations=len(rows),
                 first_annotation_token=rows[0]['token'],
                 last_annotation_token=rows[-1]['token']))
