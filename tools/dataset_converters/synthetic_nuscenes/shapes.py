"""The ten detection classes: sizes and solids in the object's own frame.

Object frame: x forward, y left, z up, origin on the ground under the centre of
the annotated box. Mean sizes follow the nuScenes training set's statistics.
"""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from .materials import Material as M
from .solids import Solid, box, ellipsoid, frustum

# Annotators leave a little air around an object; range noise stays inside.
MARGIN = 0.04

Size = tuple[float, float, float]
Solids = list[Solid]


class ObjectClass(NamedTuple):
    """A kind of object: its class and category in nuScenes, and its shape."""

    name: str
    category: str
    mean: Size  # width, length and height in metres
    std: Size  # their standard deviations
    # Makes the solids from the inner width, length and height.
    build: Callable[[float, float, float, np.random.Generator], Solids]


def sample_size(kind: ObjectClass, rng: np.random.Generator) -> np.ndarray:
    """Draw width, length, height in metres (two sigma at most)."""
    deviation = np.clip(rng.standard_normal(3), -2, 2)
    return np.round(np.array(kind.mean) + np.array(kind.std) * deviation, 3)


def build_solids(kind: ObjectClass, size: np.ndarray,
                 rng: np.random.Generator) -> Solids:
    """Make the solids of one object, all inside its annotated box."""
    return kind.build(*(size - [2 * MARGIN, 2 * MARGIN, MARGIN]), rng)


def _axles(w: float, radius: float, *positions: float) -> Solids:
    return [box((x - radius, x + radius), w / 2, (0, 2 * radius), M.RUBBER)
            for x in positions]


def _car(w: float, le: float, h: float, rng: np.random.Generator) -> Solids:
    belt = h * rng.uniform(0.52, 0.6)
    rear = -le * rng.uniform(0.36, 0.49)
    front = le * rng.uniform(0.12, 0.24)
    inset = 0.12 * (front - rear)
    return [
        box(le / 2, w / 2, (0.13 * h, belt), M.PAINT),
        box((rear, front), w / 2, (belt, 0.94 * h), M.GLASS, taper=0.76),
        box((rear + inset, front - inset), 0.38 * w, (0.92 * h, h), M.PAINT),
        *_axles(w, 0.31, -0.3 * le, 0.31 * le)
    ]


def _truck(w: float, le: float, h: float, rng: np.random.Generator) -> Solids:
    cab = le * rng.uniform(0.24, 0.32)
    back = le / 2 - cab  # of the cab
    high = h * rng.uniform(0.72, 0.85)
    bed = 0.32 * h
    load = h if rng.random() < 0.75 else 0.62 * h  # closed or open
    return [
        box((back, le / 2), 0.46 * w, (0.2 * h, 0.55 * high), M.PAINT),
        box((back, le / 2 - 0.12 * cab), 0.46 * w, (0.55 * high, high),
            M.GLASS),
        box((-le / 2, back), 0.2 * w, (0.22 * h, bed), M.METAL),
        box((-le / 2, back - 0.25), w / 2, (bed, load), M.METAL),
        box((-le / 2, -le / 2 + 0.3), w / 2, (load - 0.15, h), M.METAL),
        *_axles(0.94 * w, 0.48, -0.3 * le, 0.34 * le)
    ]


def _bus(w: float, le: float, h: float, rng: np.random.Generator) -> Solids:
    cooler = rng.uniform(-0.3, 0.2) * le
    return [
        box(le / 2, w / 2, (0.1 * h, 0.42 * h), M.PAINT),
        box(le / 2, w / 2, (0.42 * h, 0.78 * h), M.GLASS),
        box(le / 2, w / 2, (0.78 * h, 0.94 * h), M.PAINT),
        box((cooler, cooler + 0.25 * le), 0.35 * w, (0.94 * h, h), M.METAL),
        *_axles(w, 0.45, -0.28 * le, 0.3 * le)
    ]


