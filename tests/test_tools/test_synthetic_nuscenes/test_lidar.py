import numpy as np
import pytest
from pyquaternion import Quaternion
from synthetic_nuscenes import DIFFICULTIES, lidar
from synthetic_nuscenes.materials import Material
from synthetic_nuscenes.raycast import Body
from synthetic_nuscenes.road import KERB, KERB_HEIGHT, Road
from synthetic_nuscenes.solids import box, triangulate

ROAD = Road((0.0, 0.0), 0.4, 0.002)
S, LATERAL = 30.0, -1.75


def ego_pose():
    x, y, yaw = ROAD.to_global(np.array(S), LATERAL)
    return np.array([x, y, 0.0, yaw])


def scan(*bodies, seed=0, difficulty=DIFFICULTIES['standard']):
    """Scan bodies, each a solid or several, placed in the ego frame."""
    bodies = [Body(triangulate(body if isinstance(body, list) else [body]))
              for body in bodies]
    poses = np.tile(ego_pose(), (len(bodies), 1))
    return lidar.scan(ROAD, bodies, poses, ego_pose(),
                      np.random.default_rng(seed), difficulty)


def to_global(points):
    """The devkit's way: sensor to ego to global, by quaternions."""
    ego = ego_pose()
    for yaw, shift in ((lidar.YAW, lidar.TRANSLATION), (ego[3], ego[:3])):
        turn = Quaternion(axis=[0, 0, 1], radians=yaw).rotation_matrix
        points = points @ turn.T + np.array(shift)
    return points


def wall(x, low, high, height=3.0):
    return box((x, x + 0.5), (low, high), (0, height), Material.CONCRETE)


def test_ground_has_a_road_and_raised_sidewalks():
    ground = to_global(scan().points[:, :3].astype(float))
    lateral = np.abs(ROAD.lateral(ground[:, 0], ground[:, 1]))
    road, walk = lateral < KERB - 0.1, lateral > KERB + 0.1
    assert road.sum() > 5000 and walk.sum() > 500
    np.testing.assert_allclose(ground[road, 2].mean(), 0, atol=0.002)
    np.testing.assert_allclose(ground[walk, 2].mean(), KERB_HEIGHT, atol=.003)
    assert ground[road, 2].std() < 0.03 and ground[walk, 2].std() < 0.04
    # The face of the kerb joins the two.
    face = (lateral > KERB - 0.03) & (lateral < KERB + 0.03)
    between = (ground[face, 2] > 0.03) & (ground[face, 2] < KERB_HEIGHT - .03)
    assert between.sum() > 30


def test_range_noise_and_loss():
    points = scan(wall(15.0, -15, 15, 8.0)).points[:, :3].astype(float)
    ahead = points[:, 1] - (15.0 - lidar.TRANSLATION[0])
    on_wall = np.abs(ahead) < 0.15
    rays = points[on_wall]
    distance = np.linalg.norm(rays, axis=1)
    noise = distance - (rays[:, 1] - ahead[on_wall]) / rays[:, 1] * distance
    high = rays[:, 2] > -1.6  # no ground among them
    assert high.sum() > 1500
    assert abs(noise[high].mean()) < 0.003
    assert 0.018 < noise[high].std() < 0.022


def test_difficulty_thins_the_returns_out():
    """From half the beams and a wall at 80 m; losses worked out by hand."""
    standard = DIFFICULTIES['standard']

    def on_wall(difficulty):
        screen = wall(80.0, -30, 30, 60.0)
        points = scan(screen, difficulty=difficulty).points
        return points[points[:, 1] > 78]

    every, half = on_wall(standard), on_wall(standard._replace(beams=16))
    elevation = np.arctan2(half[:, 2], np.linalg.norm(half[:, :2], axis=1))
    np.testing.assert_allclose(
        elevation, lidar.ELEVATIONS[2 * half[:, 4].astype(int)], atol=1e-4)
    # Beams 0, 2, 4, ... of those that meet the wall.
    assert len(half) == pytest.approx(
        np.isin(every[:, 4], range(0, 32, 2)).sum(), rel=0.05)
    # Half of the returns are gone at 80 m, where they fade from 60 m on; with
    # a fifth lost everywhere it is 0.7, and fading from 40 m on two thirds.
    kept = len(every) / 0.5
    for change, share in ((dict(loss=0.2), 0.3), (dict(fade_range=40.0), 1/3),
                          (dict(loss=0.2, fade_range=40.0), 1/3 - 0.2)):
        count = len(on_wall(standard._replace(**change)))
        assert count / kept == pytest.approx(share, abs=0.03), change


def test_visibility_of_hidden_and_free_objects():
    target, other = wall(20.0, -1, 1, 2.0), wall(20.0, 8, 10, 2.0)
    result = scan(target, other, wall(10.0, -5, 0, 6.0))
    free = scan(target, other)
    np.testing.assert_array_equal(free.seen, free.alone)
    np.testing.assert_array_equal(result.alone[:2], free.alone)
    assert free.alone[0] > 50
    assert 0.4 < result.seen[0] / result.alone[0] < 0.6
    assert result.seen[1] == result.alone[1]
    full = scan(target, wall(10.0, -5, 5, 6.0))
    assert full.seen[0] == 0 and full.alone[0] == free.alone[0]
    shadow = full.points[:, 1] > 21 - lidar.TRANSLATION[0]
    across = np.abs(full.points[:, 0]) < 2
    assert not (shadow & across).any()
