"""Where the rays of a regular azimuth-elevation grid meet convex solids.

All solids are treated at once: each one's bounding angles select the candidate
rays, and the (ray, solid) pairs are intersected in the solid's unit frame,
where the distance along the ray stays what it was.
"""
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .primitives import BOX, ELLIPSOID, FRUSTUM, rotate

_TINY = 1e-12


@dataclass(frozen=True)
class RayGrid:
    """Rays from the origin; ray ``column * len(elevations) + row``.

    Args:
        columns (int): Equal azimuth steps of a full turn.
        elevations (np.ndarray): Equally spaced angles in radians, ascending.
        phase (float): Azimuth of column 0, in radians.
    """

    columns: int
    elevations: np.ndarray
    phase: float = 0.0

    @property
    def directions(self) -> np.ndarray:
        """Unit vectors, shape (columns * rows, 3)."""
        azimuth = self.phase + np.arange(self.columns) * self.azimuth_step
        flat = np.cos(self.elevations)
        out = np.empty((self.columns, len(self.elevations), 3))
        out[..., 0] = np.cos(azimuth)[:, None] * flat
        out[..., 1] = np.sin(azimuth)[:, None] * flat
        out[..., 2] = np.sin(self.elevations)
        return out.reshape(-1, 3)

    @property
    def azimuth_step(self) -> float:
        """Angle between neighbouring columns, in radians."""
        return 2 * np.pi / self.columns


class Hits(NamedTuple):
    """Every meeting of a ray with a solid, hidden ones included.

    Attributes:
        ray (np.ndarray): Ray index, shape (N, ), int64.
        solid (np.ndarray): Index of the solid, shape (N, ), int64.
        distance (np.ndarray): Metres along the ray, shape (N, ).
    """
    ray: np.ndarray
    solid: np.ndarray
    distance: np.ndarray


def cast(grid: RayGrid, solids: np.ndarray, max_range: float) -> Hits:
    """Intersect the rays of a grid with solids around its origin.

    A solid that contains the origin is not seen.

    Args:
        grid (RayGrid): The rays.
        solids (np.ndarray): Shape (M, ), dtype ``PRIMITIVE``, in the frame of
            the grid.
        max_range (float): Farthest distance in metres.

    Returns:
        Hits: One entry per pair that meets, in no particular order.
    """
    ray, solid = _candidates(grid, solids, max_range)
    to_unit = _to_unit_frame(solids)
    origin = -np.einsum('mij,mj->mi', to_unit, solids['center'])
    direction = np.einsum('nij,nj->ni', to_unit[solid],
                          grid.directions[ray])
    distance = np.full(len(ray), np.inf)
    for kind, intersect in ((BOX, _tapered_box), (FRUSTUM, _frustum),
                            (ELLIPSOID, _unit_sphere)):
        mine = np.flatnonzero(solids['kind'][solid] == kind)
        distance[mine] = intersect(origin[solid[mine]], direction[mine],
                                   solids['taper'][solid[mine]])
    met = distance <= max_range
    return Hits(ray[met], solid[met], distance[met])


def nearest(hits: Hits) -> Hits:
    """Keep the first solid that each ray meets (the lower index on a tie)."""
    order = np.lexsort((hits.solid, hits.distance, hits.ray))
    first = np.ones(len(order), dtype=bool)
    first[1:] = np.diff(hits.ray[order]) > 0
    return Hits(*(values[order[first]] for values in hits))


