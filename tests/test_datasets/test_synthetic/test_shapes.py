import numpy as np
import pytest

from sigplug.datasets.synthetic.primitives import moved
from sigplug.datasets.synthetic.raycast import RayGrid, cast, nearest
from sigplug.datasets.synthetic.shapes import (
    MARGIN,
    OBJECT_CLASSES,
    build_solids,
    sample_size,
)

CLASSES = {
    'car', 'truck', 'trailer', 'bus', 'construction_vehicle', 'bicycle',
    'motorcycle', 'pedestrian', 'traffic_cone', 'barrier'
}


def surface(solids, distance=25.0, height=1.5):
    """Points of the surface, seen from eight sides."""
    grid = RayGrid(3000, np.deg2rad(np.linspace(-8, 8, 161)))
    out = []
    for angle in np.arange(8) * np.pi / 4 + 0.1:
        shift = np.array([
            distance * np.cos(angle), distance * np.sin(angle), -height
        ])
        hits = nearest(cast(grid, moved(solids, shift, 0.0), 100.0))
        out.append(grid.directions[hits.ray] * hits.distance[:, None] - shift)
    return np.concatenate(out)


def test_all_detection_classes():
    assert {kind.name for kind in OBJECT_CLASSES.values()} == CLASSES


def test_categories_map_to_their_class():
    utils = pytest.importorskip('nuscenes.eval.detection.utils')
    for kind in OBJECT_CLASSES.values():
        assert utils.category_to_detection_name(kind.category) == kind.name


@pytest.mark.parametrize('key', OBJECT_CLASSES)
def test_solids_fill_the_box_from_within(key):
    kind, rng = OBJECT_CLASSES[key], np.random.default_rng(5)
    for _ in range(2):
        size = sample_size(kind, rng)
        points = surface(build_solids(kind, size, rng))
        width, length, height = size
        half = np.array([length, width]) / 2 - MARGIN
        assert (np.abs(points[:, :2]) <= half + 1e-9).all()
        assert points[:, 2].min() >= -1e-9
        assert points[:, 2].max() <= height - MARGIN + 1e-9
        extent = points.max(0) - points.min(0)
        assert (extent[:2] >= 0.9 * 2 * half).all()
        assert extent[2] >= 0.9 * height


@pytest.mark.parametrize('key', OBJECT_CLASSES)
def test_size_is_within_two_sigma(key):
    kind, rng = OBJECT_CLASSES[key], np.random.default_rng(0)
    sizes = np.stack([sample_size(kind, rng) for _ in range(300)])
    mean, std = np.array(kind.mean), np.array(kind.std)
    assert (np.abs(sizes - mean) <= 2 * std + 1e-3).all()
    np.testing.assert_allclose(sizes.mean(0), mean, atol=0.2 * std.max())
    assert (sizes.std(0) > 0.7 * std).all()
