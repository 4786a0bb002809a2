"""Moving rectangles that must not touch each other."""
from collections.abc import Sequence

import numpy as np

from .solids import rotate


def overlap(pose_a: np.ndarray, half_a: np.ndarray, pose_b: np.ndarray,
            half_b: np.ndarray) -> np.ndarray:
    """Test pairs of rectangles by the separating-axis theorem.

    Args:
        pose_a (np.ndarray): x, y, yaw, shape (N, 3).
        half_a (np.ndarray): Half length and half width, shape (N, 2).
        pose_b (np.ndarray): The same of the other rectangles.
        half_b (np.ndarray): The same of the other rectangles.

    Returns:
        np.ndarray: Shape (N, ), bool; touching counts.
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
    """Rectangles that move over the same instants and stay clear.

    Args:
        instants (int): Number of instants, T.
        gap (float): Least distance between two rectangles, in metres.
    """

    def __init__(self, instants: int, gap: float = 0.3) -> None:
        self.gap = gap
        self.poses = np.zeros((0, instants, 3))
        self.halves = np.zeros((0, 2))

    def try_add(self, poses: np.ndarray,
                half: Sequence[float] | np.ndarray) -> bool:
        """Add a rectangle unless it comes too close to an earlier one.

        Args:
            poses (np.ndarray): x, y, yaw at all instants, shape (T, 3).
            half (Sequence[float] | np.ndarray): Half length and half width.

        Returns:
            bool: Whether it was added.
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
