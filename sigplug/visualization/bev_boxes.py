"""Boxes seen from above."""
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .figure import check_array, check_scores


class BEVBoxes(NamedTuple):
    """The checked boxes of the ground truth, or of the predictions."""
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

    Raises:
        ValueError: ``bboxes`` is not as described.
    """
    bboxes = check_array('bboxes', bboxes, ndim=2)
    if bboxes.shape[1] < 7:
        raise ValueError(
            f'bboxes must have the shape (M, >=7), but have {bboxes.shape}')
    signs = np.array([[0.5, 0.5], [0.5, -0.5], [-0.5, -0.5], [-0.5, 0.5]])
    local = signs * bboxes[:, None, 3:5]
    cos, sin = np.cos(bboxes[:, 6:7]), np.sin(bboxes[:, 6:7])
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y], axis=-1) + bboxes[:, None, :2]


def check_boxes(name: str, bboxes: Any, labels: Any, num_classes: int,
                num_points: Any = None, scores: Any = None) -> BEVBoxes | None:
    """Check the boxes of the ground truth ("gt") or predictions ("pred").

    Return None without boxes; see ``draw_bev`` for shapes and errors.
    """
    if bboxes is None:
        return None
    bboxes = check_array(f'{name}_bboxes', bboxes, ndim=2)
    if bboxes.shape[1] not in (7, 9):
        raise ValueError(f'{name}_bboxes must have the shape (M, 7) or (M, 9),'
                         f' but have {bboxes.shape}')
    if not np.isin(labels, np.arange(num_classes)).all():
        raise ValueError(
            f'{name}_labels must be indices of the {num_classes} class_names,'
            f' but are {np.unique(labels).tolist()}')
    boxes = BEVBoxes(
        bboxes, np.asarray(labels, dtype=np.int64),
        None if num_points is None else np.asarray(num_points),
        None if scores is None else check_scores(f'{name}_scores', scores, 1))
    for key, value in boxes._asdict().items():
        if value is not None and len(value) != len(bboxes):
            raise ValueError(
                f'{name}_{key} must have one value for each of the '
                f'{len(bboxes)} boxes, but has {len(value)}')
    return boxes