def _candidates(grid: RayGrid, solids: np.ndarray,
                max_range: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a ray and a solid whose bounding angles contain it."""
    column, n_columns, near, far = _azimuth_span(grid, solids)
    cos, sin = np.abs(np.cos(solids['pitch'])), np.abs(np.sin(solids['pitch']))
    half_height = cos * solids['half'][:, 2] + sin * solids['half'][:, 0]
    low = solids['center'][:, 2] - half_height
    high = solids['center'][:, 2] + half_height
    # A point above the sensor is steepest when near, one below when far.
    lowest = np.arctan2(low, np.where(low > 0, far, near))
    highest = np.arctan2(high, np.where(high > 0, near, far))
    row = np.searchsorted(grid.elevations, lowest - 1e-9)
    end = np.searchsorted(grid.elevations, highest + 1e-9)
    n_rows = np.where(near < max_range, end - row, 0)

    count = n_columns * n_rows
    solid = np.repeat(np.arange(len(solids)), count)
    index = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    step, rest = np.divmod(index, n_rows[solid])
    columns = (column[solid] + step) % grid.columns
    return columns * len(grid.elevations) + row[solid] + rest, solid


def _azimuth_span(
    grid: RayGrid, solids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """First column, number of columns, nearest and farthest distance."""
    cos, sin = np.abs(np.cos(solids['pitch'])), np.abs(np.sin(solids['pitch']))
    half = np.stack([
        cos * solids['half'][:, 0] + sin * solids['half'][:, 2],
        solids['half'][:, 1]
    ], 1)
    center = solids['center'][:, :2]
    # Nearest point of the footprint, found in its own axes.
    local = rotate(center, -solids['yaw'])
    near = np.linalg.norm(np.maximum(np.abs(local) - half, 0), axis=1)

    signs = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)])
    corners = center[:, None] + rotate(half[:, None] * signs,
                                       solids['yaw'][:, None])
    far = np.linalg.norm(corners, axis=2).max(1)
    middle = np.arctan2(center[:, 1], center[:, 0])
    turn = rotate(corners, -middle[:, None])
    offset = np.arctan2(turn[..., 1], turn[..., 0])
    first = np.ceil((middle + offset.min(1) - grid.phase) / grid.azimuth_step -
                    1e-9).astype(int)
    last = np.floor((middle + offset.max(1) - grid.phase) / grid.azimuth_step +
                    1e-9).astype(int)
    around = near == 0  # the origin is inside the footprint
    count = np.where(around, grid.columns, np.maximum(last - first + 1, 0))
    return first % grid.columns, count, near, far


def _to_unit_frame(solids: np.ndarray) -> np.ndarray:
    """Matrices that take offsets from the centre to [-1, 1]^3, (M, 3, 3)."""
    cy, sy = np.cos(solids['yaw']), np.sin(solids['yaw'])
    cp, sp = np.cos(solids['pitch']), np.sin(solids['pitch'])
    zero = np.zeros_like(cy)
    # Rows: the solid's own axes in the outer frame (R_z(yaw) R_y(pitch))^T.
    axes = np.stack([
        np.stack([cy * cp, sy * cp, -sp], -1),
        np.stack([-sy, cy, zero], -1),
        np.stack([cy * sp, sy * sp, cp], -1)
    ], 1)
    return axes / solids['half'][:, :, None]


def _enter(t_in: np.ndarray, t_out: np.ndarray) -> np.ndarray:
    """Distance at which an interval starts; inf if empty or behind."""
    return np.where((t_in <= t_out) & (t_in > 0), t_in, np.inf)


def _half_spaces(distance: np.ndarray,
                 slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ray parameters inside all of ``slope * t <= distance``, (N, K) each."""
    parallel = np.abs(slope) < _TINY
    t = distance / np.where(parallel, 1.0, slope)
    t_in = np.where(slope < 0, t, -np.inf)
    t_out = np.where(slope > 0, t, np.inf)
    t_in[parallel] = np.where(distance[parallel] < 0, np.inf, -np.inf)
    t_out[parallel] = np.inf
    return t_in.max(1), t_out.min(1)


def _tapered_box(origin: np.ndarray, direction: np.ndarray,
                 taper: np.ndarray) -> np.ndarray:
    """|x|, |y| <= r(z) = (1 + taper) / 2 + z (taper - 1) / 2 and |z| <= 1."""
    mean, rate = (1 + taper[:, None]) / 2, (taper[:, None] - 1) / 2
    o, d, oz, dz = origin[:, :2], direction[:, :2], origin[:, 2:], \
        direction[:, 2:]
    distance = [mean + rate * oz - o, mean + rate * oz + o, 1 - oz, 1 + oz]
    slope = [d - rate * dz, -d - rate * dz, dz, -dz]
    return _enter(*_half_spaces(np.hstack(distance), np.hstack(slope)))


def _frustum(origin: np.ndarray, direction: np.ndarray,
             taper: np.ndarray) -> np.ndarray:
    """x^2 + y^2 <= r(z)^2 and |z| <= 1 for rays less steep than the mantle."""
    mean, rate = (1 + taper) / 2, (taper - 1) / 2
    radius, growth = mean + rate * origin[:, 2], rate * direction[:, 2]
    a = (direction[:, :2]**2).sum(1) - growth**2
    b = (origin[:, :2] * direction[:, :2]).sum(1) - radius * growth
    c = (origin[:, :2]**2).sum(1) - radius**2
    m_in, m_out = _quadratic(a, b, c)
    z_in, z_out = _half_spaces(
        np.stack([1 - origin[:, 2], 1 + origin[:, 2]], 1),
        np.stack([direction[:, 2], -direction[:, 2]], 1))
    return _enter(np.maximum(m_in, z_in), np.minimum(m_out, z_out))


def _unit_sphere(origin: np.ndarray, direction: np.ndarray,
                 taper: np.ndarray) -> np.ndarray:
    return _enter(*_quadratic((direction**2).sum(1), (origin * direction).sum(
        1), (origin**2).sum(1) - 1))


def _quadratic(a: np.ndarray, b: np.ndarray,
               c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a t^2 + 2 b t + c <= 0 with a > 0; an empty interval if not."""
    root = b * b - a * c
    some = (root >= 0) & (a > _TINY)
    root, a = np.sqrt(np.where(some, root, 0)), np.where(some, a, 1.0)
    return (np.where(some, (-b - root) / a, np.inf),
            np.where(some, (-b + root) / a, -np.inf))
