"""Convex solids, the building blocks of everything the LiDAR can see."""
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from .materials import Material


class Unit(NamedTuple):
    """Triangles of a solid that fills [-1, 1]^3."""

    vertices: np.ndarray
    faces: np.ndarray


def lathe(radii: Sequence[float] | np.ndarray,
          heights: Sequence[float] | np.ndarray, sections: int) -> Unit:
    """Stack rings of so many corners, the lowest first; close both ends."""
    angle = 2 * np.pi * (np.arange(sections) + 0.5) / sections
    ring = np.stack([np.cos(angle), np.sin(angle), np.ones(sections)], 1)
    vertices = [ring * (r, r, z) for r, z in zip(radii, heights)]
    here = np.arange(sections)
    there = np.roll(here, -1)
    wall = np.concatenate([
        np.stack([here, there, there + sections], 1),
        np.stack([here, there + sections, here + sections], 1)])
    cap = np.stack([0 * here, here, there], 1)[1:-1]
    steps = np.arange(len(vertices)) * sections
    faces = [cap[:, ::-1], *(wall + step for step in steps[:-1]),
             cap + steps[-1]]
    return Unit(np.concatenate(vertices), np.concatenate(faces))


# The corners of the round ones lie a little outside: seen from afar, they are
# as large on average as what they stand for.
LATITUDES = np.deg2rad([-70, -35, 0, 35, 70])
UNIT_BOX = lathe([2**0.5, 2**0.5], [-1, 1], 4)
UNIT_CYLINDER = lathe([1.0064, 1.0064], [-1, 1], 16)
UNIT_SPHERE = lathe(1.04 * np.cos(LATITUDES), 1.04 * np.sin(LATITUDES), 10)

Interval = tuple[float, float]


class Solid(NamedTuple):
    """A unit solid that is stretched and then turned."""

    unit: Unit
    low: tuple[float, ...]  # least x, y, z in metres
    high: tuple[float, ...]  # greatest x, y, z in metres
    material: Material
    taper: float = 1.0  # width at the top as a share of that at the bottom
    pitch: float = 0.0  # angle about its y axis, nose down positive


def _make(unit: Unit, x: Interval | float, y: Interval | float, z: Interval,
          material: Material, **kwargs: float) -> Solid:
    """Make a solid; a single x or y is half the extent about 0."""
    x, y = (v if isinstance(v, tuple) else (-v, v) for v in (x, y))
    return Solid(unit, *zip(x, y, z), material, **kwargs)


box = partial(_make, UNIT_BOX)
frustum = partial(_make, UNIT_CYLINDER)  # a cylinder unless it tapers
ellipsoid = partial(_make, UNIT_SPHERE)


def rotate(xy: np.ndarray, yaw: float | np.ndarray) -> np.ndarray:
    """Turn points of shape (..., 2) about the origin by ``yaw`` radians."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    x, y = xy[..., 0], xy[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


class Mesh(NamedTuple):
    """Triangles, each of one material."""

    vertices: np.ndarray  # in metres, (V, 3)
    faces: np.ndarray  # three vertices each, (F, 3)
    material: np.ndarray  # (F, )


def join(meshes: Sequence[Mesh]) -> Mesh:
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
        points = unit.vertices.copy()
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
