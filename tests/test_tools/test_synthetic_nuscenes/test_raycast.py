"""Rays against formulas, and the choice of rays against all of them."""
import numpy as np
from pyquaternion import Quaternion
from synthetic_nuscenes.materials import Material as M
from synthetic_nuscenes.raycast import Body, RayGrid, cast
from synthetic_nuscenes.solids import box, triangulate

ALL_AROUND = RayGrid(720, np.deg2rad(np.linspace(-89, 89, 180)), phase=0.003)


def test_no_ray_is_left_out():
    """All bodies at once, each against Embree with every ray there is.

    They lie on all sides, above, below and around the sensor, and turned.
    """
    rng = np.random.default_rng(0)
    solids, poses = [], []
    for _ in range(40):
        x, y, z = (np.sort(pair) for pair in rng.uniform(-3, 3, (3, 2)))
        solids.append(box(tuple(x), tuple(y), tuple(z), M.PAINT,
                          taper=rng.uniform(0.2, 1),
                          pitch=rng.uniform(-1, 1)))
        poses.append([*rng.uniform(-12, 12, 2), rng.uniform(-6, 6),
                      rng.uniform(-7, 7)])
    bodies = [Body(triangulate([solid])) for solid in solids]
    directions = ALL_AROUND.directions
    met = 0
    for body, (*center, yaw), (ray, distance, _) in zip(
            bodies, poses, cast(ALL_AROUND, bodies, np.array(poses), 14.0)):
        back = Quaternion(axis=[0, 0, 1], radians=-yaw).rotation_matrix
        local = (directions @ back.T).astype(np.float32)
        origin = np.float32(back @ -np.array(center))
        found = body.scene.run(np.full_like(local, origin), local, 14.0,
                               output=True)
        every = np.flatnonzero(found['primID'] >= 0)
        # A ray along an edge may go either way.
        assert len(np.setxor1d(ray, every)) <= 3 + 0.001 * len(every)
        both = np.intersect1d(ray, every)
        there = np.zeros(len(directions))
        there[ray] = distance
        np.testing.assert_allclose(there[both], found['tfar'][both],
                                   rtol=1e-3)
        met += len(every)
    assert met > 20_000
