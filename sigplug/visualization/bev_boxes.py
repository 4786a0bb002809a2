"""Boxes seen from above."""
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .figure import check_scores


class BEVBoxes(NamedTuple):
    """The boxes of the ground truth, or of the predictions."""
    bboxes: np.ndarray
    labels: np.ndarray
    num_points: np.ndarray | None = None
    scores: np.ndarray | None = None

    def inside(self, bev_range: Sequence[float]) -> 'BEVBoxes':
        """Keep the boxes that reach into a range."""
        corners = bev_corners(self.bboxes)
        low, high = np.array(bev_range[:2]), np.array(bev_range[2:])
        kept = ((corners.max(1) >= low) & (corners.min(1) <= high)).all(1)
        return BEVBoxes._make(
            None if value is None else value[kept] for value in self)


def bev_corners(bboxes: np.ndarray) -> np.ndarray:
    """Compute the corners of boxes seen from above.

    Args:
        bboxes (np.ndarray): Boxes of shape ``(M, >=7)`` as in mmdet3d's
            ``LiDARInstance3DBoxes``: ``(x, y, z, dx, dy, dz, yaw, ...)`` in
            metres, with ``yaw`` in radians, counter-clockwise from +x to the
            heading, along which ``dx`` lies.

    Returns:
        np.ndarray: Shape ``(M, 4, 2)``: front left, front right, rear right,
        rear left.
    """
    signs = np.array([[0.5, 0.5], [0.5, -0.5], [-0.5, -0.5], [-0.5, 0.5]])
    local = signs * bboxes[:, None, 3:5]
    cos, sin = np.cos(bboxes[:, 6:7]), np.sin(bboxes[:, 6:7])
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y], axis=-1) + bboxes[:, None, :2]


def gather_boxes(bboxes: Any, labels: Any, num_points: Any = None,
                 scores: Any = None) -> BEVBoxes:
    """Return arguments of ``draw_bev`` as arrays, empty without boxes."""
    if bboxes is None:
        bboxes, labels = np.empty((0, 7)), []
    return BEVBoxes(
        np.asarray(bboxes, dtype=np.float64),
        np.asarray(labels, dtype=np.int64),
        None if num_points is None else np.asarray(num_points),
        None if scores is None else check_scores('pred_scores', scores))
