"""Ray casting against formulas and against marching along every ray."""
import numpy as np
import pytest
from pyquaternion import Quaternion

from sigplug.datasets.synthetic.materials import Material
from sigplug.datasets.synthetic.primitives import (
    BOX,
    ELLIPSOID,
    FRUSTUM,
    join,
    moved,
    solid,
)
from sigplug.datasets.synthetic.raycast import RayGrid, cast, nearest

GRID = RayGrid(720, np.deg2rad(np.linspace(-30, 10, 21)), phase=0.003)


def make(kind, low, high, **kwargs):
    return solid(kind, low, high, Material.PAINT, **kwargs)


def first_hits(solids, grid=GRID, max_range=100.0):
    """Distance of the first hit of every ray, inf without one."""
    hits = nearest(cast(grid, solids, max_range))
    out = np.full(len(grid.directions), np.inf)
    out[hits.ray] = hits.distance
    return out


def test_directions():
    directions = GRID.directions
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    # Ray = column * rows + row; columns go counter-clockwise.
    ray = directions[100 * 21 + 3]
    azimuth, elevation = 0.003 + np.deg2rad(50), np.deg2rad(-24)
    np.testing.assert_allclose(np.arctan2(ray[1], ray[0]), azimuth)
    np.testing.assert_allclose(np.arcsin(ray[2]), elevation)


def test_axis_aligned_box():
    directions = GRID.directions
    expected = np.full(len(directions), np.inf)
    low, high = np.array([5, -1, -1.5]), np.array([9, 1, -0.5])
    for axis, plane in ((0, 5.0), (2, -0.5)):  # the front and the top
        with np.errstate(divide='ignore', invalid='ignore'):
            t = plane / directions[:, axis]
            points = t[:, None] * directions
            on_face = ((t > 0) & (points >= low - 1e-9).all(1) &
                       (points <= high + 1e-9).all(1))
        assert on_face.sum() > 30
        expected[on_face] = np.minimum(expected[on_face], t[on_face])
    found = first_hits(make(BOX, low, high))
    np.testing.assert_allclose(found, expected)


def test_sphere():
    center, radius = np.array([-4.0, 6.0, -1.0]), 1.3
    along = GRID.directions @ center
    across = center @ center - along**2
    with np.errstate(invalid='ignore'):
        expected = np.where((across <= radius**2) & (along > 0),
                            along - np.sqrt(radius**2 - across), np.inf)
    found = first_hits(make(ELLIPSOID, center - radius, center + radius))
    assert np.isfinite(expected).sum() > 100
    np.testing.assert_allclose(found, expected)


def test_upright_cylinder():
    # Seen from the level of its mantle: a circle in the x-y plane.
    found = first_hits(make(FRUSTUM, (7, -0.5, -20), (8, 0.5, 20)))
    directions = GRID.directions
    flat = np.linalg.norm(directions[:, :2], axis=1)
    cos = directions[:, 0] / flat
    across = 7.5**2 * (1 - cos**2)
    with np.errstate(invalid='ignore'):
        expected = np.where((across <= 0.25) & (cos > 0),
                            (7.5 * cos - np.sqrt(0.25 - across)) / flat,
                            np.inf)
    np.testing.assert_allclose(found, expected)


def inside(primitive, points):
    """Negative inside the solid, by its definition in its own frame."""
    turn = Quaternion(axis=[0, 0, 1], radians=primitive['yaw']) * \
        Quaternion(axis=[0, 1, 0], radians=primitive['pitch'])
    local = (points - primitive['center']) @ turn.rotation_matrix
    x, y, z = (local / primitive['half']).T
    radius = 1 + (primitive['taper'] - 1) * (z + 1) / 2
    if primitive['kind'] == BOX:
        width = np.maximum(np.abs(x), np.abs(y)) - radius
    elif primitive['kind'] == FRUSTUM:
        width = np.hypot(x, y) - radius
    else:
        return np.sqrt(x**2 + y**2 + z**2) - 1
    return np.maximum(width, np.abs(z) - 1)


