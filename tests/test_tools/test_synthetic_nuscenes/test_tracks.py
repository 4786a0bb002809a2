import numpy as np
from synthetic_nuscenes.road import Road
from synthetic_nuscenes.shapes import OBJECT_CLASSES
from synthetic_nuscenes.tracks import STEP, Track, clock, speed_profile


def test_stop_is_a_stop():
    times = clock(20.0)
    driven = speed_profile(times, 7.0, np.random.default_rng(0), stop_at=9.0)
    speed = np.diff(driven) / np.diff(times)
    assert (speed >= 0).all() and speed.max() < 7 * 1.25 + 1e-6
    halted = times[1:][speed < 1e-9]
    assert len(halted) * STEP >= 3.5
    assert speed[0] > 1 and speed[-1] > 1


def test_poses_follow_the_road_between_the_instants():
    """On a straight road along y, from the kerb's height to the road."""
    times = clock(2.0)
    track = Track(OBJECT_CLASSES['adult'], np.ones(3), 3 * times,
                  10 - 2 * times, 0.25)
    poses = track.poses(Road((5.0, 1.0), np.pi / 2, 0.0),
                        np.array([0.0, 0.51, 1.99]))
    expected = [(-5, 1, 0.14), (-3.98, 2.53, 0.14), (-1.02, 6.97, 0)]
    np.testing.assert_allclose(poses[:, :3], expected)
    np.testing.assert_allclose(poses[:, 3], np.pi / 2 + 0.25)
