"""The tables, read by the official devkit."""
from collections import Counter

import numpy as np
from nuscenes.eval.detection.utils import (
    category_to_detection_name,
    detection_name_to_rel_attributes,
)
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box
from synthetic_nuscenes.lidar import RANGE_NOISE


def lidar_boxes(nusc, sample):
    """Boxes in the sensor frame, their annotations and the points."""
    path, boxes, _ = nusc.get_sample_data(sample['data']['LIDAR_TOP'])
    rows = [nusc.get('sample_annotation', box.token) for box in boxes]
    return boxes, rows, LidarPointCloud.from_file(path).points[:3]


def test_times(nusc):
    """Along chains without a gap, in both directions."""
    for table, step in (('sample', 500_000), ('sample_data', 250_000)):
        for row in getattr(nusc, table):
            if row['next']:
                after = nusc.get(table, row['next'])
                assert after['timestamp'] - row['timestamp'] == step
                assert after['prev'] == row['token']
    for data in nusc.sample_data:
        pose = nusc.get('ego_pose', data['ego_pose_token'])
        assert pose['timestamp'] == data['timestamp']
        sample = nusc.get('sample', data['sample_token'])
        age = sample['timestamp'] - data['timestamp']
        assert age == 0 if data['is_key_frame'] else 0 < age < 500_000


def test_scenes_and_instances_name_their_ends(nusc):
    def follow(table, token):
        rows, before = [], ''
        while token:
            rows.append(nusc.get(table, token))
            assert rows[-1]['prev'] == before
            before, token = token, rows[-1]['next']
        return rows

    for scene in nusc.scene:
        rows = follow('sample', scene['first_sample_token'])
        assert rows[-1]['token'] == scene['last_sample_token']
        assert len(rows) == scene['nbr_samples'] == 6
    for instance in nusc.instance:
        rows = follow('sample_annotation', instance['first_annotation_token'])
        assert rows[-1]['token'] == instance['last_annotation_token']
        assert len(rows) == instance['nbr_annotations'] >= 2
        assert {row['instance_token'] for row in rows} == {instance['token']}
        # Without a gap from the first key frame to the last.
        samples = [nusc.get('sample', row['sample_token']) for row in rows]
        assert all(before['next'] == after['token']
                   for before, after in zip(samples, samples[1:]))


def test_point_counts_are_the_devkits(nusc):
    total = 0
    for sample in nusc.sample:
        boxes, rows, points = lidar_boxes(nusc, sample)
        for box, row in zip(boxes, rows):
            count = points_in_box(box, points).sum()
            assert row['num_lidar_pts'] == count
            assert row['num_radar_pts'] == 0
            total += count
    assert total > 10_000


def test_points_of_objects_lie_in_their_boxes(nusc):
    """Around a fully visible car there is no point just outside its box."""
    checked = 0
    for sample in nusc.sample:
        boxes, rows, points = lidar_boxes(nusc, sample)
        above = points[:, points[2] > -1.5]  # without the ground
        for box, row in zip(boxes, rows):
            if (row['category_name'] == 'vehicle.car'
                    and row['num_lidar_pts'] > 100):
                box.wlh = box.wlh + 4 * RANGE_NOISE
                inner = points_in_box(box, above).sum()
                box.wlh = box.wlh + 0.3
                outer = points_in_box(box, above).sum()
                assert inner > 20
                assert outer == inner
                checked += 1
    assert checked > 10


def test_velocity_attribute_and_yaw_agree(nusc):
    """Per class: what moves is said to move, and moves forward."""
    seen = Counter()
    for row in nusc.sample_annotation:
        velocity = nusc.box_velocity(row['token'])
        assert np.isfinite(velocity).all()
        allowed = detection_name_to_rel_attributes(
            category_to_detection_name(row['category_name']))
        attribute = 'static'
        if allowed:
            token, = row['attribute_tokens']
            attribute = nusc.get('attribute', token)['name']
            assert attribute in allowed
        seen[attribute] += 1
        speed = np.linalg.norm(velocity[:2])
        if attribute in ('static', 'vehicle.parked', 'cycle.without_rider'):
            assert speed == 0
        elif attribute in ('vehicle.stopped', 'pedestrian.standing'):
            assert speed < 1.5
        elif attribute in ('vehicle.moving', 'pedestrian.moving'):
            assert speed > 0.05
            w, _, _, z = row['rotation']
            yaw = 2 * np.arctan2(z, w)
            along = velocity[:2] @ [np.cos(yaw), np.sin(yaw)]
            assert along > 0.99 * speed
    assert set(seen) == {
        'static', 'vehicle.parked', 'cycle.without_rider', 'vehicle.stopped',
        'pedestrian.standing', 'vehicle.moving', 'pedestrian.moving',
        'cycle.with_rider'
    }


def test_road_is_on_the_map(nusc):
    """The ego vehicle and parked cars on the mask, sidewalks off it."""
    for scene in nusc.scene:
        log = nusc.get('log', scene['log_token'])
        mask = nusc.get('map', log['map_token'])['mask']
        sample = nusc.get('sample', scene['first_sample_token'])
        data = nusc.get('sample_data', sample['data']['LIDAR_TOP'])
        ego = nusc.get('ego_pose', data['ego_pose_token'])['translation']
        assert mask.is_on_mask(ego[0], ego[1]).all()
        for token in sample['anns']:
            row = nusc.get('sample_annotation', token)
            x, y, _ = row['translation']
            if row['category_name'] == 'vehicle.car':
                assert mask.is_on_mask(x, y).all()
            if 'human' in row['category_name'] and \
                    row['translation'][2] - row['size'][2] / 2 > 0.1:
                assert not mask.is_on_mask(x, y).any()
