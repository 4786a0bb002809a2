import collections

import numpy as np
import pytest
import shapely
from shapely import affinity
from synthetic_nuscenes.scenario import (
    EGO_CENTER,
    EGO_HALF,
    make_scenario,
)

DURATION = 19.5
# Evaluation range of the nuScenes detection task, in metres.
RANGES = dict(
    car=50, truck=50, bus=50, trailer=50, construction_vehicle=50,
    pedestrian=40, motorcycle=40, bicycle=40, traffic_cone=30, barrier=30)


@pytest.fixture(scope='module', params=[0, 1])
def scenario(request):
    return make_scenario(DURATION, np.random.default_rng(request.param))


def rectangle(pose, half, forward=0.0):
    box = shapely.box(forward - half[0], -half[1], forward + half[0], half[1])
    box = affinity.rotate(box, pose[3], origin=(0, 0), use_radians=True)
    return affinity.translate(box, pose[0], pose[1])


@pytest.mark.parametrize('seed, spacing', [(0, 1.0), (1, 0.5)])
def test_boxes_never_overlap(seed, spacing):
    scenario = make_scenario(DURATION, np.random.default_rng(seed), spacing)
    times = np.arange(0.1, DURATION, 1.4)
    ego = scenario.ego_poses(times)
    poses = [t.poses(scenario.road, times) for t in scenario.tracks]
    for i in range(len(times)):
        boxes = [rectangle(pose[i], track.size[[1, 0]] / 2)
                 for pose, track in zip(poses, scenario.tracks)]
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
