"""Predictions of CenterPoint's head, for a whole batch at once."""
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmcv.ops import box_iou_rotated
from mmdet3d.models.layers import circle_nms, nms_bev
from mmdet3d.models.task_modules import CenterPointBBoxCoder
from mmdet3d.structures import xywhr2xyxyr
from torch import Tensor

from sigplug.ops._dtypes import upcast_half
from sigplug.ops._tracing import is_compiling

from .center_checks import per_task

# Rounds of the suppression before its result is read. They are enough unless
# more boxes than that form a chain in which each would hide the next.
ROUNDS = 8


class Candidates(NamedTuple):
    """The best cells of each task, in the order of their scores.

    ``B`` samples, ``T`` tasks, ``K`` cells.
    """

    boxes: Tensor
    """``(x, y, z, dx, dy, dz, yaw[, vx, vy])`` in metres, radians and m/s,
    ``(x, y, z)`` the centre; shape ``(B, T, K, 7 or 9)``."""
    scores: Tensor
    """Shape ``(B, T, K)``, falling along ``K``."""
    labels: Tensor
    """Classes numbered through all tasks, shape ``(B, T, K)``, int32."""
    valid: Tensor
    """Whether score and place are within the limits, ``(B, T, K)``."""


def decode(preds: list[dict[str, Tensor]], coder: CenterPointBBoxCoder,
           norm_bbox: bool) -> Candidates:
    r"""Return the boxes at the cells with the highest scores.

    For the ``max_num`` best cells ``(column, row)`` of each task

    .. math::
        x = (column + reg_0) \cdot factor \cdot voxel_x + origin_x, \quad
        z = height, \quad size = \exp(dim), \quad
        yaw = \mathrm{atan2}(rot_0, rot_1)

    and y alike. The values and their order are those of mmdet3d's
    ``CenterPointBBoxCoder``, ties included; half precision is decoded in
    float32. Nothing waits for a GPU.

    Args:
        preds (list[dict[str, Tensor]]): The maps of each task, shape
            ``(B, channels, H, W)``: ``heatmap``, ``reg``, ``height``,
            ``dim``, ``rot`` and, if there is one, ``vel``.
        coder (CenterPointBBoxCoder): Grid and limits.
        norm_bbox (bool): Whether ``dim`` is the logarithm of the size.
    """
    keys = ['reg', 'height', 'dim', 'rot'] + ['vel'] * ('vel' in preds[0])
    width = preds[0]['heatmap'].shape[3]
    scores, cells, labels = _best_cells(preds, coder.max_num)
    maps = torch.cat([pred[key] for pred in preds for key in keys], dim=1)
    maps = maps.flatten(2).unflatten(1, (len(preds), -1))
    values = upcast_half(maps.gather(3, cells.unsqueeze(2).expand(
        -1, -1, maps.shape[2], -1)))
    reg, height, size, rot, *others = values.split(
        [2, 1, 3, 2, 2][:len(keys)], dim=2)
    row = cells.div(width, rounding_mode='floor')
    x, y = ((cell + reg[:, :, axis]) * coder.out_size_factor
            * coder.voxel_size[axis] + coder.pc_range[axis]
            for axis, cell in enumerate((cells - row * width, row)))
    boxes = torch.cat([
        x.unsqueeze(2), y.unsqueeze(2), height,
        size.exp() if norm_bbox else size, _angles(rot), *others
    ], dim=2).transpose(2, 3)
    valid = _is_within(boxes, coder.post_center_range)
    if coder.score_threshold:
        valid = valid & (scores > coder.score_threshold)
    return Candidates(boxes, scores, labels, valid)


