"""From points to the input of the pillar encoder, and to its map."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def voxelize(points: np.ndarray, voxels: Mapping[str, Any]
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gather the points of each voxel, as ``sigplug.ops.hard_voxelize`` does.

    ``voxels`` has its arguments. Of a voxel the first ``max_points`` are
    kept, and of the voxels, in the order of their first points,
    ``max_voxels``. The result is the points ``(M, max_points, C)``, 0 where
    there is none, the cells ``(z, y, x)``, shape ``(M, 3)``, and the numbers
    of points ``(M, )``.
    """
    bounds = np.asarray(voxels['point_cloud_range'], np.float32)
    size = np.asarray(voxels['voxel_size'], np.float32)
    grid = np.round((bounds[3:] - bounds[:3]) / size).astype(np.int64)
    cells = np.floor((points[:, :3] - bounds[:3]) / size)
    inside = ((cells >= 0) & (cells < grid)).all(axis=1)
    points, cells = points[inside], cells[inside].astype(np.int64)
    key = (cells[:, 2] * grid[1] + cells[:, 1]) * grid[0] + cells[:, 0]
    # The points of a voxel, in their order, become neighbours.
    order = np.argsort(key, kind='stable')
    key = key[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    lengths = np.diff(starts, append=len(key))
    kept = np.argsort(order[starts])[:voxels['max_voxels']]
    counts = np.minimum(lengths[kept], voxels['max_points'])
    slot = np.arange(voxels['max_points'])
    real = slot < counts[:, None]
    filled = np.zeros((*real.shape, points.shape[1]), np.float32)
    filled[real] = points[order[(starts[kept][:, None] + slot)[real]]]
    return filled, cells[order[starts[kept]]][:, ::-1], counts


def decorate(voxels: np.ndarray, cells: np.ndarray, counts: np.ndarray,
             encoder: Mapping[str, Any]) -> np.ndarray:
    """Add the offsets of each point, as mmdet3d's ``PillarFeatureNet`` does.

    The features are ``(x, y, z, ...)``, the offset from the mean of the
    pillar's points (``with_cluster_center``), that from its centre
    (``with_voxel_center``; ``legacy`` also puts it in the place of x, y, z),
    and the length of the first three (``with_distance``).

    ``encoder`` has the options in brackets, ``voxel_size`` and ``offset``, the
    centre of the first pillar, both in metres; the rest is from
    :func:`voxelize`. The result is ``(M, max_points, C')``, 0 at padding.
    """
    features = voxels.copy()
    xyz = features[:, :, :3]
    parts = [features]
    if encoder['with_cluster_center']:
        mean = xyz.sum(axis=1) / counts[:, None].astype(np.float32)
        parts.append(xyz - mean[:, None])
    if encoder['with_voxel_center']:
        center = (cells[:, ::-1].astype(np.float32)
                  * np.asarray(encoder['voxel_size'], np.float32)
                  + np.asarray(encoder['offset'], np.float32))
        parts.append(xyz - center[:, None])
        if encoder['legacy']:
            xyz[:] = parts[-1]
    if encoder['with_distance']:
        parts.append(np.linalg.norm(xyz, axis=2, keepdims=True))
    real = np.arange(voxels.shape[1]) < counts[:, None]
    return np.concatenate(parts, axis=2) * real[:, :, None]


def count_added(encoder: Mapping[str, Any]) -> int:
    """Return the number of features that :func:`decorate` adds."""
    return (3 * encoder['with_cluster_center']
            + 3 * encoder['with_voxel_center'] + encoder['with_distance'])


def scatter(features: np.ndarray, cells: np.ndarray,
            map_size: Sequence[int]) -> np.ndarray:
    """Put the features ``(M, C)`` of the pillars in their cells of a map.

    ``map_size`` is the cells along y and x, the result ``(1, C, H, W)``.
    """
    canvas = np.zeros((1, features.shape[1], *map_size), np.float32)
    canvas[0, :, cells[:, 1], cells[:, 2]] = features
    return canvas
