"""From the maps of a CenterHead to boxes."""
from collections.abc import Mapping
from typing import Any

import numpy as np

# Of the length of an edge: a corner this near to an edge lies on it.
ON_EDGE = 1e-9


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return ``1 / (1 + exp(-x))`` in the dtype of ``x``."""
    with np.errstate(over='ignore'):
        return 1 / (1 + np.exp(-x))


def decode(maps: Mapping[str, np.ndarray], coder: Mapping[str, Any],
           heatmap: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the boxes at the best cells of one task, the best first.

    Args:
        maps (Mapping[str, np.ndarray]): ``heatmap`` ``(classes, H, W)``,
            ``reg``, ``height``, ``dim``, ``rot`` and, if any, ``vel``.
        coder (Mapping[str, Any]): The arguments of mmdet3d's
            ``CenterPointBBoxCoder``, and ``norm_bbox``: whether ``dim`` is
            the logarithm of the sizes.
        heatmap (str): ``'logits'`` or ``'probability'``.

    Returns:
        tuple[np.ndarray, np.ndarray, np.ndarray]: The boxes ``(x, y, z, dx,
        dy, dz, yaw[, vx, vy])``, shape ``(N, 7 or 9)``, z that of the centre;
        the scores ``(N, )``; and the labels within the task ``(N, )``.
    """
    heat = maps['heatmap']
    scores = (sigmoid(heat) if heatmap == 'logits' else heat).ravel()
    width, cells = heat.shape[2], heat[0].size
    count = min(coder['max_num'], scores.size)
    found = np.sort(np.argpartition(-scores, count - 1)[:count])
    found = found[np.argsort(-scores[found], kind='stable')]
    labels, cell = np.divmod(found, cells)
    at = {name: value.reshape(len(value), cells)[:, cell]
          for name, value in maps.items() if name != 'heatmap'}
    index = np.stack([cell % width, cell // width]).astype(np.float32)
    step = np.asarray(coder['voxel_size'][:2], np.float32)[:, None]
    low = np.asarray(coder['pc_range'][:2], np.float32)[:, None]
    xy = (index + at['reg']) * coder['out_size_factor'] * step + low
    with np.errstate(over='ignore'):
        dim = np.exp(at['dim']) if coder['norm_bbox'] else at['dim']
    yaw = np.arctan2(*at['rot'])
    boxes = np.concatenate([xy, at['height'], dim, yaw[None],
                            *([at['vel']] if 'vel' in at else [])]).T
    return boxes, scores[found], labels


def select(boxes: np.ndarray, scores: np.ndarray, coder: Mapping[str, Any],
           nms: Mapping[str, Any], task: int) -> np.ndarray:
    """Return which boxes of one task stay, as mmdet3d's ``CenterHead`` does.

    Args:
        boxes (np.ndarray): From :func:`decode`.
        scores (np.ndarray): Their scores, falling, shape ``(N, )``.
        coder (Mapping[str, Any]): ``score_threshold`` and
            ``post_center_range``.
        nms (Mapping[str, Any]): The ``test_cfg`` of the head.
        task (int): The number of the task.

    Returns:
        np.ndarray: Indices, best first.
    """
    index = np.flatnonzero(
        _in_range(boxes, coder['post_center_range'])
        & (scores > (coder['score_threshold'] or -1.0)))
    kind = nms['nms_type']
    if (kind if isinstance(kind, str) else kind[task]) == 'circle':
        kept = greedy(
            distances(boxes[index, :2]) <= nms['min_radius'][task])
        return index[kept[:nms['post_max_size']]]
    index = index[scores[index] >= nms['score_threshold']]
    index = index[:nms['pre_max_size']]
    bev = boxes[index][:, [0, 1, 3, 4, 6]]
    kept = greedy(overlaps(bev) >= nms['nms_thr'])[:nms['post_max_size']]
    index = index[kept]
    return index[_in_range(boxes[index], nms['post_center_limit_range'])]


def _in_range(boxes: np.ndarray, limits: list[float]) -> np.ndarray:
    """Return which centres lie within the limits; none are no limits."""
    if not limits:
        return np.ones(len(boxes), bool)
    low, high = np.asarray(limits, np.float32).reshape(2, 3)
    return ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(axis=1)


def greedy(conflict: np.ndarray) -> np.ndarray:
    """Return the boxes that no better box suppresses.

    Args:
        conflict (np.ndarray): Which boxes exclude each other, boolean, shape
            ``(N, N)``, best first.

    Returns:
        np.ndarray: Indices of the boxes that stay.
    """
    alive = np.ones(len(conflict), bool)
    for i in range(len(conflict)):
        if alive[i]:
            alive[i + 1:] &= ~conflict[i, i + 1:]
    return np.flatnonzero(alive)


def distances(centers: np.ndarray) -> np.ndarray:
    """Return the squared distances of centres ``(N, 2)``, ``(N, N)``."""
    return np.square(centers[:, None] - centers[None]).sum(axis=2)


def overlaps(boxes: np.ndarray) -> np.ndarray:
    """Return the IoU of each box with all after it.

    Args:
        boxes (np.ndarray): ``(x, y, dx, dy, yaw)``, shape ``(N, 5)``.

    Returns:
        np.ndarray: Shape ``(N, N)``, 0 below the diagonal and on it.
    """
    boxes = boxes.astype(np.float64)
    result = np.zeros((len(boxes), len(boxes)))
    reach = np.hypot(boxes[:, 2], boxes[:, 3]) / 2
    near = distances(boxes[:, :2]) < np.square(reach[:, None] + reach)
    first, second = np.nonzero(np.triu(near, 1))
    # A network may predict sizes that are infinite.
    with np.errstate(invalid='ignore'):
        result[first, second] = rotated_iou(boxes[first], boxes[second])
    return result


def rotated_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the areas of intersections over those of unions.

    An intersection is spanned by the corners of either box that lie in the
    other and by the points where edges cross.

    Args:
        a (np.ndarray): ``(x, y, dx, dy, yaw)``, shape ``(N, 5)``, float64.
        b (np.ndarray): As ``a``.

    Returns:
        np.ndarray: Shape ``(N, )``, float64; 0 for a box without an area.
    """
    # Relative to a, so that no digits are lost to its place.
    b = np.concatenate([b[:, :2] - a[:, :2], b[:, 2:]], axis=1)
    a = np.concatenate([0 * a[:, :2], a[:, 2:]], axis=1)
    p, q = _corners(a), _corners(b)
    points = np.concatenate([p, q, _crossings(p, q)], axis=1)
    valid = np.concatenate([
        _contains(b, p), _contains(a, q), np.isfinite(points[:, 8:, 0])], 1)
    # Others move onto one that counts, where they change nothing.
    any_valid = points[np.arange(len(a)), valid.argmax(axis=1)]
    points = np.where(valid[:, :, None], points, any_valid[:, None])
    points = np.where(valid.any(axis=1)[:, None, None], points, 0)
    points = points - points.mean(axis=1, keepdims=True)
    angles = np.arctan2(points[:, :, 1], points[:, :, 0])
    x, y = np.take_along_axis(
        points, angles.argsort(axis=1)[:, :, None], axis=1).transpose(2, 0, 1)
    area = np.abs((x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1)) / 2
    union = a[:, 2] * a[:, 3] + b[:, 2] * b[:, 3] - area
    return np.divide(area, union, out=np.zeros_like(area), where=union > 0)


def _corners(boxes: np.ndarray) -> np.ndarray:
    """Return the corners in their order, shape ``(N, 4, 2)``."""
    x, y = np.moveaxis(
        boxes[:, None, 2:4] / 2 * [[1, 1], [-1, 1], [-1, -1], [1, -1]], 2, 0)
    cos, sin = np.cos(boxes[:, 4:]), np.sin(boxes[:, 4:])
    return np.stack([x * cos - y * sin, x * sin + y * cos],
                    axis=2) + boxes[:, None, :2]


def _contains(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return which of the points ``(N, K, 2)`` lie in their box."""
    x, y = np.moveaxis(points - boxes[:, None, :2], 2, 0)
    cos, sin = np.cos(boxes[:, 4:]), np.sin(boxes[:, 4:])
    half = boxes[:, 2:4] * (0.5 + ON_EDGE)
    return ((np.abs(x * cos + y * sin) <= half[:, :1])
            & (np.abs(y * cos - x * sin) <= half[:, 1:]))


def _crossings(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return where each edge of p meets each of q, ``(N, 16, 2)``, or NaN."""
    edge_p, edge_q = (np.roll(c, -1, axis=1) - c for c in (p, q))
    start, r = p[:, :, None], edge_p[:, :, None]
    between, s = q[:, None] - start, edge_q[:, None]
    with np.errstate(divide='ignore', invalid='ignore'):
        scale = _cross(r, s)
        t, u = _cross(between, s) / scale, _cross(between, r) / scale
        meets = (t >= 0) & (t <= 1) & (u >= 0) & (u <= 1) & (scale != 0)
        found = np.where(meets[..., None], start + t[..., None] * r, np.nan)
    return found.reshape(len(p), 16, 2)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
