"""Predictions of CenterPoint's head, for a whole batch at once."""
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

from .center_checks import per_task

# Rounds of the suppression before its result is read. They are enough unless
# more boxes than that form a chain in which each would hide the next.
ROUNDS = 16


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

    Returns:
        Candidates: The boxes.
    """
    keys = ['reg', 'height', 'dim', 'rot'] + ['vel'] * ('vel' in preds[0])
    width = preds[0]['heatmap'].shape[3]
    num_cells = preds[0]['heatmap'][0, 0].numel()
    num = min(coder.max_num, num_cells)
    all_scores, all_cells, all_labels, all_values = [], [], [], []
    offset = 0
    for pred in preds:
        heatmap = upcast_half(pred['heatmap']).sigmoid()
        # In two steps, as upstream: they decide the order of equal scores.
        scores, cells = heatmap.flatten(2).topk(num)
        scores, best = scores.flatten(1).topk(num)
        cells = cells.flatten(1).gather(1, best)
        all_scores.append(scores)
        all_cells.append(cells)
        all_labels.append(best.div(num, rounding_mode='floor') + offset)
        offset += heatmap.shape[1]
        values = {key: upcast_half(pred[key].flatten(2).gather(
            2, cells.unsqueeze(1).expand(-1, pred[key].shape[1], -1)))
            for key in keys}
        # Of a whole task, as upstream: on a CPU, torch rounds the last few of
        # a tensor otherwise.
        values['rot'] = torch.atan2(
            *values['rot'].transpose(0, 1).contiguous()).unsqueeze(1)
        all_values.append(torch.cat([*values.values()], dim=1))
    scores = torch.stack(all_scores, dim=1)
    cells = torch.stack(all_cells, dim=1)
    reg, height, size, *others = torch.stack(all_values, dim=1).split(
        [2, 1, 3, 1, 2][:len(keys)], dim=2)
    row = cells.div(width, rounding_mode='floor')
    x, y = ((cell.float() + reg[:, :, axis]) * coder.out_size_factor
            * coder.voxel_size[axis] + coder.pc_range[axis]
            for axis, cell in enumerate((cells - row * width, row)))
    boxes = torch.cat([
        torch.stack((x, y), dim=2), height, size.exp() if norm_bbox else size,
        *others
    ], dim=2).transpose(2, 3)
    valid = _is_within(boxes, coder.post_center_range)
    if coder.score_threshold:
        valid = valid & (scores > coder.score_threshold)
    return Candidates(boxes, scores, torch.stack(all_labels, dim=1).int(),
                      valid)


def suppress(found: Candidates,
             cfg: dict[str, Any]) -> tuple[Tensor, list[int]]:
    """Return the boxes not suppressed by a better one of their task.

    They are those of mmdet3d's circle and rotated NMS, in its order. On a CPU
    its functions are called, sample by sample and task by task. On a GPU all
    pairs of boxes are compared at once, which waits for it once, or twice
    where scores are equal; each rotated NMS would wait. There, rotated boxes
    of equal scores stay in the order of the candidates: upstream's sort is
    not stable.

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
    valid, inside = [], []
    for task, kind in enumerate(kinds):
        of_task = found.valid[:, task]
        inside.append(torch.ones_like(of_task))
        if kind == 'rotate':
            if cfg['score_threshold'] > 0:
                of_task = of_task & (
                    found.scores[:, task] >= cfg['score_threshold'])
            inside[-1] = _is_within(found.boxes[:, task],
                                    cfg['post_center_limit_range'])
        valid.append(of_task)
    boxes = found.boxes.detach()
    bev = torch.cat((boxes[..., :2], boxes[..., 3:5], boxes[..., 6:7]), dim=3)
    rows = (_one_by_one if _loops(bev) else _all_pairs)(
        kinds, bev, found.scores.detach(), torch.stack(valid, dim=1),
        torch.stack(inside, dim=1), cfg)
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
    hides, allowed, flags = [], [], []
    for task, kind in enumerate(kinds):
        own, score = valid[:, task], scores[:, task]
        if kind == 'circle':
            hides.append(_is_near(bev[:, task], cfg['min_radius'][task]))
            # Equal scores: upstream's sort decides their order, see below.
            flags.append((own[:, 1:] & ~(score[:, :-1] > score[:, 1:])
                          ).flatten().any(0, keepdim=True))
        else:
            hides.append(_overlaps(bev[:, task], cfg['nms_thr']))
            if cfg['pre_max_size'] is not None:
                own = own & (own.cumsum(1) <= cfg['pre_max_size'])
        allowed.append(own)

    def solve(tasks: Sequence[int], rounds: int) -> tuple[Tensor, Tensor]:
        """Return what is kept, and the tasks that need more rounds."""
        hide = torch.stack([hides[task] for task in tasks], dim=1)
        keep = allow = torch.stack([allowed[task] for task in tasks], dim=1)
        for _ in range(rounds):
            before = keep
            keep = allow & ~(hide & before.unsqueeze(3)).any(2)
        changed = (keep != before).any(2).any(0)
        if cfg['post_max_size'] is not None:
            keep = keep & (keep.cumsum(2) <= cfg['post_max_size'])
        return keep, changed

    keep, changed = solve(range(len(kinds)), ROUNDS)
    keep = keep & inside
    kept, is_rare = np.split(_read(torch.cat((
        keep.flatten(), changed, *flags))), [keep.numel()])
    if not is_rare.any():
        return np.flatnonzero(kept)
    circle = [task for task, kind in enumerate(kinds) if kind == 'circle']
    # Upstream's loop over those of circles decides them again, below.
    rotated = [task for task, kind in enumerate(kinds) if kind == 'rotate']
    if is_rare[rotated].any():
        # Each round decides one more box for good, so that K are enough.
        solved, _ = solve(rotated, valid.shape[2])
        for place, task in enumerate(rotated):
            keep[:, task] = solved[:, place] & inside[:, task]
    points = torch.from_numpy(_read(torch.cat((bev[..., :2], torch.stack(
        (scores, valid.to(scores), keep.to(scores)), dim=3)), dim=3)))
    kept = points[..., 4].numpy()
    kept[:, circle] = 0
    rows = np.concatenate((np.flatnonzero(kept), _one_by_one(
        [kind if kind == 'circle' else None for kind in kinds], points,
        points[..., 2], points[..., 3].bool(), inside, cfg)))
    # Sample by sample and task by task; each is in its own order.
    return rows[np.argsort(rows // valid.shape[2], kind='stable')]


def _read(x: Tensor) -> np.ndarray:
    """Return the values of a tensor: the only place that waits for a GPU."""
    return x.cpu().numpy()


def _is_near(bev: Tensor, radius: float) -> Tensor:
    """Return which boxes lie near an earlier one, ``(B, earlier, later)``.

    In the arithmetic of upstream's loop: float32, compared in float64.
    """
    x, y = bev[..., 0], bev[..., 1]
    squared = ((x.unsqueeze(2) - x.unsqueeze(1))**2
               + (y.unsqueeze(2) - y.unsqueeze(1))**2)
    return (squared.double() <= radius).triu(1)


def _overlaps(bev: Tensor, threshold: float) -> Tensor:
    """Return which boxes overlap an earlier one, ``(B, earlier, later)``."""
    # As upstream, whose way back and forth rounds them.
    half = bev[..., 2:4] / 2
    low, high = bev[..., :2] - half, bev[..., :2] + half
    bev = torch.cat(((low + high) / 2, high - low, bev[..., 4:]), dim=2)
    size, num = bev.shape[:2]
    hides = torch.zeros(
        size, num, num, dtype=torch.bool, device=bev.device)
    if num < 2:
        return hides
    first, second = torch.triu_indices(num, num, 1, device=bev.device)
    iou = box_iou_rotated(bev[:, first].flatten(0, 1),
                          bev[:, second].flatten(0, 1), aligned=True)
    # mmcv's two kernels differ here.
    above = iou >= threshold if bev.device.type == 'cpu' else iou > threshold
    hides[:, first, second] = above.view(size, -1)
    return hides


def _is_within(boxes: Tensor, limits: Any) -> Tensor:
    """Return whether centres lie in ``(x, y, z, x, y, z)``."""
    # Numbers, as a tensor of them would have to be copied to the GPU.
    inside = torch.ones_like(boxes[..., 0], dtype=torch.bool)
    for axis in range(3):
        place = boxes[..., axis]
        inside = inside & (place >= limits[axis]) & (
            place <= limits[axis + 3])
    return inside
