"""The thirteen tables of the nuScenes v1.0 schema.

https://www.nuscenes.org/nuscenes#data-format
"""
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from .config import GeneratorConfig
from .lidar import TRANSLATION, YAW
from .scene import Box, Scene, make_token

Table = list[dict[str, Any]]
Tables = dict[str, Table]

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
    """Return the rotation about the z axis as w, x, y, z."""
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]


def visibility_token(share: float) -> str:
    return [name for name, _, low in VISIBILITIES if share >= low][-1]


def map_filename(name: str) -> str:
    return f'maps/synthetic-{name}.png'


def build_tables(scenes: Sequence[Scene], boxes: dict[str, list[list[Box]]],
                 config: GeneratorConfig) -> Tables:
    """Return the rows of all tables by their names.

    ``boxes`` are those of all sweeps by the scene's name.
    """
    token = partial(make_token, config.seed)

    def named(table: str, names: Sequence[str]) -> Table:
        return [dict(token=token(table, name), name=name, description='')
                for name in names]

    tables: Tables = dict(
        category=named('category', CATEGORIES),
        attribute=named('attribute', ATTRIBUTES),
        visibility=[
            dict(token=number, level=level,
                 description=f'at least {low:.0%} of the LiDAR rays arrive')
            for number, level, low in VISIBILITIES],
        instance=[], sensor=[dict(
            token=token('sensor'), channel='LIDAR_TOP', modality='lidar')],
        calibrated_sensor=[], ego_pose=[], log=[], scene=[], sample=[],
        sample_data=[], sample_annotation=[], map=[])
    for scene in scenes:
        _add_scene(tables, scene)
        _add_sweeps(tables, scene)
        _add_annotations(tables, scene, boxes[scene.name])
    return tables


def _linked(rows: Table) -> Table:
    """Fill ``prev`` and ``next`` of rows in order of time."""
    tokens = ['', *(row['token'] for row in rows), '']
    for row, before, after in zip(rows, tokens, tokens[2:]):
        row.update(prev=before, next=after)
    return rows


def _add_scene(tables: Tables, scene: Scene) -> None:
    seed, count = scene.config.seed, len(scene.key_frames)
    log = scene.token('log')
    tables['log'].append(
        dict(token=log, logfile=f'synthetic-{scene.name}', vehicle='synthetic',
             date_captured='2018-06-26', location='synthetic'))
    tables['map'].append(
        dict(token=scene.token('map'), category='semantic_prior',
             filename=map_filename(scene.name), log_tokens=[log]))
    tables['calibrated_sensor'].append(
        dict(token=scene.token('calibrated_sensor'),
             sensor_token=make_token(seed, 'sensor'),
             translation=list(TRANSLATION), rotation=quaternion(YAW),
             camera_intrinsic=[]))
    tables['scene'].append(
        dict(token=scene.token('scene'), log_token=log, nbr_samples=count,
             first_sample_token=scene.token('sample', 0),
             last_sample_token=scene.token('sample', count - 1),
             name=scene.name, description=f'Synthetic street, seed {seed}'))


def _add_sweeps(tables: Tables, scene: Scene) -> None:
    tables['sample'] += _linked([
        dict(token=scene.token('sample', number),
             timestamp=scene.timestamp(index), prev='', next='',
             scene_token=scene.token('scene'))
        for number, index in enumerate(scene.key_frames)
    ])
    tables['ego_pose'] += [
        dict(token=scene.token('ego_pose', i), timestamp=scene.timestamp(i),
             rotation=quaternion(yaw), translation=position)
        for i, (*position, yaw) in enumerate(scene.ego.tolist())
    ]
    tables['sample_data'] += _linked([
        dict(token=scene.token('sample_data', i),
             # A sweep belongs to the key frame that follows it.
             sample_token=scene.token(
                 'sample', math.ceil(i / scene.config.sweeps_per_sample)),
             ego_pose_token=scene.token('ego_pose', i),
             calibrated_sensor_token=scene.token('calibrated_sensor'),
             timestamp=scene.timestamp(i), fileformat='pcd',
             is_key_frame=i in scene.key_frames, height=0, width=0,
             filename=scene.filename(i), prev='', next='')
        for i in range(len(scene.times))
    ])


def _add_annotations(tables: Tables, scene: Scene,
                     boxes: list[list[Box]]) -> None:
    token = partial(make_token, scene.config.seed)
    by_track: dict[int, Table] = {}
    for number, index in enumerate(scene.key_frames):
        for box in boxes[index]:
            row = dict(
                token=scene.token('annotation', number, box.track),
                sample_token=scene.token('sample', number),
                instance_token=scene.token('instance', box.track),
                visibility_token=visibility_token(box.visibility),
                attribute_tokens=[token('attribute', box.attribute)]
                if box.attribute else [],
                translation=box.translation,
                size=scene.tracks[box.track].size.tolist(),
                rotation=quaternion(box.yaw), prev='', next='',
                num_lidar_pts=box.num_lidar_pts, num_radar_pts=0)
            by_track.setdefault(box.track, []).append(row)
            tables['sample_annotation'].append(row)
    for track, rows in sorted(by_track.items()):
        _linked(rows)
        tables['instance'].append(
            dict(token=rows[0]['instance_token'],
                 category_token=token('category',
                                      scene.tracks[track].kind.category),
                 nbr_annotations=len(rows),
                 first_annotation_token=rows[0]['token'],
                 last_annotation_token=rows[-1]['token']))