def _best_cells(preds: list[dict[str, Tensor]],
                max_num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, cells and labels of the best cells of each task."""
    heatmaps = [upcast_half(pred['heatmap']) for pred in preds]
    counts = [heatmap.shape[1] for heatmap in heatmaps]
    maps = torch.cat(heatmaps, dim=1).sigmoid().flatten(2)
    num = min(max_num, maps.shape[2])
    # In two steps, as upstream: they decide the order of equal scores. The
    # second is for tasks with as many classes at once.
    of_class = maps.topk(num)
    groups, order = [], []
    for count in sorted(set(counts)):
        tasks = [task for task, n in enumerate(counts) if n == count]
        order += tasks
        starts = [sum(counts[:task]) for task in tasks]
        scores, cells = (
            torch.stack([values[:, start:start + count].flatten(1)
                         for start in starts], dim=1) for values in of_class)
        scores, best = scores.topk(num)
        labels = best.div(num, rounding_mode='floor') + _constant(
            tuple(starts), torch.int64, maps.device).unsqueeze(1)
        groups.append((scores, cells.gather(2, best), labels.int()))
    if len(groups) == 1:
        return groups[0]
    scores, cells, labels = (_put(parts, order) for parts in zip(*groups))
    return scores, cells, labels


def _angles(rot: Tensor) -> Tensor:
    """Return the yaw from its sine and cosine, ``(B, T, 2, K)``."""
    if rot.is_cuda:
        return torch.atan2(rot[:, :, :1], rot[:, :, 1:])
    # Of a whole task, as upstream: on a CPU, torch rounds the last few of a
    # tensor otherwise.
    return torch.stack([
        torch.atan2(*task.transpose(0, 1).contiguous()).unsqueeze(1)
        for task in rot.unbind(1)], dim=1)


def suppress(found: Candidates,
             cfg: dict[str, Any]) -> tuple[Tensor, list[int]]:
    """Return the boxes not suppressed by a better one of their task.

    They are those of mmdet3d's circle and rotated NMS, in its order. On a CPU
    its functions are called, sample by sample and task by task. On a GPU all
    pairs of boxes are compared at once, which waits for it once, and again
    where scores of circles are equal and for each ``ROUNDS`` more boxes in a
    chain; each rotated NMS would wait. There, rotated boxes of equal scores
    stay in the order of the candidates: upstream's sort is not stable.

    Args:
        found (Candidates): From :func:`decode`.
        cfg (dict[str, Any]): The ``test_cfg`` of the head, as
            ``check_test_cfg`` accepts it. ``nms_type`` may have an entry per
            task. ``min_radius`` is compared with *squared* distances.

    Returns:
        tuple[Tensor, list[int]]: The rows of the flattened candidates that
        are kept, sample by sample, and the number in each sample.
    """
    kinds = per_task(cfg['nms_type'], found.scores.shape[1])
    valid, inside = found.valid, torch.ones_like(found.valid)
    if 'rotate' in kinds:
        circle = _constant(tuple(kind != 'rotate' for kind in kinds),
                           torch.bool, valid.device).unsqueeze(1)
        inside = circle | _is_within(
            found.boxes, cfg['post_center_limit_range'])
        if cfg['score_threshold'] > 0:
            valid = valid & (circle
                             | (found.scores >= cfg['score_threshold']))
    boxes = found.boxes.detach()
    bev = torch.cat((boxes[..., :2], boxes[..., 3:5], boxes[..., 6:7]), dim=3)
    rows = (_one_by_one if _loops(bev) else _all_pairs)(
        kinds, bev, found.scores.detach(), valid, inside, cfg)
    size = found.scores[0].numel()
    counts = np.bincount(rows // size, minlength=len(found.scores))
    return torch.from_numpy(rows).to(
        bev.device, non_blocking=True), counts.tolist()


def _loops(x: Tensor) -> bool:
    """Return whether a loop over samples and tasks is the faster way."""
    return x.device.type == 'cpu'


def _one_by_one(kinds: Sequence[str | None], bev: Tensor, scores: Tensor,
                valid: Tensor, inside: Tensor,
                cfg: dict[str, Any]) -> np.ndarray:
    """Call upstream's functions for each sample and task."""
    rows = [np.empty(0, dtype=np.int64)]
    num_tasks, num = scores.shape[1:]
    for group, of_group in enumerate(valid.flatten(0, 1)):
        sample, task = divmod(group, num_tasks)
        index = of_group.nonzero().squeeze(1)
        if len(index) == 0 or kinds[task] is None:
            continue
        boxes = bev[sample, task][index]
        score = scores[sample, task][index]
        if kinds[task] == 'circle':
            index = index[circle_nms(
                torch.cat((boxes[:, :2], score.unsqueeze(1)), dim=1).numpy(),
                cfg['min_radius'][task], post_max_size=cfg['post_max_size'])]
        else:
            index = index[nms_bev(
                xywhr2xyxyr(boxes), score, cfg['nms_thr'],
                cfg['pre_max_size'], cfg['post_max_size'])]
            index = index[inside[sample, task][index]]
        rows.append(index.numpy() + group * num)
    return np.concatenate(rows)


def _all_pairs(kinds: Sequence[str], bev: Tensor, scores: Tensor,
               valid: Tensor, inside: Tensor,
               cfg: dict[str, Any]) -> np.ndarray:
    """Compare each box with all that come before it, on the device."""
    size, num_tasks, num = scores.shape
    circle = [task for task, kind in enumerate(kinds) if kind == 'circle']
    rotated = [task for task, kind in enumerate(kinds) if kind == 'rotate']
    hides, allow = [], valid
    if circle:
        hides.append(_is_near(_pick(bev, circle), _constant(
            tuple(cfg['min_radius'][task] for task in circle), torch.float64,
            bev.device)))
    if rotated:
        hides.append(_overlaps(_pick(bev, rotated), cfg['nms_thr']))
        if cfg['pre_max_size'] is not None:
            allow = allow & (allow.cumsum(2) <= cfg['pre_max_size'])
            if circle:
                allow = _put((_pick(valid, circle), _pick(allow, rotated)),
                             circle + rotated)
    hide = hides[0] if len(hides) == 1 else _put(hides, circle + rotated)
    hide, allow = hide.to(bev), allow.to(bev)
    # Equal scores: upstream's sort of circles decides their order, see below.
    equal = (valid[..., 1:] & ~(scores[..., :-1] > scores[..., 1:])).any(
        2).any(0)
    keep = allow
    while True:
        for _ in range(ROUNDS):
            before = keep
            keep = allow * ((before.unsqueeze(2) @ hide).squeeze(2) < 0.5)
        changed = (keep != before).any(2).any(0)
        kept = keep > 0.5
        if cfg['post_max_size'] is not None and cfg['post_max_size'] < num:
            kept = kept & (kept.cumsum(2) <= cfg['post_max_size'])
        kept = kept & inside
        read, changes, is_tied = np.split(_read(torch.cat((
            kept.flatten(), changed, equal))), [kept.numel(), -num_tasks])
        ties = [task for task in circle if is_tied[task]]
        # Those are decided by upstream's loop, below.
        if not any(changes[task] for task in range(num_tasks)
                   if task not in ties):
            break
    rows = np.flatnonzero(read)
    if not ties:
        return rows
    points = torch.from_numpy(_read(torch.cat((bev[..., :2], torch.stack(
        (scores, valid.to(scores)), dim=3)), dim=3)))
    others = rows[~np.isin(rows // num % num_tasks, ties)]
    rows = np.concatenate((others, _one_by_one(
        [kind if task in ties else None for task, kind in enumerate(kinds)],
        points, points[..., 2], points[..., 3].bool(), inside, cfg)))
    # Sample by sample and task by task; each is in its own order.
    return rows[np.argsort(rows // num, kind='stable')]


def _pick(values: Tensor, tasks: Sequence[int]) -> Tensor:
    """Return the values of some tasks."""
    if len(tasks) == values.shape[1]:
        return values
    return torch.stack([values[:, task] for task in tasks], dim=1)


def _put(parts: Sequence[Tensor], tasks: Sequence[int]) -> Tensor:
    """Return the values of all tasks in their order."""
    values = torch.cat([*parts], dim=1)
    return torch.stack(
        [values[:, tasks.index(task)] for task in range(len(tasks))], dim=1)


def _read(x: Tensor) -> np.ndarray:
    """Return the values of a tensor: the only place that waits for a GPU."""
    return x.cpu().numpy()


def _is_near(bev: Tensor, radius: Tensor) -> Tensor:
    """Return which boxes lie near an earlier one.

    In the arithmetic of upstream's loop: float32, compared in float64. Boxes
    are ``(B, T, K, 5)``, squared radii ``(T, )``, the result ``(B, T,
    earlier, later)``.
    """
    x, y = bev[..., 0], bev[..., 1]
    squared = ((x.unsqueeze(3) - x.unsqueeze(2))**2
               + (y.unsqueeze(3) - y.unsqueeze(2))**2)
    return (squared.double() <= radius.view(-1, 1, 1)).triu(1)


def _overlaps(bev: Tensor, threshold: float) -> Tensor:
    """Return which boxes overlap an earlier one, as :func:`_is_near`."""
    # As upstream, whose way back and forth rounds them.
    half = bev[..., 2:4] / 2
    low, high = bev[..., :2] - half, bev[..., :2] + half
    bev = torch.cat(((low + high) / 2, high - low, bev[..., 4:]), dim=3)
    num = bev.shape[2]
    hides = torch.zeros(
        *bev.shape[:2], num, num, dtype=torch.bool, device=bev.device)
    if num < 2:
        return hides
    first, second = torch.triu_indices(num, num, 1, device=bev.device)
    iou = box_iou_rotated(bev[:, :, first].flatten(0, 2),
                          bev[:, :, second].flatten(0, 2), aligned=True)
    # mmcv's two kernels differ here.
    above = iou >= threshold if bev.device.type == 'cpu' else iou > threshold
    hides[:, :, first, second] = above.view(*bev.shape[:2], -1)
    return hides


def _is_within(boxes: Tensor, limits: Any) -> Tensor:
    """Return whether centres lie in ``(x, y, z, x, y, z)``."""
    low, high = (_constant(tuple(map(float, part)), boxes.dtype, boxes.device)
                 for part in (limits[:3], limits[3:6]))
    center = boxes[..., :3]
    return ((center >= low) & (center <= high)).all(-1)


def _constant(values: tuple[float, ...], dtype: torch.dtype,
              device: torch.device) -> Tensor:
    """Return numbers of a config on a device: each copy would be a launch."""
    if is_compiling() or torch.jit.is_tracing():
        # One that an exporter makes has no values outside of it.
        return torch.tensor(values, dtype=dtype, device=device)
    return _kept_constant(values, dtype, device)


@functools.lru_cache(maxsize=64)
def _kept_constant(values: tuple[float, ...], dtype: torch.dtype,
                   device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
