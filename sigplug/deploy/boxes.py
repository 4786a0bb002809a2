"""From the maps of a CenterHead to boxes."""
from collections.abc import Mapping
from typing import Any

import numpy as np


def decode(maps: Mapping[str, np.ndarray], coder: Mapping[str, Any],
           heatmap: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the boxes at the best cells of one task, the best first.

    ``maps`` are ``heatmap`` ``(classes, H, W)``, logits or probabilities as
    ``heatmap`` says, ``reg``, ``height``, ``dim``, ``rot`` and, if any,
    ``vel``; ``coder`` has the arguments of mmdet3d's ``CenterPointBBoxCoder``
    and ``norm_bbox``: whether ``dim`` is the logarithm of the sizes. The boxes
    are ``(x, y, z, dx, dy, dz, yaw[, vx, vy])``, z that of the centre; scores
    and labels within the task follow, ``(N, )``.
    """
    heat = maps['heatmap']
    with np.errstate(over='ignore'):
        scores = 1 / (1 + np.exp(-heat)) if heatmap == 'logits' else heat
    scores = scores.ravel()
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

    ``boxes`` and ``scores`` are those of :func:`decode`, ``nms`` is the
    ``test_cfg`` of the head; the indices come best first.
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
    inside = (boxes[:, :3] >= low) & (boxes[:, :3] <= high)
    return np.asarray(inside.all(axis=1))


def greedy(conflict: np.ndarray) -> np.ndarray:
    """Return the indices of the boxes that no better one suppresses.

    ``conflict`` ``(N, N)`` says which exclude each other, the best first.
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
    """Return the IoU of each box ``(x, y, dx, dy, yaw)`` with all after it.

    The result is ``(N, N)``, 0 below the diagonal and on it.
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

    By Green's theorem an area follows from its outline, and that of an
    intersection is what of either outline lies in the other box. Boxes are
    ``(x, y, dx, dy, yaw)``, shape ``(N, 5)``, float64; without an area they
    give 0.
    """
    # Relative to a, so that no digits are lost to its place; and b a little
    # larger, so that no two edges coincide, which would count twice.
    b = np.concatenate([
        b[:, :2] - a[:, :2], b[:, 2:4] * (1 + 1e-10), b[:, 4:]], axis=1)
    a = np.concatenate([0 * a[:, :2], a[:, 2:]], axis=1)
    area = _outline(a, b) + _outline(b, a)
    union = a[:, 2] * a[:, 3] + b[:, 2] * b[:, 3] - area
    return np.divide(area, union, out=np.zeros_like(area), where=union > 0)


def _outline(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return half the integral of ``x dy - y dx`` over the edges of a in b."""
    corners = _turn(a[:, None, 2:4] / 2 * [[1, 1], [-1, 1], [-1, -1], [1, -1]],
                    a[:, 4:]) + a[:, None, :2]
    edges = np.roll(corners, -1, axis=1) - corners
    start = _turn(corners - b[:, None, :2], -b[:, 4:])
    half = b[:, None, 2:4] / 2
    # Where each edge, from 0 to 1, enters and leaves b along x and y.
    with np.errstate(divide='ignore', invalid='ignore'):
        t = np.stack([-half - start, half - start]) / _turn(edges, -b[:, 4:])
    length = (t.max(axis=0).min(axis=2).clip(0, 1)
              - t.min(axis=0).max(axis=2).clip(0, 1))
    length = np.where(length > 0, length, 0)
    cross = corners[..., 0] * edges[..., 1] - corners[..., 1] * edges[..., 0]
    return (length * cross).sum(axis=1) / 2


def _turn(vectors: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Turn the vectors ``(N, 4, 2)`` by the angles ``(N, 1)``."""
    x, y = np.moveaxis(vectors, 2, 0)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([x * cos - y * sin, x * sin + y * cos], axis=2)
