"""CenterPoint's head with an activation that is chosen by config."""
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from mmdet.models.losses import GaussianFocalLoss, L1Loss, l1_loss
from mmdet3d.models.dense_heads.centerpoint_head import (
    CenterHead as _CenterHead,
)
from mmengine.structures import InstanceData
from torch import Tensor, nn

from sigplug.models.layers import ClipSigmoid
from sigplug.models.losses import GaussianFocalLossWithLogits
from sigplug.ops import (
    gaussian_focal_loss_with_logits,
    gaussian_heatmap,
    gaussian_radius,
)
from sigplug.ops._checks import is_integer, is_number
from sigplug.ops.clip_sigmoid import representable_bounds
from sigplug.ops.gaussian_focal_loss import AVG_FACTOR_EPS, focal_loss_sums
from sigplug.registry import MODELS, check_config

from ..arguments import name_arguments
from .heatmap_act import build_heatmap_act

# Box values without and with a velocity: (x, y, z, dx, dy, dz, yaw[, vx, vy]).
# The regression target encodes the yaw as (sin, cos), hence one value more.
BOX_SIZE, BOX_SIZE_WITH_VELOCITY = 7, 9

# What the heads of the regression targets are called, and their channels.
BOX_HEADS = dict(reg=2, height=1, dim=3, rot=2, vel=2)

# In cells: flat all over any map, and still an int32.
MAX_RADIUS = 2**24


