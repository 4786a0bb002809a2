import numpy as np
import pytest
from pyquaternion import Quaternion
from synthetic_nuscenes import GeneratorConfig
from synthetic_nuscenes.lidar import TRANSLATION
from synthetic_nuscenes.scene import Scene, count_points


@pytest.fixture(scope='module')
def scene():
    return Scene('scene-0061', GeneratorConfig(samples_per_scene=4))


def test_annotated_without_a_gap_from_first_to_last(scene, monkeypatch):
    """By the distance at key frames and, between them, at sweeps."""
    distances = np.array([
        [50, 50, 70, 70, 50, 50, 70],  # goes and comes back
        [70, 50, 70, 50, 50, 50, 70],  # in range at one key frame only
        [59, 59, 59, 59, 59, 59, 59],
        [70, 50, 70, 50, 70, 50, 70],  # never at a key frame
    ])
    poses = np.zeros((7, 4, 4))
    poses[:, :, 1] = distances.T
    monkeypatch.setattr(scene, 'poses', poses)
    monkeypatch.setattr(scene, 'ego', np.zeros((7, 4)))
    np.testing.assert_array_equal(scene._annotated().T, [
        [1, 0, 1, 0, 1, 0, 0], [0] * 7, [1, 0, 1, 0, 1, 0, 1], [0] * 7])


def test_points_in_a_box():
    """Counted in the box's own frame, by quaternions."""
    rng = np.random.default_rng(0)
    ego, center = np.array([30, 20, 0, 0.7]), np.array([36.0, 18.0, 1.0])
    size, yaw = np.array([2.0, 5.0, 1.6]), -1.1
    world = center + rng.uniform(-4, 4, (2000, 3))
    turn = Quaternion(axis=[0, 0, 1], radians=yaw).rotation_matrix
    inside = (np.abs((world - center) @ turn) <= [2.5, 1, 0.8]).all(1).sum()
    to_ego = Quaternion(axis=[0, 0, 1], radians=ego[3]).rotation_matrix
    sensor = (world - ego[:3]) @ to_ego - TRANSLATION
    sensor = sensor[:, [1, 0, 2]] * (-1, 1, 1)  # x right, y forward
    assert count_points(sensor, ego, center, size, yaw) == inside > 20
