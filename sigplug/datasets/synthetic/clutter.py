"""Things beside the road that are not annotated: the detector's negatives.

Every function gives solids in a frame with its origin on the ground, x along
the road and y towards the buildings.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .materials import Material as M
from .primitives import BOX, ELLIPSOID, FRUSTUM, join, solid


class Furniture(NamedTuple):
    """Street furniture: half length, half width and a builder."""
    half: tuple[float, float]
    build: Callable[[np.random.Generator], list[np.ndarray]]


def facade(length: float, rng: np.random.Generator) -> np.ndarray:
    """A building front with a few bays, from x = 0 to ``length``."""
    height, depth = rng.uniform(4, 14), 6.0
    parts = [
        solid(BOX, (0, 0, 0), (length, depth, height), M.BRICK)
    ]
    for x in np.arange(rng.uniform(1, 4), length - 2, rng.uniform(4, 7)):
        parts.append(
            solid(BOX, (x, -rng.uniform(0.2, 0.8), 0),
                  (x + rng.uniform(0.4, 1.5), 0.1, height), M.CONCRETE))
    return join(parts)


def hedge(length: float, rng: np.random.Generator) -> np.ndarray:
    """A row of bushes from x = 0 to ``length``."""
    count = max(int(length / 0.9), 2)
    parts = []
    for x in np.linspace(0.5, length - 0.5, count):
        r, y = rng.uniform(0.45, 0.75), rng.uniform(-0.2, 0.2)
        parts.append(
            solid(ELLIPSOID, (x - r, y - r, -0.2),
                  (x + r, y + r, rng.uniform(0.9, 1.6)), M.FOLIAGE))
    return join(parts)


def _pole(rng: np.random.Generator) -> list[np.ndarray]:
    r, h = rng.uniform(0.05, 0.14), rng.uniform(4, 8)
    parts = [solid(FRUSTUM, (-r, -r, 0), (r, r, h), M.METAL, taper=0.7)]
    if rng.random() < 0.5:  # a sign
        parts.append(
            solid(BOX, (-0.05, -0.4, 2.2), (0.05, 0.4, 3.0), M.REFLECTIVE))
    return parts


def _tree(rng: np.random.Generator) -> list[np.ndarray]:
    r, h = rng.uniform(0.12, 0.24), rng.uniform(2.2, 3.2)
    parts = [solid(FRUSTUM, (-r, -r, 0), (r, r, h + 1), M.WOOD, taper=0.7)]
    for _ in range(6):  # away from the kerb, where high vehicles stand
        x, y = rng.uniform(-1.2, 1.2), rng.uniform(0.3, 1.6)
        z, size = h + rng.uniform(0.3, 2.2), rng.uniform(0.6, 1.1)
        parts.append(
            solid(ELLIPSOID, (x - size, y - size, z - 0.8 * size),
                  (x + size, y + size, z + 0.8 * size), M.FOLIAGE))
    return parts


def _bush(rng: np.random.Generator) -> list[np.ndarray]:
    parts = []
    for _ in range(4):
        x, y = rng.uniform(-0.4, 0.4), rng.uniform(-0.2, 0.2)
        r, h = rng.uniform(0.25, 0.4), rng.uniform(0.5, 1.3)
        parts.append(
            solid(ELLIPSOID, (x - r, y - r, -0.1), (x + r, y + r, h),
                  M.FOLIAGE))
    return parts


def _bin(rng: np.random.Generator) -> list[np.ndarray]:
    r, h = rng.uniform(0.24, 0.34), rng.uniform(0.85, 1.15)
    return [solid(FRUSTUM, (-r, -r, 0), (r, r, h), M.METAL, taper=1.0)]


def _cabinet(rng: np.random.Generator) -> list[np.ndarray]:
    h = rng.uniform(1.1, 1.6)
    return [solid(BOX, (-0.5, -0.22, 0), (0.5, 0.22, h), M.METAL)]


def _bollard(rng: np.random.Generator) -> list[np.ndarray]:
    return [solid(FRUSTUM, (-0.09, -0.09, 0), (0.09, 0.09, 0.8), M.METAL)]


def _shelter(rng: np.random.Generator) -> list[np.ndarray]:
    return [
        solid(BOX, (-1.8, 0.35, 0), (1.8, 0.42, 2.4), M.GLASS),
        solid(BOX, (-1.8, -0.4, 2.4), (1.8, 0.42, 2.5), M.METAL),
        solid(BOX, (-1.8, -0.4, 0), (-1.72, 0.42, 2.4), M.GLASS),
        solid(BOX, (-1.2, 0.05, 0.4), (1.2, 0.35, 0.5), M.WOOD)
    ]


FURNITURE: dict[str, Furniture] = {
    'pole': Furniture((0.15, 0.15), _pole),
    'tree': Furniture((0.25, 0.25), _tree),
    'bush': Furniture((0.8, 0.6), _bush),
    'bin': Furniture((0.35, 0.35), _bin),
    'cabinet': Furniture((0.5, 0.22), _cabinet),
    'bollard': Furniture((0.1, 0.1), _bollard),
    'shelter': Furniture((1.8, 0.42), _shelter),
}
