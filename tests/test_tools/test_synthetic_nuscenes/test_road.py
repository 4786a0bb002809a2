import numpy as np
import pytest
from synthetic_nuscenes.road import Road


@pytest.mark.parametrize('curvature', [0.0, 1e-9, -0.004])
def test_axis_is_the_integral_of_the_heading(curvature):
    road = Road((3.0, -2.0), 0.7, curvature)
    s = np.linspace(0, 150, 300_001)
    heading = 0.7 + curvature * s
    middle = (heading[1:] + heading[:-1]) / 2
    ds = s[1] - s[0]
    x, y, end = road.to_global(np.array([150.0]), 0.0)
    np.testing.assert_allclose(x, 3 + (np.cos(middle) * ds).sum(), atol=1e-6)
    np.testing.assert_allclose(y, -2 + (np.sin(middle) * ds).sum(), atol=1e-6)
    np.testing.assert_allclose(end, heading[-1])


@pytest.mark.parametrize('curvature', [0.0, 1e-9, -0.004])
def test_lateral_inverts_to_global(curvature):
    road = Road((10.0, 20.0), -2.1, curvature)
    s = np.random.default_rng(0).uniform(-80, 200, 500)
    lateral = np.random.default_rng(1).uniform(-30, 30, 500)
    x, y, _ = road.to_global(s, lateral)
    np.testing.assert_allclose(road.lateral(x, y), lateral, atol=1e-7)
