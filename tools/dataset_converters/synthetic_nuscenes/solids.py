"""Convex solids, the building blocks of everything the LiDAR can see."""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import trimesh

from .materials import Material

# The unit solids fill [-1, 1]^3; the round ones have the mean silhouette of
# the body that they stand for.
SECTIONS = 16
UNIT_BOX = trimesh.creation.box((2, 2, 2))
UNIT_CYLINDER = trimesh.creation.cylinder(
    np.pi / SECTIONS / np.sin(np.pi / SECTIONS), 2, sections=SECTIONS)
UNIT_SPHERE = trimesh.creation.icosphere(subdivisions=1)
UNIT_SPHERE.apply_scale(np.sqrt(4 * np.pi / UNIT_SPHERE.area))

Interval = tuple[float, float]


class Solid(NamedTuple):
    """A unit solid, stretched and turned.

    Attributes:
        unit (trimesh.Trimesh): One of the unit solids.
        low (tuple): Least x, y, z before it is turned, in metres.
        high (tuple): Greatest x, y, z before it is turned, in metres.
        material (Material): What its surface is made of.
        taper (float): Width at the top as a share of that at the bottom.
        pitch (float): Angle about its y axis, nose down positive, in radians.
    """

    unit: trimesh.Trimesh
    low: tuple[float, ...]
    high: tuple[float, ...]
    material: Material
    taper: float = 1.0
    pitch: float = 0.0


def _make(unit: trimesh.Trimesh, x: Interval | float, y: Interval | float,
          z: Interval, material: Material, **kwargs: float) -> Solid:
    x, y = (v if isinstance(v, tuple) else (-v, v) for v in (x, y))
    return Solid(unit, *zip(x, y, z), material, **kwargs)


def box(x: Interval | float, y: Interval | float, z: Interval,
        material: Material, **kwargs: float) -> Solid:
    """Make a box; a single x or y is half the extent of a symmetric one."""
    return _make(UNIT_BOX, x, y, z, material, **kwargs)


def frustum(x: Interval | float, y: Interval | float, z: Interval,
            material: Material, **kwargs: float) -> Solid:
    """Make an upright cylinder or, with ``taper``, a part of a cone."""
    return _make(UNIT_CYLINDER, x, y, z, material, **kwargs)


def ellipsoid(x: Interval | float, y: Interval | float, z: Interval,
              material: Material) -> Solid:
    """Make an ellipsoid."""
    return _make(UNIT_SPHERE, x, y, z, material)


def rotate(xy: np.ndarray, yaw: float | np.ndarray) -> np.ndarray:
    """Turn points of shape (..., 2) about the origin by ``yaw`` radians."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    x, y = xy[..., 0], xy[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


class Mesh(NamedTuple):
    """Triangles.

    Attributes:
        vertices (np.ndarray): Corners in metres, shape (V, 3).
        faces (np.ndarray): Three vertices of each triangle, shape (F, 3).
        material (np.ndarray): Material of each triangle, shape (F, ).
    """

    vertices: np.ndarray
    faces: np.ndarray
    material: np.ndarray


def join(meshes: Sequence[Mesh]) -> Mesh:
    """Put all triangles of one or more meshes into one mesh."""
    vertices, faces, material = zip(*meshes)
    starts = np.cumsum([0, *(len(part) for part in vertices[:-1])])
    return Mesh(
        np.concatenate(vertices),
        np.concatenate([part + start for part, start in zip(faces, starts)]),
        np.concatenate(material))


def triangulate(solids: Sequence[Solid],
                pose: Sequence[float] = (0, 0, 0, 0)) -> Mesh:
    """Make one mesh of solids whose own frame lies at x, y, z, yaw."""
    meshes = []
    for unit, low, high, material, taper, pitch in solids:
        points = np.array(unit.vertices)
        points[points[:, 2] > 0, :2] *= taper
        points *= np.subtract(high, low) / 2
        if pitch:
            points[:, [0, 2]] = rotate(points[:, [0, 2]], -pitch)
        points += np.add(low, high) / 2
        meshes.append(
            Mesh(points, unit.faces, np.full(len(unit.faces), material)))
    mesh = join(meshes)
    mesh.vertices[:, :2] = rotate(mesh.vertices[:, :2], pose[3])
    mesh.vertices[:] += pose[:3]
    return mesh
