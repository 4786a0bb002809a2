"""Convex solids, the building blocks of everything the LiDAR can see."""
from collections.abc import Sequence

import numpy as np

from .materials import Material

# The unit solids fill [-1, 1]^3. BOX and FRUSTUM (square and round cross-
# section) narrow linearly to `taper` times their width at z = 1.
BOX, FRUSTUM, ELLIPSOID = range(3)

PRIMITIVE = np.dtype([
    ('kind', np.int8),
    ('material', np.int8),
    ('center', np.float64, 3),
    ('half', np.float64, 3),  # half extents before the rotation
    ('yaw', np.float64),
    ('pitch', np.float64),  # about the solid's y axis, nose down positive
    ('taper', np.float64),
])


def solid(kind: int,
          low: Sequence[float],
          high: Sequence[float],
          material: Material,
          taper: float = 1.0,
          pitch: float = 0.0,
          yaw: float = 0.0) -> np.ndarray:
    """Make one primitive from its two opposite corners.

    Returns:
        np.ndarray: Shape (1, ), dtype ``PRIMITIVE``.
    """
    start, end = np.asarray(low, float), np.asarray(high, float)
    out = np.zeros(1, PRIMITIVE)
    out['kind'], out['material'] = kind, material
    out['center'], out['half'] = (start + end) / 2, (end - start) / 2
    out['yaw'], out['pitch'], out['taper'] = yaw, pitch, taper
    return out


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate primitives; no parts give an empty array."""
    return np.concatenate([np.zeros(0, PRIMITIVE), *parts])


def rotate(xy: np.ndarray, yaw: float | np.ndarray) -> np.ndarray:
    """Turn points of shape (..., 2) about the origin by ``yaw`` radians."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    x, y = xy[..., 0], xy[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def moved(primitives: np.ndarray, position: np.ndarray,
          yaw: float | np.ndarray) -> np.ndarray:
    """Rotate primitives about the z axis, then shift them.

    Args:
        primitives (np.ndarray): Shape (N, ), dtype ``PRIMITIVE``.
        position (np.ndarray): Shift in metres, shape (3, ) or (N, 3).
        yaw (float | np.ndarray): Angle in radians, one or shape (N, ).

    Returns:
        np.ndarray: Shape (N, ), a moved copy.
    """
    out = primitives.copy()
    out['center'][:, :2] = rotate(primitives['center'][:, :2], yaw)
    out['center'] += position
    out['yaw'] += yaw
    return out
