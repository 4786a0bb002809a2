"""A 32-beam spinning LiDAR, mounted as LIDAR_TOP of the nuScenes cars."""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .config import DIFFICULTIES, Difficulty
from .materials import DEPTH, INTENSITY_MEAN, INTENSITY_STD, LOSS, Material
from .raycast import Body, RayGrid, cast
from .road import KERB, KERB_HEIGHT, Road
from .solids import rotate

COLUMNS = 1080
ELEVATIONS = np.deg2rad(np.linspace(-92 / 3, 32 / 3, 32))
MAX_RANGE = 100.0
RANGE_NOISE = 0.02

# Sensor frame x right, y forward, z up; ego frame x forward, y left, z up.
TRANSLATION = (0.943713, 0.0, 1.84023)
YAW = -np.pi / 2


class Scan(NamedTuple):
    """One sweep, and how many rays meet each of M bodies."""

    points: np.ndarray  # (N, 5): x, y, z, intensity, ring, float32
    alone: np.ndarray  # (M, ), if it were alone
    seen: np.ndarray  # (M, ), before they meet another one


def sensor_pose(ego: np.ndarray) -> tuple[np.ndarray, float]:
    """Return global position (3, ) and yaw of the sensor of an ego pose."""
    offset = np.append(rotate(np.array(TRANSLATION[:2]), ego[3]),
                       TRANSLATION[2])
    return ego[:3] + offset, ego[3] + YAW


def scan(road: Road, bodies: Sequence[Body], poses: np.ndarray,
         ego: np.ndarray, rng: np.random.Generator,
         difficulty: Difficulty = DIFFICULTIES['standard']) -> Scan:
    """Simulate one sweep over a road and the M bodies on it.

    Their ``poses``, shape (M, 4), and that of the ``ego`` vehicle are global:
    x, y, z, yaw.
    """
    position, yaw = sensor_pose(ego)
    elevations = ELEVATIONS[::len(ELEVATIONS) // difficulty.beams]
    grid = RayGrid(COLUMNS, elevations, rng.uniform(0, 2 * np.pi / COLUMNS))
    distance, material = _ground(road, grid.directions, position, yaw, rng)
    poses = poses - [*position, yaw]
    poses[:, :2] = rotate(poses[:, :2], -yaw)
    first = np.full(len(distance), -1)
    alone = np.zeros(len(bodies), int)
    hits = cast(grid, bodies, poses, MAX_RANGE)
    for i, (ray, at, surface) in enumerate(hits):
        alone[i] = len(ray)
        nearer = at < distance[ray]
        ray = ray[nearer]
        distance[ray], material[ray] = at[nearer], surface[nearer]
        first[ray] = i
    seen = np.bincount(first + 1, minlength=len(bodies) + 1)[1:]
    points = _returns(grid.directions, distance, material, rng, difficulty)
    return Scan(points, alone, seen)


def _ground(road: Road, directions: np.ndarray, position: np.ndarray,
            yaw: float, rng: np.random.Generator
            ) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to rough ground, else inf, and its material.

    The road and the sidewalk are two planes; a ray that passes over the edge
    of the sidewalk and under its plane meets the face of the kerb.
    """
    down = directions[:, 2] < -1e-3
    z = directions[down, 2]
    xy = rotate(directions[down, :2], yaw)
    t_road = -position[2] / z
    t_walk = (KERB_HEIGHT - position[2]) / z
    at_road = np.abs(road.lateral(*(position[:2] + t_road[:, None] * xy).T))
    at_walk = np.abs(road.lateral(*(position[:2] + t_walk[:, None] * xy).T))
    step = np.maximum(at_road - at_walk, 1e-6)
    t_face = t_walk + (KERB - at_walk) / step * (t_road - t_walk)
    on_walk = at_walk >= KERB
    t = np.where(on_walk, t_walk, np.where(at_road < KERB, t_road, t_face))
    roughness = np.where(on_walk, 0.015, 0.008)
    t += roughness * rng.standard_normal(len(t)) / z

    distance = np.full(len(directions), np.inf)
    distance[down] = np.maximum(t, 0.5)
    material = np.full(len(directions), Material.ASPHALT)
    material[down] = np.where(on_walk, Material.PAVEMENT, Material.ASPHALT)
    return distance, material


def _returns(directions: np.ndarray, distance: np.ndarray,
             material: np.ndarray, rng: np.random.Generator,
             difficulty: Difficulty) -> np.ndarray:
    """Add noise, lose some returns, and give the rest an intensity."""
    count = len(distance)
    beams, loss, fade_range, _ = difficulty
    fade = np.clip((distance - fade_range) / (MAX_RANGE - fade_range), 0, 1)
    kept = rng.random(count) >= LOSS[material] + loss + fade
    distance = distance + RANGE_NOISE * rng.standard_normal(count)
    distance += DEPTH[material] * rng.exponential(size=count)
    intensity = INTENSITY_MEAN[material] + \
        INTENSITY_STD[material] * rng.standard_normal(count)
    kept &= distance < MAX_RANGE
    ring = np.arange(count) % beams

    points = np.empty((kept.sum(), 5), np.float32)
    points[:, :3] = directions[kept] * distance[kept, None]
    points[:, 3] = np.clip(np.round(intensity[kept]), 0, 255)
    points[:, 4] = ring[kept]
    return points
