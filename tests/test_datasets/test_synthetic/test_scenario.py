import collections

import numpy as np
import pytest

from sigplug.datasets.synthetic.scenario import (
    EGO_CENTER,
    EGO_HALF,
    make_scenario,
    mean_counts,
)
from sigplug.datasets.synthetic.tracks import clock, speed_profile

shapely = pytest.importorskip('shapely')
affinity = pytest.importorskip('shapely.affinity')

DURATION = 19.5
# Evaluation range of the nuScenes detection task, in metres.
RANGES = dict(
    car=50, truck=50, bus=50, trailer=50, construction_vehicle=50,
    pedestrian=40, motorcycle=40, bicycle=40, traffic_cone=30, barrier=30)


@pytest.fixture(scope='module', params=[0, 1, 2])
def scenario(request):
    return make_scenario(DURATION, np.random.default_rng(request.param))


@pytest.fixture(scope='module')
def crowded():
    return make_scenario(DURATION, np.random.default_rng(0), spacing=0.5)


def rectangle(pose, half, forward=0.0):
    box = shapely.box(forward - half[0], -half[1], forward + half[0], half[1])
    box = affinity.rotate(box, pose[3], origin=(0, 0), use_radians=True)
    return affinity.translate(box, pose[0], pose[1])


def test_boxes_never_overlap(scenario):
    assert_boxes_never_overlap(scenario)


def test_boxes_of_a_crowded_street_never_overlap(crowded):
    assert_boxes_never_overlap(crowded)


def assert_boxes_never_overlap(scenario):
    times = np.arange(0.1, DURATION, 0.7)
    ego = scenario.ego_poses(times)
    poses = [t.poses(scenario.road, times) for t in scenario.tracks]
    for i in range(len(times)):
        boxes = [
            rectangle(pose[i], track.size[[1, 0]] / 2)
            for pose, track in zip(poses, scenario.tracks)
        ]
        boxes.append(rectangle(ego[i], EGO_HALF, EGO_CENTER))
        tree = shapely.STRtree(boxes)
        first, second = tree.query(boxes, predicate='intersects')
        assert (first == second).all()


def test_classes_are_there_and_near(scenario):
    times = np.arange(40) / 2
    ego = scenario.ego_poses(times)
    counts = collections.Counter()
    for track in scenario.tracks:
        offset = (track.poses(scenario.road, times) - ego)[:, :2]
        near = np.linalg.norm(offset, axis=1) < RANGES[track.kind.name]
        counts[track.kind.name] += near.mean()
    assert set(counts) == set(RANGES)
    assert 8 <= counts['car'] <= 18
    assert min(counts.values()) >= 0.6
    assert 25 <= sum(counts.values()) <= 50


def test_narrow_spacing_puts_more_on_the_street(crowded):
    times = np.arange(40) / 2
    usual = make_scenario(DURATION, np.random.default_rng(0))
    few, many = (sum(mean_counts(s, times).values()) for s in (usual, crowded))
    assert 1.3 * few < many < 2.5 * few


def test_parked_things_stand_still_and_traffic_follows_its_yaw(scenario):
    times = np.arange(40) / 2
    moving = 0
    for track in scenario.tracks:
        poses = track.poses(scenario.road, times)
        steps = np.diff(poses[:, :2], axis=0)
        if track.idle in ('vehicle.parked', 'cycle.without_rider', ''):
            assert (poses == poses[0]).all()
            continue
        heading = poses[:-1, 3] + np.diff(poses[:, 3]) / 2
        forward = steps[:, 0] * np.cos(heading) + \
            steps[:, 1] * np.sin(heading)
        np.testing.assert_allclose(
            forward, np.linalg.norm(steps, axis=1), atol=2e-3)
        moving += forward.max() > 0.1
        fastest = 2 * forward.max()
        limit = 2.0 if track.kind.name == 'pedestrian' else 15.0
        assert fastest < limit
        # Nothing jumps: at most a hard braking between two key frames.
        assert np.abs(np.diff(2 * forward)).max() < 3.0
    assert moving >= 10


def test_ego_drives_along_its_lane(scenario):
    times = clock(DURATION)
    ego = scenario.ego_poses(times)
    step = np.diff(ego[:, :2], axis=0)
    heading = (ego[1:, 3] + ego[:-1, 3]) / 2
    across = -step[:, 0] * np.sin(heading) + step[:, 1] * np.cos(heading)
    np.testing.assert_allclose(across, 0, atol=1e-6)
    assert 30 < np.linalg.norm(step, axis=1).sum() < 250
    np.testing.assert_array_equal(ego[:, 2], 0)
    lateral = scenario.road.lateral(ego[:, 0], ego[:, 1])
    np.testing.assert_allclose(lateral, -1.75, atol=1e-6)


def test_equal_seeds_give_equal_scenes():
    first, second = (
        make_scenario(5.0, np.random.default_rng(7)) for _ in range(2))
    assert len(first.tracks) == len(second.tracks)
    np.testing.assert_array_equal(first.clutter, second.clutter)
    times = np.array([0.0, 1.3])
    for a, b in zip(first.tracks, second.tracks):
        np.testing.assert_array_equal(
            a.poses(first.road, times), b.poses(second.road, times))
        np.testing.assert_array_equal(a.solids, b.solids)


def test_stop_is_a_stop():
    times = clock(20.0)
    driven = speed_profile(times, 7.0, np.random.default_rng(0), stop_at=9.0)
    speed = np.diff(driven) / np.diff(times)
    assert (speed >= 0).all() and speed.max() < 7 * 1.25 + 1e-6
    halted = times[1:][speed < 1e-9]
    assert len(halted) * 0.05 >= 3.5
    assert speed[0] > 1 and speed[-1] > 1
