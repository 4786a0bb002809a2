"""The ten detection classes: sizes and solids in the object's own frame.

Object frame: x forward, y left, z up, origin on the ground under the centre of
the annotated box. Mean sizes follow the nuScenes training set's statistics.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .materials import Material as M
from .primitives import BOX, ELLIPSOID, FRUSTUM, join, solid

# Annotators leave a little air around an object; range noise stays inside.
MARGIN = 0.04

Size = tuple[float, float, float]


class ObjectClass(NamedTuple):
    """What the scenario needs to know about a kind of object.

    Attributes:
        name (str): nuScenes detection class.
        category (str): nuScenes category.
        mean (tuple): Mean width, length and height in metres.
        std (tuple): Their standard deviations.
        build (callable): Makes the solids from the inner size and a generator.
    """
    name: str
    category: str
    mean: Size
    std: Size
    build: Callable[[np.ndarray, np.random.Generator], list[np.ndarray]]


def sample_size(kind: ObjectClass, rng: np.random.Generator) -> np.ndarray:
    """Draw width, length, height in metres (two sigma at most)."""
    deviation = np.clip(rng.standard_normal(3), -2, 2)
    size = np.array(kind.mean) + np.array(kind.std) * deviation
    return np.round(size, 3)


def build_solids(kind: ObjectClass, size: np.ndarray,
                 rng: np.random.Generator) -> np.ndarray:
    """Make the solids of one object, all inside its annotated box.

    Args:
        kind (ObjectClass): The object's class.
        size (np.ndarray): Annotated width, length, height in metres.
        rng (np.random.Generator): Source of the individual variation.

    Returns:
        np.ndarray: Shape (N, ), dtype ``PRIMITIVE``.
    """
    inner = size - np.array([2 * MARGIN, 2 * MARGIN, MARGIN])
    return join(kind.build(inner, rng))


def _axles(w: float, radius: float, *positions: float) -> list[np.ndarray]:
    return [
        solid(BOX, (x - radius, -w / 2, 0), (x + radius, w / 2, 2 * radius),
              M.RUBBER) for x in positions
    ]


def _car(size: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    w, le, h = size
    belt = h * rng.uniform(0.52, 0.6)
    rear = -le * rng.uniform(0.36, 0.49)
    front = le * rng.uniform(0.12, 0.24)
    body = solid(BOX, (-le / 2, -w / 2, 0.13 * h), (le / 2, w / 2, belt),
                 M.PAINT)
    pillars = solid(BOX, (rear, -w / 2, belt), (front, w / 2, 0.94 * h),
                    M.GLASS, taper=0.76)
    roof = solid(BOX, (rear + 0.12 * (front - rear), -0.38 * w, 0.92 * h),
                 (front - 0.12 * (front - rear), 0.38 * w, h), M.PAINT)
    return [body, pillars, roof, *_axles(w, 0.31, -0.3 * le, 0.31 * le)]


def _truck(size: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    w, le, h = size
    cab = le * rng.uniform(0.24, 0.32)
    cab_height = h * rng.uniform(0.72, 0.85)
    nose = solid(BOX, (le / 2 - cab, -0.46 * w, 0.2 * h),
                 (le / 2, 0.46 * w, 0.55 * cab_height), M.PAINT)
    top = solid(BOX, (le / 2 - cab, -0.46 * w, 0.55 * cab_height),
                (le / 2 - 0.12 * cab, 0.46 * w, cab_height), M.GLASS)
    bed = 0.32 * h
    chassis = solid(BOX, (-le / 2, -0.2 * w, 0.22 * h),
                    (le / 2 - cab, 0.2 * w, bed), M.METAL)
    box_top = h if rng.random() < 0.75 else 0.62 * h  # closed or open load
    cargo = solid(BOX, (-le / 2, -w / 2, bed),
                  (le / 2 - cab - 0.25, w / 2, box_top), M.METAL)
    roof = solid(BOX, (-le / 2, -w / 2, box_top - 0.15),
                 (-le / 2 + 0.3, w / 2, h), M.METAL)
    return [
        nose, top, chassis, cargo, roof,
        *_axles(0.94 * w, 0.48, -0.3 * le, 0.34 * le)
    ]


def _bus(size: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    w, le, h = size
    sill = 0.42 * h
    lower = solid(BOX, (-le / 2, -w / 2, 0.1 * h), (le / 2, w / 2, sill),
                  M.PAINT)
    windows = solid(BOX, (-le / 2, -w / 2, sill), (le / 2, w / 2, 0.78 * h),
                    M.GLASS)
    upper = solid(BOX, (-le / 2, -w / 2, 0.78 * h), (le / 2, w / 2, 0.94 * h),
                  M.PAINT)
    cooler = rng.uniform(-0.3, 0.2) * le
    roof = solid(BOX, (cooler, -0.35 * w, 0.94 * h),
                 (cooler + 0.25 * le, 0.35 * w, h), M.METAL)
    return [lower, windows, upper, roof, *_axles(w, 0.45, -.28 * le, .3 * le)]


def _trailer(size: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    w, le, h = size
    bed = 0.33 * h
    cargo = solid(BOX, (-le / 2, -w / 2, bed), (le / 2, w / 2, h), M.METAL)
    legs = solid(BOX, (0.24 * le, -0.35 * w, 0), (0.26 * le, 0.35 * w, bed),
                 M.METAL)
    rear = -le * rng.uniform(0.36, 0.4)
    return [cargo, legs, *_axles(0.94 * w, 0.5, rear, rear + 1.25)]


def _construction(size: np.ndarray,
                  rng: np.random.Generator) -> list[np.ndarray]:
    w, le, h = size
    tail = -le / 2
    house_end = tail + 0.48 * le
    tracks = [
        solid(BOX, (tail + 0.04 * le, side - 0.13 * w, 0),
              (house_end + 0.08 * le, side + 0.13 * w, 0.27 * h), M.METAL)
        for side in (-0.37 * w, 0.37 * w)
    ]
    house = solid(BOX, (tail, -0.46 * w, 0.3 * h),
                  (house_end - 0.12 * le, 0.46 * w, 0.66 * h), M.PAINT)
    cabin = solid(BOX, (house_end - 0.22 * le, 0.05 * w, 0.3 * h),
                  (house_end, 0.46 * w, 0.92 * h), M.PAINT, taper=0.9)
    # Boom: from the house's foot up to the knee; then the stick, down.
    knee = np.array([le * rng.uniform(0.2, 0.3), 0.94 * h])
    foot = np.array([house_end - 0.1 * le, 0.45 * h])
    tip = np.array([0.44 * le, 0.22 * h])
    bucket = solid(BOX, (0.36 * le, -0.25 * w, 0.03 * h),
                   (le / 2, 0.25 * w, 0.25 * h), M.METAL)
    return [
        *tracks, house, cabin,
        _beam(foot, knee, -0.2 * w, 0.06 * h),
        _beam(knee, tip, -0.2 * w, 0.045 * h), bucket
    ]


def _beam(start: np.ndarray, end: np.ndarray, y: float,
          half_width: float) -> np.ndarray:
    """A bar between two points of the x-z plane."""
    (x, z), (dx, dz) = (start + end) / 2, end - start
    half = np.hypot(dx, dz) / 2
    return solid(BOX, (x - half, y - half_width, z - half_width),
                 (x + half, y + half_width, z + half_width), M.PAINT,
                 pitch=-np.arctan2(dz, dx))


def _person(size: np.ndarray, cloth: M) -> list[np.ndarray]:
    """One foot before the other, shoulders as wide as the box."""
    w, le, h = size
    legs = [
        solid(FRUSTUM, (-le / 2, -0.4 * w, 0), (-0.04 * le, 0, 0.5 * h),
              M.CLOTH),
        solid(FRUSTUM, (0.04 * le, 0, 0), (le / 2, 0.4 * w, 0.5 * h), M.CLOTH)
    ]
    torso = solid(FRUSTUM, (-0.36 * le, -w / 2, 0.45 * h),
                  (0.36 * le, w / 2, 0.84 * h), cloth, taper=0.85)
    head = solid(ELLIPSOID, (-0.12, -0.1, 0.84 * h), (0.12, 0.1, h), M.CLOTH)
    return [*legs, torso, head]


def _pedestrian(size: np.ndarray,
                rng: np.random.Generator) -> list[np.ndarray]:
    return _person(size, M.CLOTH)


def _worker(size: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    return _person(size, M.REFLECTIVE)


def _wheel(x: float, radius: float, width: float) -> np.ndarray:
    return solid(BOX, (x - 0.8 * radius, -width / 2, 0),
                 (x + 0.8 * radius, width / 2, 1.9 * radius), M.RUBBER)


def _rider(w: float, h: float, seat: float) -> list[np.ndarray]:
    torso = solid(FRUSTUM, (-0.32, -0.38 * w, seat),
                  (0.12, 0.38 * w, h - 0.24), M.CLOTH, taper=0.8)
    head = solid(ELLIPSOID, (-0.12, -0.12, h - 0.26), (0.14, 0.12, h), M.PAINT)
    legs = solid(BOX, (-0.15, -0.3 * w, 0.3 * seat), (0.22, 0.3 * w, seat),
                 M.CLOTH)
    return [torso, head, legs]


def _motorcycle(size: np.ndarray, frame: float) -> list[np.ndarray]:
    w, le, h = size
    return [
        _wheel(-le / 2 + 0.26, 0.32, 0.16),
        _wheel(le / 2 - 0.26, 0.32, 0.16),
        solid(BOX, (-0.38 * le, -0.24 * w, 0.28),
              (0.26 * le, 0.24 * w, frame), M.PAINT),
        solid(BOX, (0.22 * le, -w / 2, frame - 0.05),
              (0.27 * le, w / 2, frame + 0.12), M.METAL),
        solid(BOX, (0.24 * le, -0.15 * w, frame - 0.1),
              (0.34 * le, 0.15 * w, min(h, frame + 0.3)), M.GLASS)
    ]


def _motorcycle_rider(size: np.ndarray,
                      rng: np.random.Generator) -> list[np.ndarray]:
    return _motorcycle(size, 0.85) + _rider(size[0], size[2], 0.85)


def _motorcycle_parked(size: np.ndarray,
                       rng: np.random.Generator) -> list[np.ndarray]:
    return _motorcycle(size, 0.8 * size[2])


def _bicycle(size: np.ndarray, bar: float) -> list[np.ndarray]:
    w, le, _ = size
    return [
        _wheel(-le / 2 + 0.3, 0.33, 0.06),
        _wheel(le / 2 - 0.3, 0.33, 0.06),
        solid(BOX, (-0.25 * le, -0.04, 0.45), (0.28 * le, 0.04, 0.62),
              M.METAL),
        solid(BOX, (-0.2 * le, -0.08, 0.62), (-0.06 * le, 0.08, bar - 0.08),
              M.METAL),
        solid(BOX, (0.26 * le, -w / 2, bar - 0.1), (0.32 * le, w / 2, bar),
              M.METAL)
    ]


def _bicycle_rider(size: np.ndarray,
                   rng: np.random.Generator) -> list[np.ndarray]:
    return _bicycle(size, 0.95) + _rider(size[0], size[2], 0.85)


def _bicycle_parked(size: np.ndarray,
                    rng: np.random.Generator) -> list[np.ndarray]:
    return _bicycle(size, size[2])


def _cone(size: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    w, le, h = size
    foot = solid(BOX, (-le / 2, -w / 2, 0), (le / 2, w / 2, 0.06), M.RUBBER)
    body = solid(FRUSTUM, (-0.42 * le, -0.42 * w, 0.06),
                 (0.42 * le, 0.42 * w, h), M.REFLECTIVE, taper=0.25)
    return [foot, body]


def _barrier(size: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    w, le, h = size  # the long side is the width
    foot = solid(BOX, (-le / 2, -w / 2, 0), (le / 2, w / 2, 0.3 * h),
                 M.CONCRETE)
    wall = solid(BOX, (-0.27 * le, -w / 2, 0.3 * h), (0.27 * le, w / 2, h),
                 M.REFLECTIVE if rng.random() < 0.5 else M.CONCRETE)
    return [foot, wall]


OBJECT_CLASSES: dict[str, ObjectClass] = dict(
    car=ObjectClass('car', 'vehicle.car', (1.93, 4.55, 1.68),
                    (0.07, 0.25, 0.12), _car),
    truck=ObjectClass('truck', 'vehicle.truck', (2.5, 7.0, 2.9),
                      (0.12, 0.7, 0.25), _truck),
    bus=ObjectClass('bus', 'vehicle.bus.rigid', (2.85, 11.2, 3.4),
                    (0.08, 0.6, 0.15), _bus),
    trailer=ObjectClass('trailer', 'vehicle.trailer', (2.75, 11.6, 3.8),
                        (0.1, 0.8, 0.15), _trailer),
    construction_vehicle=ObjectClass('construction_vehicle',
                                     'vehicle.construction', (2.6, 6.4, 3.15),
                                     (0.12, 0.4, 0.2), _construction),
    adult=ObjectClass('pedestrian', 'human.pedestrian.adult',
                      (0.66, 0.7, 1.76), (0.05, 0.07, 0.09), _pedestrian),
    child=ObjectClass('pedestrian', 'human.pedestrian.child',
                      (0.52, 0.54, 1.36), (0.04, 0.05, 0.1), _pedestrian),
    worker=ObjectClass('pedestrian', 'human.pedestrian.construction_worker',
                       (0.7, 0.74, 1.78), (0.05, 0.06, 0.07), _worker),
    motorcycle_rider=ObjectClass('motorcycle', 'vehicle.motorcycle',
                                 (0.8, 2.1, 1.6), (0.06, 0.1, 0.08),
                                 _motorcycle_rider),
    motorcycle_parked=ObjectClass('motorcycle', 'vehicle.motorcycle',
                                  (0.78, 2.05, 1.22), (0.06, 0.1, 0.06),
                                  _motorcycle_parked),
    bicycle_rider=ObjectClass('bicycle', 'vehicle.bicycle', (0.58, 1.74, 1.68),
                              (0.04, 0.06, 0.06), _bicycle_rider),
    bicycle_parked=ObjectClass('bicycle', 'vehicle.bicycle',
                               (0.58, 1.72, 1.08), (0.04, 0.06, 0.04),
                               _bicycle_parked),
    traffic_cone=ObjectClass('traffic_cone', 'movable_object.trafficcone',
                             (0.44, 0.44, 0.98), (0.03, 0.03, 0.09), _cone),
    barrier=ObjectClass('barrier', 'movable_object.barrier', (2.35, 0.55, 1.0),
                        (0.12, 0.03, 0.05), _barrier),
)
