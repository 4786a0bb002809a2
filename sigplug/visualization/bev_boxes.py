"""Boxes seen from above, and the checks of what is to be drawn."""
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class BEVBoxes(NamedTuple):
    """The checked boxes of the ground truth, or of the predictions."""
    bboxes: np.ndarray
    labels: np.ndarray
    num_points: np.ndarray | None = None
    scores: np.ndarray | None = None

    def inside(self, bev_range: Sequence[float]) -> 'BEVBoxes':
        """The boxes that reach into a range."""
        corners = bev_corners(self.bboxes)
        low, high = np.array(bev_range[:2]), np.array(bev_range[2:])
        kept = ((corners.max(1) >= low) & (corners.min(1) <= high)).all(1)
        return BEVBoxes._make(
            None if value is None else value[kept] for value in self)


def bev_corners(bboxes: np.ndarray) -> np.ndarray:
    """Corners of boxes seen from above.

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
    bboxes = np.asarray(bboxes)
    if bboxes.ndim != 2 or bboxes.shape[1] < 7 or (
            bboxes.dtype.kind not in 'fiu'):
        raise ValueError('bboxes must be numbers of the shape (M, >=7), but '
                         f'have the shape {bboxes.shape} and the dtype '
                         f'{bboxes.dtype}')
    bboxes = bboxes.astype(np.float64)
    signs = np.array([[0.5, 0.5], [0.5, -0.5], [-0.5, -0.5], [-0.5, 0.5]])
    local = signs * bboxes[:, None, 3:5]
    cos, sin = np.cos(bboxes[:, 6:7]), np.sin(bboxes[:, 6:7])
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y], axis=-1) + bboxes[:, None, :2]


def check_array(name: str, value: Any, ndim: int,
                 min_columns: int = 0) -> np.ndarray:
    """An array of finite numbers as float64."""
    array = np.asarray(value)
    if array.ndim != ndim or (min_columns and array.shape[-1] < min_columns):
        wanted = f'{ndim} dimension{"s" * (ndim > 1)}'
        if min_columns:
            wanted += f' and at least {min_columns} columns'
        raise ValueError(f'{name} must have {wanted}, but has the shape '
                         f'{array.shape}')
    if array.dtype.kind not in 'fiu':
        raise ValueError(f'{name} must hold numbers, but has the dtype '
                         f'{array.dtype}')
    if not np.isfinite(array).all():
        raise ValueError(f'{name} must be finite, but holds NaN or infinity')
    return array.astype(np.float64)


def check_boxes(name: str,
                bboxes: Any,
                labels: Any,
                class_names: Sequence[str],
                num_points: Any = None,
                scores: Any = None) -> BEVBoxes | None:
    """Ground truth ("gt") or predictions ("pred"), None without boxes."""
    if not isinstance(class_names, (tuple, list)) or not all(
            isinstance(class_name, str) for class_name in class_names):
        raise ValueError('class_names must be a tuple or list of names, but '
                         f'is {class_names!r}')
    columns = dict(labels=labels, num_points=num_points, scores=scores)
    if bboxes is None:
        for key, value in columns.items():
            if value is not None:
                raise ValueError(f'{name}_{key} need {name}_bboxes')
        return None
    bboxes = np.asarray(bboxes)
    if bboxes.ndim != 2 or bboxes.shape[1] not in (7, 9):
        raise ValueError(f'{name}_bboxes must have the shape (M, 7) or (M, 9),'
                         f' but has {bboxes.shape}')
    # The velocity alone may be NaN: unknown.
    check_array(f'{name}_bboxes[:, :7]', bboxes[:, :7], ndim=2)
    if (bboxes[:, 3:6] < 0).any():
        raise ValueError(f'{name}_bboxes must have sizes >= 0, but the least '
                         f'is {bboxes[:, 3:6].min()}')
    if labels is None:
        raise ValueError(f'{name}_bboxes need {name}_labels')
    for key, value in columns.items():
        if value is None:
            continue
        columns[key] = value = check_array(f'{name}_{key}', value, ndim=1)
        if len(value) != len(bboxes):
            raise ValueError(f'{name}_{key} must have one value for each of '
                             f'the {len(bboxes)} boxes, but has {len(value)}')
    labels = columns['labels']
    if not np.isin(labels, np.arange(len(class_names))).all():
        raise ValueError(
            f'{name}_labels must be indices of the {len(class_names)} '
            f'class_names, but are {np.unique(labels).tolist()}')
    columns['labels'] = labels.astype(np.int64)
    return BEVBoxes(bboxes.astype(np.float64), **columns)


def check_scores(name: str, value: np.ndarray) -> None:
    """Refuse what is not a probability."""
    if value.size and not 0 <= value.min() <= value.max() <= 1:
        raise ValueError(f'{name} must lie in [0, 1], but reaches from '
                         f'{value.min():.4g} to {value.max():.4g}: apply the '
                         'sigmoid to logits')


def check_range(
        name: str,
        value: Sequence[float]) -> tuple[float, float, float, float]:
    """Outer edges ``(x_min, y_min, x_max, y_max)``."""
    array = check_array(name, value, ndim=1)
    if len(array) != 4 or (array[:2] >= array[2:]).any():
        raise ValueError(f'{name} must be (x_min, y_min, x_max, y_max) with '
                         f'min < max, but is {value}')
    return tuple(array.tolist())
