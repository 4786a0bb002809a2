"""Moving rectangles that must not touch each other."""
from collections.abc import Sequence

import numpy as np

from .solids import rotate


def overlap(pose_a: np.ndarray, half_a: np.ndarray, pose_b: np.ndarray,
            half_b: np.ndarray) -> np.ndarray:
    """Test pairs of rectangles by the separating-axis theorem.

    Poses are x, y, yaw, shape (N, 3), halves the half length and half width,
    (N, 2). Touching counts.
    """
    offset = pose_b[:, :2] - pose_a[:, :2]
    turn = pose_b[:, 2] - pose_a[:, 2]
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    matrix = np.stack([np.stack([cos, sin], 1), np.stack([sin, cos], 1)], 1)
    along_a = np.abs(rotate(offset, -pose_a[:, 2]))
    along_b = np.abs(rotate(offset, -pose_b[:, 2]))
    reach_a = half_a + np.einsum('nij,nj->ni', matrix, half_b)
    reach_b = half_b + np.einsum('nij,nj->ni', matrix, half_a)
    return (along_a <= reach_a).all(1) & (along_b <= reach_b).all(1)


class Footprints:
    """Rectangles that move over T instants and keep a gap, in metres."""

    def __init__(self, instants: int, gap: float = 0.3) -> None:
        self.gap = gap
        self.poses = np.zeros((0, instants, 3))
        self.halves = np.zeros((0, 2))

    def try_add(self, poses: np.ndarray,
                half: Sequence[float] | np.ndarray) -> bool:
        """Add a rectangle, unless it comes too close to an earlier one.

        ``poses`` are x, y, yaw at all instants, (T, 3), ``half`` is half its
        length and width. Returns whether it was added.
        """
        wide = np.asarray(half, float) + self.gap / 2
        reach = np.linalg.norm(wide) + np.linalg.norm(self.halves, axis=1)
        offset = self.poses[..., :2] - poses[:, :2]
        near = (offset**2).sum(2) <= reach[:, None]**2
        which, when = np.nonzero(near)
        if overlap(poses[when], np.broadcast_to(wide, (len(when), 2)),
                   self.poses[which, when], self.halves[which]).any():
            return False
        self.poses = np.concatenate([self.poses, poses[None]])
        self.halves = np.concatenate([self.halves, wide[None]])
        return True