def _trailer(w: float, le: float, h: float,
             rng: np.random.Generator) -> Solids:
    bed = 0.33 * h
    rear = -le * rng.uniform(0.36, 0.4)
    return [
        box(le / 2, w / 2, (bed, h), M.METAL),
        box((0.24 * le, 0.26 * le), 0.35 * w, (0, bed), M.METAL),
        *_axles(0.94 * w, 0.5, rear, rear + 1.25)
    ]


def _construction(w: float, le: float, h: float,
                  rng: np.random.Generator) -> Solids:
    tail, front = -le / 2, -0.02 * le
    # Boom: from the house's foot up to the knee; then the stick, down.
    knee = (le * rng.uniform(0.2, 0.3), 0.94 * h)
    foot, tip = (front - 0.1 * le, 0.45 * h), (0.44 * le, 0.22 * h)
    return [
        *(box((tail + 0.04 * le, front + 0.08 * le),
              (side - 0.13 * w, side + 0.13 * w), (0, 0.27 * h), M.METAL)
          for side in (-0.37 * w, 0.37 * w)),  # crawlers
        box((tail, front - 0.12 * le), 0.46 * w, (0.3 * h, 0.66 * h), M.PAINT),
        box((front - 0.22 * le, front), (0.05 * w, 0.46 * w),
            (0.3 * h, 0.92 * h), M.PAINT, taper=0.9),
        _beam(foot, knee, -0.2 * w, 0.06 * h),
        _beam(knee, tip, -0.2 * w, 0.045 * h),
        box((0.36 * le, le / 2), 0.25 * w, (0.03 * h, 0.25 * h), M.METAL)
    ]


def _beam(start: tuple[float, float], end: tuple[float, float], y: float,
          r: float) -> Solid:
    """Make a bar of half width ``r`` between two points (x, z)."""
    (x, z), (dx, dz) = np.add(start, end) / 2, np.subtract(end, start)
    half = np.hypot(dx, dz) / 2
    return box((x - half, x + half), (y - r, y + r), (z - r, z + r), M.PAINT,
               pitch=-np.arctan2(dz, dx))


def _person(w: float, le: float, h: float, rng: np.random.Generator,
            cloth: M = M.CLOTH) -> Solids:
    """Make a person in mid-stride, with shoulders as wide as the box."""
    return [
        frustum((-le / 2, -0.04 * le), (-0.4 * w, 0), (0, 0.5 * h), M.CLOTH),
        frustum((0.04 * le, le / 2), (0, 0.4 * w), (0, 0.5 * h), M.CLOTH),
        frustum(0.36 * le, w / 2, (0.45 * h, 0.84 * h), cloth, taper=0.85),
        ellipsoid(0.12, 0.1, (0.84 * h, h), M.CLOTH)
    ]


def _wheel(x: float, radius: float, width: float) -> Solid:
    return box((x - 0.8 * radius, x + 0.8 * radius), width / 2,
               (0, 1.9 * radius), M.RUBBER)


def _rider(w: float, h: float) -> Solids:
    seat = 0.85
    return [
        frustum((-0.32, 0.12), 0.38 * w, (seat, h - 0.24), M.CLOTH, taper=0.8),
        ellipsoid((-0.12, 0.14), 0.12, (h - 0.26, h), M.PAINT),
        box((-0.15, 0.22), 0.3 * w, (0.3 * seat, seat), M.CLOTH)
    ]


def _motorcycle(w: float, le: float, h: float, rng: np.random.Generator,
                ridden: bool) -> Solids:
    frame = 0.85 if ridden else 0.8 * h
    return [
        _wheel(-le / 2 + 0.26, 0.32, 0.16),
        _wheel(le / 2 - 0.26, 0.32, 0.16),
        box((-0.38 * le, 0.26 * le), 0.24 * w, (0.28, frame), M.PAINT),
        box((0.22 * le, 0.27 * le), w / 2, (frame - 0.05, frame + 0.12),
            M.METAL),
        box((0.24 * le, 0.34 * le), 0.15 * w,
            (frame - 0.1, min(h, frame + 0.3)), M.GLASS),
        *(_rider(w, h) if ridden else ())
    ]


