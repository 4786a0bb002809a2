"""Rays of a spinning LiDAR, cast at meshes by Embree."""
from collections.abc import Iterator, Sequence

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from .solids import Mesh


class Body:
    """A mesh that rays can be cast at, in its own frame."""

    def __init__(self, mesh: Mesh) -> None:
        self.material = mesh.material
        low, high = mesh.vertices.min(0), mesh.vertices.max(0)
        self.center = (low + high) / 2
        # The radius of the upright cylinder around it.
        self.radius = np.hypot(*(mesh.vertices - self.center)[:, :2].T).max()
        self.height = high[2] - low[2]
        self.scene = EmbreeScene()
        TriangleMesh(self.scene, mesh.vertices.astype(np.float32),
                     mesh.faces.astype(np.int32))


class RayGrid:
    """Rays from the origin; ray ``column * len(elevations) + row``.

    A full turn has ``columns`` equal steps, the first at the azimuth
    ``phase``; ``elevations`` ascend; all in radians. ``directions`` are unit
    vectors, shape (columns * rows, 3).
    """

    def __init__(self, columns: int, elevations: np.ndarray,
                 phase: float) -> None:
        self.columns, self.elevations = columns, elevations
        self.phase, self.step = phase, 2 * np.pi / columns
        azimuth = phase + np.arange(columns) * self.step
        out = np.empty((columns, len(elevations), 3))
        out[..., 0] = np.cos(azimuth)[:, None] * np.cos(elevations)
        out[..., 1] = np.sin(azimuth)[:, None] * np.cos(elevations)
        out[..., 2] = np.sin(elevations)
        self.directions = out.reshape(-1, 3)

    def towards(self, centers: np.ndarray, radii: np.ndarray,
                heights: np.ndarray, max_range: float
                ) -> Iterator[np.ndarray]:
        """Yield the rays that may meet each of M upright cylinders.

        Of these ``centers`` has the shape (M, 3), the others (M, ); metres.
        """
        x, y, z = centers.T
        distance = np.hypot(x, y)
        near, far = np.maximum(distance - radii, 0), distance + radii
        bottom, top = z - heights / 2, z + heights / 2
        # Above the sensor the near side is steepest, below it the far.
        low = np.searchsorted(self.elevations, np.arctan2(
            bottom, np.where(bottom > 0, far, near)))
        high = np.searchsorted(self.elevations, np.arctan2(
            top, np.where(top > 0, near, far)))
        high[near > max_range] = 0
        half = np.where(near > 0, np.arcsin(radii / (near + radii)), np.pi)
        start = np.arctan2(y, x) - half - self.phase
        first = np.ceil(start / self.step).astype(int)
        count = np.ceil(2 * half / self.step).astype(int)
        for i in range(len(centers)):
            columns = np.arange(first[i], first[i] + count[i]) % self.columns
            rows = np.arange(low[i], high[i])
            yield (columns[:, None] * len(self.elevations) + rows).ravel()


def cast(grid: RayGrid, bodies: Sequence[Body], poses: np.ndarray,
         max_range: float) -> Iterator[tuple[np.ndarray, ...]]:
    """Cast all rays at each of M bodies as if it were alone.

    ``poses`` are x, y, z, yaw in the frame of the grid, shape (M, 4).

    Yields:
        tuple: Of each body in turn the rays that meet it, and at what distance
        in metres and on what material they do so first, shape (N, ) each.
    """
    yaw = poses[:, 3]
    to_grid = np.zeros((len(bodies), 3, 3))  # v @ to_grid.T
    to_grid[:, 0, 0] = to_grid[:, 1, 1] = np.cos(yaw)
    to_grid[:, 1, 0], to_grid[:, 0, 1] = np.sin(yaw), -np.sin(yaw)
    to_grid[:, 2, 2] = 1
    centers = np.reshape([body.center for body in bodies], (-1, 3))
    centers = poses[:, :3] + np.einsum('mij,mj->mi', to_grid, centers)
    origins = -np.einsum('mji,mj->mi', to_grid, poses[:, :3])
    candidates = grid.towards(
        centers, np.array([body.radius for body in bodies]),
        np.array([body.height for body in bodies]), max_range)
    directions = grid.directions.astype(np.float32)
    turns, origins = to_grid.astype(np.float32), origins.astype(np.float32)
    for body, turn, origin, rays in zip(bodies, turns, origins, candidates):
        local = directions[rays] @ turn
        found = body.scene.run(np.full_like(local, origin), local,
                               max_range, output=True)
        met = found['primID'] >= 0
        yield (rays[met], found['tfar'][met],
               body.material[found['primID'][met]])
