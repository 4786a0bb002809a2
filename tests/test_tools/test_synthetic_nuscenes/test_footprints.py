import numpy as np
import shapely
import shapely.affinity
from synthetic_nuscenes.footprints import Footprints, overlap


def polygon(pose, half):
    x, y, yaw = pose
    box = shapely.box(-half[0], -half[1], half[0], half[1])
    box = shapely.affinity.rotate(box, yaw, origin=(0, 0), use_radians=True)
    return shapely.affinity.translate(box, x, y)


def test_overlap_agrees_with_shapely():
    rng = np.random.default_rng(0)
    poses = rng.uniform([-3, -3, -4], [3, 3, 4], (2, 400, 3))
    halves = rng.uniform(0.2, 2.0, (2, 400, 2))
    expected = [
        polygon(a, i).intersects(polygon(b, j))
        for a, i, b, j in zip(poses[0], halves[0], poses[1], halves[1])
    ]
    found = overlap(poses[0], halves[0], poses[1], halves[1])
    assert 0.2 < np.mean(expected) < 0.8
    np.testing.assert_array_equal(found, expected)


def test_paths_may_cross_at_different_times():
    t = np.linspace(-1, 1, 21)
    east = np.stack([10 * t, 0 * t, 0 * t], 1)
    north = np.stack([0 * t, 10 * t, 0 * t + np.pi / 2], 1)
    half = np.array([1.0, 0.5])
    late = Footprints(21)
    assert late.try_add(east, half)
    assert late.try_add(north + [0, 5, 0], half)
    together = Footprints(21)
    assert together.try_add(east, half)
    assert not together.try_add(north, half)
    assert len(together.poses) == 1
