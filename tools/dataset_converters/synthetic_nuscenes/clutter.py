"""Things beside the road that are not annotated: the detector's negatives.

Every function gives solids in a frame with its origin on the ground, x along
the road and y towards the buildings.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .materials import Material as M
from .solids import Solid, box, ellipsoid, frustum


def facade(length: float, rng: np.random.Generator) -> list[Solid]:
    """Make a building front with a few bays, from x = 0 to ``length``."""
    height, depth = rng.uniform(4, 14), 6.0
    parts = [box((0, length), (0, depth), (0, height), M.BRICK)]
    for x in np.arange(rng.uniform(1, 4), length - 2, rng.uniform(4, 7)):
        bulge, width = rng.uniform(0.2, 0.8), rng.uniform(0.4, 1.5)
        parts.append(
            box((x, x + width), (-bulge, 0.1), (0, height), M.CONCRETE))
    return parts


def hedge(length: float, rng: np.random.Generator) -> list[Solid]:
    """Make a row of bushes from x = 0 to ``length``."""
    count = max(int(length / 0.9), 2)
    parts = []
    for x in np.linspace(0.5, length - 0.5, count):
        r, y = rng.uniform(0.45, 0.75), rng.uniform(-0.2, 0.2)
        parts.append(_foliage(x, y, r, (-0.2, rng.uniform(0.9, 1.6))))
    return parts


def _foliage(x: float, y: float, r: float, z: tuple[float, float]) -> Solid:
    return ellipsoid((x - r, x + r), (y - r, y + r), z, M.FOLIAGE)


def _pole(rng: np.random.Generator) -> list[Solid]:
    r, h = rng.uniform(0.05, 0.14), rng.uniform(4, 8)
    parts = [frustum(r, r, (0, h), M.METAL, taper=0.7)]
    if rng.random() < 0.5:  # a sign
        parts.append(box(0.05, 0.4, (2.2, 3.0), M.REFLECTIVE))
    return parts


def _tree(rng: np.random.Generator) -> list[Solid]:
    r, h = rng.uniform(0.12, 0.24), rng.uniform(2.2, 3.2)
    parts = [frustum(r, r, (0, h + 1), M.WOOD, taper=0.7)]
    for _ in range(6):  # away from the kerb, where high vehicles stand
        x, y = rng.uniform(-1.2, 1.2), rng.uniform(0.3, 1.6)
        z, r = h + rng.uniform(0.3, 2.2), rng.uniform(0.6, 1.1)
        parts.append(_foliage(x, y, r, (z - 0.8 * r, z + 0.8 * r)))
    return parts


def _bush(rng: np.random.Generator) -> list[Solid]:
    parts = []
    for _ in range(4):
        x, y = rng.uniform(-0.4, 0.4), rng.uniform(-0.2, 0.2)
        r, h = rng.uniform(0.25, 0.4), rng.uniform(0.5, 1.3)
        parts.append(_foliage(x, y, r, (-0.1, h)))
    return parts


def _bin(rng: np.random.Generator) -> list[Solid]:
    r, h = rng.uniform(0.24, 0.34), rng.uniform(0.85, 1.15)
    return [frustum(r, r, (0, h), M.METAL)]


def _cabinet(rng: np.random.Generator) -> list[Solid]:
    return [box(0.5, 0.22, (0, rng.uniform(1.1, 1.6)), M.METAL)]


def _bollard(rng: np.random.Generator) -> list[Solid]:
    return [frustum(0.09, 0.09, (0, 0.8), M.METAL)]


def _shelter(rng: np.random.Generator) -> list[Solid]:
    return [
        box(1.8, (0.35, 0.42), (0, 2.4), M.GLASS),
        box(1.8, (-0.4, 0.42), (2.4, 2.5), M.METAL),
        box((-1.8, -1.72), (-0.4, 0.42), (0, 2.4), M.GLASS),
        box(1.2, (0.05, 0.35), (0.4, 0.5), M.WOOD)
    ]


class Furniture(NamedTuple):
    """Street furniture: half length, half width and a builder."""

    half: tuple[float, float]
    build: Callable[[np.random.Generator], list[Solid]]


FURNITURE: dict[str, Furniture] = {
    'pole': Furniture((0.15, 0.15), _pole),
    'tree': Furniture((0.25, 0.25), _tree),
    'bush': Furniture((0.8, 0.6), _bush),
    'bin': Furniture((0.35, 0.35), _bin),
    'cabinet': Furniture((0.5, 0.22), _cabinet),
    'bollard': Furniture((0.1, 0.1), _bollard),
    'shelter': Furniture((1.8, 0.42), _shelter),
}