def random_solid(kind, rng):
    half = rng.uniform(0.2, 2.0, 3)
    azimuth = rng.uniform(-np.pi, np.pi)
    distance = rng.uniform(4.5, 11)
    center = np.array([
        distance * np.cos(azimuth), distance * np.sin(azimuth),
        rng.uniform(-2.5, 1.0)
    ])
    return make(
        kind, center - half, center + half, yaw=rng.uniform(-np.pi, np.pi),
        pitch=rng.uniform(-1, 1) if kind != FRUSTUM else 0.0,
        taper=rng.uniform(0.2, 1) if kind != ELLIPSOID else 1.0)


@pytest.mark.parametrize('kind', [BOX, FRUSTUM, ELLIPSOID])
def test_against_marching(kind):
    grid = RayGrid(90, np.deg2rad(np.linspace(-30, 10, 9)), phase=0.01)
    rng, step = np.random.default_rng(kind), 0.02
    t = np.arange(step, 16, step)
    for _ in range(4):
        one = random_solid(kind, rng)
        found = first_hits(one, grid)
        points = grid.directions[:, None] * t[:, None]
        within = inside(one[0], points.reshape(-1, 3)) < 0
        within = within.reshape(len(found), -1)
        marched = np.where(within.any(1), t[within.argmax(1)], np.inf)
        reached = np.isfinite(marched)
        assert reached.any()
        assert (found[reached] <= marched[reached]).all()
        assert (found[reached] > marched[reached] - 1.01 * step).all()
        # Marching may step over an edge, but a hit is on the surface.
        hit = np.isfinite(found)
        surface = grid.directions[hit] * found[hit, None]
        np.testing.assert_allclose(inside(one[0], surface), 0, atol=1e-9)
        assert (hit & ~reached).sum() <= 0.1 * hit.sum() + 2


def test_nearest_wins_and_all_hits_are_kept():
    near = make(BOX, (5, -1, -1), (6, 1, 1))
    far = make(BOX, (10, -3, -2), (11, 3, 2))
    solids = join([far, near])
    hits = cast(GRID, solids, 100.0)
    assert set(hits.solid) == {0, 1}
    first = nearest(hits)
    assert len(np.unique(first.ray)) == len(first.ray)
    shadowed = np.isin(first.ray, cast(GRID, near, 100.0).ray)
    assert (first.solid[shadowed] == 1).all()
    assert (first.solid[~shadowed] == 0).all() and (~shadowed).any()


def test_tie_goes_to_the_first_solid():
    one = make(BOX, (5, -1, -1), (6, 1, 1))
    assert set(nearest(cast(GRID, join([one, one]), 100.0)).solid) == {0}


def test_solid_across_the_seam_of_the_grid():
    ring = [
        first_hits(
            moved(make(BOX, (5, -1, -1), (6, 1, 1)), np.zeros(3), angle),
            RayGrid(720, GRID.elevations))
        for angle in (0.0, np.pi / 2, np.pi, 3 * np.pi / 2)
    ]
    assert {np.isfinite(hits).sum() for hits in ring} == \
        {np.isfinite(ring[0]).sum()}
    np.testing.assert_allclose(np.roll(ring[0], 180 * 21), ring[1])


def test_roof_above_the_sensor_is_seen_all_around():
    found = first_hits(make(BOX, (-90, -90, 2), (90, 90, 3)))
    up = GRID.directions[:, 2] > 0
    near_enough = up & (2 / np.where(up, GRID.directions[:, 2], 1) <= 100)
    np.testing.assert_array_equal(np.isfinite(found), near_enough)


def test_origin_inside_and_out_of_range_are_not_seen():
    around = make(BOX, (-1, -1, -1), (1, 1, 1))
    beyond = make(BOX, (50, -2, -2), (51, 2, 2))
    assert len(cast(GRID, join([around, beyond]), 49.0).ray) == 0
    assert len(cast(GRID, beyond, 52.0).ray) > 0


def test_no_solids():
    assert len(nearest(cast(GRID, join([]), 100.0)).ray) == 0
