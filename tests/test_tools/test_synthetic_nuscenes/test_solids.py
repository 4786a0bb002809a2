"""Meshes against the volumes and extents of what they stand for."""
import numpy as np
import pytest
import trimesh
from synthetic_nuscenes.materials import Material as M
from synthetic_nuscenes.solids import (
    box,
    frustum,
    triangulate,
)

Z = (1.0, 4.0)
CONE = (1 + 0.5 + 0.25) / 3  # volume of a body that tapers to half its width


def as_trimesh(mesh):
    return trimesh.Trimesh(mesh.vertices, mesh.faces)


@pytest.mark.parametrize('solid, volume, error', [
    (box((2, 6), 1.0, Z, M.PAINT), 4 * 2 * 3, 1e-9),
    (box((2, 6), 1.0, Z, M.PAINT, taper=0.5), 4 * 2 * 3 * CONE, 1e-9),
    (box((2, 6), 1.0, Z, M.PAINT, pitch=0.3), 4 * 2 * 3, 1e-9),
    (frustum((2, 6), 1.0, Z, M.PAINT), np.pi * 2 * 1 * 3, 0.03),
    (frustum((2, 6), 1.0, Z, M.PAINT, taper=0.5),
     np.pi * 2 * 1 * 3 * CONE, 0.03),
])
def test_volume(solid, volume, error):
    mesh = as_trimesh(triangulate([solid]))
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(volume, rel=error)
    np.testing.assert_allclose(mesh.center_mass[:2], [4, 0], atol=0.2)


def test_pose_turns_then_moves():
    solid = box((1, 3), (0, 1), (0, 1), M.PAINT)
    mesh = triangulate([solid], (10, 20, 0.5, np.pi / 2))
    np.testing.assert_allclose(mesh.vertices.min(0), [9, 21, 0.5])
    np.testing.assert_allclose(mesh.vertices.max(0), [10, 23, 1.5])