@MODELS.register_module()
class CenterHead(_CenterHead):
    """Drop-in for mmdet3d's ``CenterHead`` with a selectable activation.

    Keyword arguments, parameter names, losses, targets and predictions are
    those of mmdet3d 1.4 at the default settings. What differs:

    - ``heatmap_act`` is applied to a copy: the logits in ``preds_dicts`` are
      not overwritten, so that ``loss`` and ``predict`` may share a forward.
    - The losses are computed in float32 also under autocast.
    - Targets are computed for the whole batch without a loop per box, and
      neither they nor the losses wait for a GPU (``gaussian_heatmap`` may),
      as far as ``loss_cls`` and ``loss_bbox`` do not.
    - ``heatmap_act`` and ``loss_cls`` are computed in one operation where
      both are of a known type and without hooks; the losses stay the same.
    - Without a ``vel`` entry in ``common_heads`` the boxes have 7 values, as
      in KITTI, and ``code_weights`` has 8 values.
    - ``init_weights`` applies the ``init_bias`` of the heatmaps; upstream
      keeps the task heads in a plain ``ModuleList``, which mmengine passes
      over, and training starts from scores of 0.5.
    - A value of a target box that is not finite (a NaN velocity, the
      logarithm of a zero height) takes its own term out of the loss; upstream
      masks a NaN too, but NaN times 0 is still NaN.

    Decoding uses the plain sigmoid: the clip is there for the logarithm of
    the loss.

    What is appended to the list ``heatmap_observers`` is called with the
    number, the logits and the target of each task, ``(B, classes, H, W)`` in
    float32, whenever the losses are computed.

    Args:
        *args: Those of mmdet3d's ``CenterHead``.
        heatmap_act (dict): Config of the activation in front of
            ``loss_cls``. Defaults to ``dict(type='ClipSigmoid')``, and to
            none where ``loss_cls`` takes logits.
        **kwargs: Those of mmdet3d's ``CenterHead``.

    Raises:
        TypeError: ``heatmap_act`` is no config, or an argument unknown.
        ValueError: ``tasks``, ``common_heads`` or ``train_cfg`` is not as
            the head needs it, or ``heatmap_act`` is given and ``loss_cls``
            takes logits.
    """

    def __init__(self,
                 *args: Any,
                 heatmap_act: dict | None = None,
                 **kwargs: Any) -> None:
        arguments = name_arguments(self, super().__init__, args, kwargs)
        _check_parts(**arguments)
        super().__init__(**arguments)
        self.heatmap_act = build_heatmap_act(
            heatmap_act, self.loss_cls, dict(type='ClipSigmoid'))
        self.heatmap_observers: list[Callable[[int, Tensor, Tensor],
                                              None]] = []
        # DCNSeparateHead keeps its regression branches one level down.
        first = self.task_heads[0]
        heads = getattr(first, 'task_head', first).heads
        self.with_velocity = 'vel' in heads
        if self.train_cfg:
            _check_train_cfg(self.train_cfg)
        weights = (self.train_cfg or {}).get('code_weights')
        if weights is not None and len(weights) != self._code_size:
            raise ValueError(
                f'train_cfg.code_weights must have {self._code_size} values '
                f'for the common_heads {sorted(heads)}, but has '
                f'{len(weights)}: {list(weights)}')
        # Made here, as a list in a training step would wait for a GPU; no
        # part of the state_dict.
        self.register_buffer(
            '_task_of_class',
            torch.tensor([task for task, count in enumerate(self.num_classes)
                          for _ in range(count)]),
            persistent=False)
        # The bits of float32, which half() does not round.
        self.register_buffer(
            '_code_weights',
            torch.tensor(weights or [1.0] * self._code_size,
                         dtype=torch.float32).view(torch.int32),
            persistent=False)

    @property
    def _code_size(self) -> int:
        """Number of regression targets: offset, z, size, sin, cos[, v]."""
        return 1 + (
            BOX_SIZE_WITH_VELOCITY if self.with_velocity else BOX_SIZE)

    @property
    def heatmap_clip(self) -> tuple[float, float, bool] | None:
        """Bounds of the scores in the loss, None where nothing is clipped.

        The third value tells whether the gradient is zero outside of them.
        """
        act, clip = self.heatmap_act, getattr(self.loss_cls, 'clip', None)
        if isinstance(act, ClipSigmoid):
            bounds, stops = (act.min_val, act.max_val), act.grad == 'zero'
        elif clip is not None:
            bounds, stops = (clip, 1 - clip), True
        else:
            return None
        return *representable_bounds(*bounds, torch.float32), stops

    def init_weights(self) -> None:
        """Initialise the head, with the prior score of each heatmap.

        Only the bias is set. The heads' own ``init_weights``, which upstream
        never reaches, also draws their convolutions anew, from a
        distribution so wide that the first losses are 20 times larger.
        """
        super().init_weights()
        for task_head in self.task_heads:
            # DCNSeparateHead calls its heatmap branch cls_head.
            branch = getattr(task_head, 'heatmap', None) or task_head.cls_head
            nn.init.constant_(branch[-1].bias, task_head.init_bias)

    def loss_by_feat(self, preds_dicts: tuple[list[dict]],
                     batch_gt_instances_3d: list[InstanceData], *args: Any,
                     **kwargs: Any) -> dict[str, Tensor]:
        """Heatmap and box losses of each task.

        Args:
            preds_dicts (tuple[list[dict]]): For each task a list whose first
                entry is a dict of predictions, shape ``(B, channels, H, W)``;
                left as they are.
            batch_gt_instances_3d (list[InstanceData]): ``bboxes_3d`` and
                ``labels_3d`` of each sample.
            *args: Ignored, as upstream does.
            **kwargs: Ignored, as upstream does.

        Returns:
            dict[str, Tensor]: ``task{i}.loss_heatmap`` and
            ``task{i}.loss_bbox``, float32 scalars.
        """
        heatmaps, boxes, indices, masks = self.get_targets(
            batch_gt_instances_3d)
        got, expected = preds_dicts[0][0]['heatmap'].shape, heatmaps[0].shape
        if got != expected:
            raise ValueError(
                f'the predicted heatmap of task 0 must have the shape '
                f'{tuple(expected)} of its target, but has {tuple(got)}: '
                'train_cfg.grid_size and out_size_factor, or the number of '
                'samples, do not fit')
        losses = {}
        # Half precision neither holds 1 - 1e-4 nor sums 16384 cells well.
        with torch.autocast(heatmaps[0].device.type, enabled=False):
            preds = [{key: pred.float() for key, pred in levels[0].items()}
                     for levels in preds_dicts]
            logits = [pred['heatmap'] for pred in preds]
            with torch.no_grad():
                for i, target in enumerate(heatmaps):
                    for observe in self.heatmap_observers:
                        observe(i, logits[i], target)
            heatmap_losses = self._heatmap_losses(logits, heatmaps)
            for i, pred in enumerate(preds):
                losses[f'task{i}.loss_heatmap'] = heatmap_losses[i]
                losses[f'task{i}.loss_bbox'] = self._box_loss(
                    pred, boxes[i], indices[i], masks[i])
        return losses

    def _heatmap_losses(self, logits: list[Tensor],
                        targets: list[Tensor]) -> Sequence[Tensor]:
        """Gaussian focal loss of each task, over its number of peaks."""
        arguments = self._focal_arguments()
        if arguments is not None and logits[0].is_cuda:
            return self._joint_heatmap_losses(logits, targets, **arguments)
        losses = []
        for x, target in zip(logits, targets, strict=True):
            num_peaks = target.eq(1).sum().float().clamp(min=1)
            if arguments is None:
                losses.append(self.loss_cls(
                    self.heatmap_act(x), target, avg_factor=num_peaks))
            else:
                options = dict(arguments)
                losses.append(options.pop('loss_weight') *
                              gaussian_focal_loss_with_logits(
                                  x, target, **options, avg_factor=num_peaks))
        return losses

    def _joint_heatmap_losses(self, logits: list[Tensor],
                              targets: list[Tensor], loss_weight: float,
                              **arguments: float | None) -> Sequence[Tensor]:
        """All tasks at once: small heatmaps cost a GPU mostly launches."""
        x, target = torch.cat(logits, dim=1), torch.cat(targets, dim=1)
        shape = x.shape[:2]
        sums = focal_loss_sums(x, target, shape.numel(), **arguments,
                               backend='auto').view(shape).sum(0)
        peaks = target.eq(1).sum((0, 2, 3))
        # By a sum: adding at an index has no order on a GPU.
        tasks = torch.arange(len(logits), device=x.device)
        is_of_task = self._task_of_class.unsqueeze(1) == tasks
        sums = (sums.unsqueeze(1) * is_of_task).sum(0)
        peaks = (peaks.unsqueeze(1) * is_of_task).sum(0).clamp(min=1)
        return (loss_weight * sums / (peaks + AVG_FACTOR_EPS)).unbind()

    def _focal_arguments(self) -> dict[str, float | None] | None:
        """How one operation on logits can replace activation and loss.

        Returns:
            dict[str, float | None] | None: ``loss_weight`` and the arguments
            ``alpha``, ``gamma``, ``pos_weight``, ``neg_weight`` and ``clip``
            of :func:`sigplug.ops.gaussian_focal_loss_with_logits`; None where
            the two modules do, or may do, anything else.
        """
        act, loss = self.heatmap_act, self.loss_cls
        if (_does_only(loss, GaussianFocalLossWithLogits)
                and _does_only(act, nn.Identity)):
            clip = loss.clip
        elif (_does_only(loss, GaussianFocalLoss)
              and _does_only(act, ClipSigmoid) and act.grad == 'zero'
              and act.max_val == 1 - act.min_val):
            clip = act.min_val
        else:
            return None
        arguments = {
            name: getattr(loss, name, None) for name in
            ('loss_weight', 'alpha', 'gamma', 'pos_weight', 'neg_weight')}
        usual = all(isinstance(value, Real) and value >= 0
                    for value in arguments.values())
        if not usual or getattr(loss, 'reduction', None) != 'mean':
            return None
        return dict(arguments, clip=clip)

    def _box_loss(self, preds: dict[str, Tensor], target: Tensor,
                  index: Tensor, mask: Tensor) -> Tensor:
        """Regression loss of one task at the cells of its objects."""
        keys = ['reg', 'height', 'dim', 'rot']
        if self.with_velocity:
            keys.append('vel')
        pred = torch.cat([preds[key] for key in keys], dim=1)
        pred = self._gather_feat(pred.flatten(2).transpose(1, 2), index)
        known = mask.unsqueeze(2) * target.isfinite()
        weights = known * self._code_weights.view(torch.float32)
        target = target.nan_to_num(0.0, 0.0, 0.0)
        avg_factor = mask.float().sum() + 1e-4
        loss = self.loss_bbox
        if _does_only(loss, L1Loss) and loss.reduction == 'mean':
            # The module looks first for a positive weight, and so waits for
            # a GPU.
            return loss.loss_weight * l1_loss(
                pred, target, weights, avg_factor=avg_factor)
        return loss(pred, target, weights, avg_factor=avg_factor)

    def get_targets(
        self, batch_gt_instances_3d: list[InstanceData]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Targets of a batch, equal to those of mmdet3d's loop over boxes.

        A box becomes a peak of its class in the cell of its centre, and the
        regression target of that cell. It is left out if its size is not
        positive, its centre lies outside the map, or ``max_objs`` boxes of
        its task come before it.

        No shape depends on the values, so that nothing waits for a GPU
        (beyond :func:`sigplug.ops.gaussian_heatmap`).

        Args:
            batch_gt_instances_3d (list[InstanceData]): ``bboxes_3d`` (7 or 9
                values) and ``labels_3d`` of each sample.

        Returns:
            tuple[list[Tensor]]: One entry per task, with ``K`` the largest
            number of objects: heatmaps ``(B, classes, H, W)``, boxes
            ``(B, K, 8 or 10)``, indices of the cells ``(B, K)`` int64 and
            masks ``(B, K)`` uint8.
        """
        cfg = self.train_cfg
        if not cfg:
            raise ValueError(f'train_cfg is needed for targets, but is {cfg}')
        if not batch_gt_instances_3d:
            raise ValueError('batch_gt_instances_3d must hold an entry for '
                             f'each sample, but is {batch_gt_instances_3d}')
        batch_size = len(batch_gt_instances_3d)
        num_tasks, num_classes = len(self.num_classes), sum(self.num_classes)
        max_objs = cfg['max_objs'] * cfg['dense_reg']
        width, height = (int(size) // cfg['out_size_factor']
                         for size in cfg['grid_size'][:2])

        # All samples are drawn at once, as channels of one heatmap. Labels
        # of no class come last.
        boxes, labels, sample = self._flatten(batch_gt_instances_3d)
        num_channels = batch_size * num_classes
        known = (labels >= 0) & (labels < num_classes)
        channel, order = torch.where(
            known, sample * num_classes + labels, num_channels).sort(
                stable=True)
        boxes = boxes[order]

        # The place of a box among those of its sample and task, in the
        # order of the classes.
        task = self._task_of_class.to(channel.device)[channel % num_classes]
        group = channel // num_classes * num_tasks + task
        slot = torch.arange(len(group), device=group.device)
        slot = slot - torch.searchsorted(group, group)

        center, extent = self._to_cells(boxes)
        # Compared as floats: a NaN has no integer.
        drawn = ((channel < num_channels) & (slot < max_objs)
                 & (extent > 0).all(1) & (center > -1).all(1)
                 & (center[:, 0] < width) & (center[:, 1] < height))
        cell = center.int()
        radius = gaussian_radius(
            extent[:, 1], extent[:, 0], min_overlap=cfg['gaussian_overlap'])
        radius = radius.nan_to_num().clamp(cfg['min_radius'], MAX_RADIUS).int()
        heatmap = gaussian_heatmap(
            cell, torch.where(drawn, radius, -1),
            channel.clamp(max=num_channels - 1), num_channels,
            (height, width)).view(batch_size, num_classes, height, width)

        # What is not drawn goes to one more place, which is cut off.
        num_places = batch_size * num_tasks * max_objs
        place = torch.where(drawn, group * max_objs + slot, num_places)

        def scatter(values: Tensor) -> list[Tensor]:
            places = values.new_zeros(num_places + 1, *values.shape[1:])
            places[place] = values
            return list(places[:-1].view(batch_size, num_tasks, max_objs,
                                         *values.shape[1:]).unbind(1))

        return (list(heatmap.split(self.num_classes, dim=1)),
                scatter(self._encode(boxes, center - cell)),
                scatter(cell[:, 1].long() * width + cell[:, 0]),
                scatter(torch.ones_like(place, dtype=torch.uint8)))

    def _flatten(
        self, batch_gt_instances_3d: list[InstanceData]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (gravity centre first), labels and sample of the batch."""
        size = BOX_SIZE_WITH_VELOCITY if self.with_velocity else BOX_SIZE
        boxes, labels, samples = [], [], []
        for sample, gt in enumerate(batch_gt_instances_3d):
            values = gt.bboxes_3d.tensor
            if values.shape[1] < size:
                raise ValueError(
                    f'the head predicts {size} box values, but gt bboxes_3d '
                    f"have {values.shape[1]}: remove 'vel' from common_heads "
                    'or give boxes with a velocity')
            boxes.append(
                torch.cat((gt.bboxes_3d.gravity_center, values[:, 3:size]),
                          dim=1).float().to(gt.labels_3d.device))
            labels.append(gt.labels_3d.long())
            samples.append(torch.full_like(labels[-1], sample))
        return torch.cat(boxes), torch.cat(labels), torch.cat(samples)

    def _to_cells(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Centres (x, y) and extents (length, width) in heatmap cells."""
        cfg = self.train_cfg
        # By Python's numbers: a tensor of them would have to be copied to
        # the GPU, where its quotients also differ from upstream's in the
        # last bit.
        centers, extents = [], []
        for axis in range(2):
            voxel, factor = cfg['voxel_size'][axis], cfg['out_size_factor']
            origin = cfg['point_cloud_range'][axis]
            centers.append((boxes[:, axis] - origin) / voxel / factor)
            extents.append(boxes[:, 3 + axis] / voxel / factor)
        return torch.stack(centers, dim=1), torch.stack(extents, dim=1)

    def _encode(self, boxes: Tensor, offset: Tensor) -> Tensor:
        """Regression targets of boxes with their offset inside the cell."""
        size = boxes[:, 3:6]
        yaw = boxes[:, 6:7]
        return torch.cat((offset, boxes[:, 2:3],
                          size.log() if self.norm_bbox else size, yaw.sin(),
                          yaw.cos(), boxes[:, 7:]),
                         dim=1)


def _check_parts(tasks: Sequence[dict] | None = None,
                 common_heads: dict | None = None,
                 **parts: Any) -> None:
    """Refuse what upstream takes, and stumbles over later."""
    if not isinstance(tasks, (tuple, list)) or not tasks or not all(
            isinstance(task, dict) and task.get('class_names')
            for task in tasks):
        raise ValueError('tasks must be a list of configs like dict('
                         "num_class=1, class_names=['car']), but got "
                         f'{tasks!r}')
    for name in ('bbox_coder', 'loss_cls', 'loss_bbox', 'separate_head'):
        if name in parts:
            check_config(name, parts[name])
    heads = common_heads if isinstance(common_heads, dict) else {}
    for name, channels in BOX_HEADS.items():
        branch = heads.get(name)
        if branch is None and name == 'vel' and heads:
            continue
        if (not isinstance(branch, (tuple, list)) or len(branch) != 2
                or branch[0] != channels or not is_integer(branch[1], 1)):
            raise ValueError(
                f'common_heads.{name} must be ({channels}, number of '
                f'convolutions), but common_heads is {common_heads!r}')


def _check_train_cfg(cfg: dict) -> None:
    """Refuse what gives no targets, or fails only in the first iteration."""
    def pair(value: Any, fits: Callable[[Any], bool]) -> bool:
        return (not is_number(value) and not isinstance(value, str)
                and len(value) >= 2 and all(map(fits, value[:2])))

    def positive(value: Any) -> bool:
        return is_number(value) and 0 < value < float('inf')

    for name, what, fits in (
            ('grid_size', 'two or three numbers above 0',
             lambda v: pair(v, positive)),
            ('voxel_size', 'two or three numbers above 0',
             lambda v: pair(v, positive)),
            ('point_cloud_range', 'numbers, the origin first',
             lambda v: pair(v, is_number)),
            ('out_size_factor', 'an integer of at least 1',
             lambda v: is_integer(v, 1)),
            ('max_objs', 'an integer of at least 1',
             lambda v: is_integer(v, 1)),
            ('dense_reg', 'an integer of at least 1',
             lambda v: is_integer(v, 1)),
            ('min_radius', 'a number of at least 0',
             lambda v: is_number(v) and v >= 0),
            ('gaussian_overlap', 'a number in (0, 1)',
             lambda v: is_number(v) and 0 < v < 1)):
        value = cfg.get(name)
        if value is None or not fits(value):
            raise ValueError(
                f'train_cfg.{name} must be {what}, but got {value!r}')
    weights = cfg.get('code_weights')
    if weights is not None and not (
            isinstance(weights, (tuple, list)) and all(
                is_number(w) and 0 <= w < float('inf') for w in weights)):
        raise ValueError('train_cfg.code_weights must be finite numbers from '
                         f'0 on, but got {weights!r}')


def _does_only(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of ``module`` runs the forward of ``kind`` alone."""
    hooks = (module._forward_hooks, module._forward_pre_hooks,
             module._backward_hooks, module._backward_pre_hooks)
    return (type(module) is kind and 'forward' not in vars(module)
            and not any(hooks))