def _bicycle(w: float, le: float, h: float, rng: np.random.Generator,
             ridden: bool) -> Solids:
    bar = 0.95 if ridden else h
    return [
        _wheel(-le / 2 + 0.3, 0.33, 0.06),
        _wheel(le / 2 - 0.3, 0.33, 0.06),
        box((-0.25 * le, 0.28 * le), 0.04, (0.45, 0.62), M.METAL),
        box((-0.2 * le, -0.06 * le), 0.08, (0.62, bar - 0.08), M.METAL),
        box((0.26 * le, 0.32 * le), w / 2, (bar - 0.1, bar), M.METAL),
        *(_rider(w, h) if ridden else ())
    ]


def _cone(w: float, le: float, h: float, rng: np.random.Generator) -> Solids:
    return [
        box(le / 2, w / 2, (0, 0.06), M.RUBBER),
        frustum(0.42 * le, 0.42 * w, (0.06, h), M.REFLECTIVE, taper=0.25)
    ]


def _barrier(w: float, le: float, h: float,
             rng: np.random.Generator) -> Solids:
    wall = M.REFLECTIVE if rng.random() < 0.5 else M.CONCRETE
    return [  # the long side is the width
        box(le / 2, w / 2, (0, 0.3 * h), M.CONCRETE),
        box(0.27 * le, w / 2, (0.3 * h, h), wall)
    ]


OBJECT_CLASSES: dict[str, ObjectClass] = dict(
    car=ObjectClass(
        'car', 'vehicle.car',
        (1.93, 4.55, 1.68), (0.07, 0.25, 0.12), _car),
    truck=ObjectClass(
        'truck', 'vehicle.truck',
        (2.5, 7.0, 2.9), (0.12, 0.7, 0.25), _truck),
    bus=ObjectClass(
        'bus', 'vehicle.bus.rigid',
        (2.85, 11.2, 3.4), (0.08, 0.6, 0.15), _bus),
    trailer=ObjectClass(
        'trailer', 'vehicle.trailer',
        (2.75, 11.6, 3.8), (0.1, 0.8, 0.15), _trailer),
    construction_vehicle=ObjectClass(
        'construction_vehicle', 'vehicle.construction',
        (2.6, 6.4, 3.15), (0.12, 0.4, 0.2), _construction),
    adult=ObjectClass(
        'pedestrian', 'human.pedestrian.adult',
        (0.66, 0.7, 1.76), (0.05, 0.07, 0.09), _person),
    child=ObjectClass(
        'pedestrian', 'human.pedestrian.child',
        (0.52, 0.54, 1.36), (0.04, 0.05, 0.1), _person),
    worker=ObjectClass(
        'pedestrian', 'human.pedestrian.construction_worker',
        (0.7, 0.74, 1.78), (0.05, 0.06, 0.07),
        partial(_person, cloth=M.REFLECTIVE)),
    motorcycle_rider=ObjectClass(
        'motorcycle', 'vehicle.motorcycle',
        (0.8, 2.1, 1.6), (0.06, 0.1, 0.08), partial(_motorcycle, ridden=True)),
    motorcycle_parked=ObjectClass(
        'motorcycle', 'vehicle.motorcycle',
        (0.78, 2.05, 1.22), (0.06, 0.1, 0.06),
        partial(_motorcycle, ridden=False)),
    bicycle_rider=ObjectClass(
        'bicycle', 'vehicle.bicycle',
        (0.58, 1.74, 1.68), (0.04, 0.06, 0.06),
        partial(_bicycle, ridden=True)),
    bicycle_parked=ObjectClass(
        'bicycle', 'vehicle.bicycle',
        (0.58, 1.72, 1.08), (0.04, 0.06, 0.04),
        partial(_bicycle, ridden=False)),
    traffic_cone=ObjectClass(
        'traffic_cone', 'movable_object.trafficcone',
        (0.44, 0.44, 0.98), (0.03, 0.03, 0.09), _cone),
    barrier=ObjectClass(
        'barrier', 'movable_object.barrier',
        (2.35, 0.55, 1.0), (0.12, 0.03, 0.05), _barrier))
