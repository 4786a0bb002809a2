"""CenterPoint's head with an activation that is chosen by config."""
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard, TypeVar

import torch
from mmdet.models.losses import L1Loss, l1_loss
from mmdet3d.models.dense_heads.centerpoint_head import (
    CenterHead as _CenterHead,
)
from mmengine.structures import InstanceData
from torch import Tensor, nn

from sigplug.models.layers import ClipSigmoid
from sigplug.ops import (
    gaussian_heatmap,
    gaussian_radius,
)
from sigplug.ops.clip_sigmoid import representable_bounds
from sigplug.registry import MODELS

from ..arguments import name_arguments
from .center_head_checks import (
    check_batch,
    check_complete,
    check_grid,
    check_parts,
    check_train_cfg,
)
from .heatmap_act import build_heatmap_act

# Box values without and with a velocity: (x, y, z, dx, dy, dz, yaw[, vx, vy]).
# The regression target encodes the yaw as (sin, cos), hence one value more.
BOX_SIZE, BOX_SIZE_WITH_VELOCITY = 7, 9

# In cells: flat all over any map, and still an int32.
MAX_RADIUS = 2**24

_Module = TypeVar('_Module', bound=nn.Module)


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
    - Without a ``vel`` entry in ``common_heads`` the boxes have 7 values, as
      in KITTI, and ``code_weights`` has 8 values.
    - ``init_weights`` applies the ``init_bias`` of the heatmaps; upstream
      keeps the task heads in a plain ``ModuleList``, which mmengine passes
      over, and training starts from scores of 0.5.
    - Nothing is predicted for a sample without points, as
      :class:`sigplug.Det3DDataPreprocessor` marks them.
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
            the head needs it (for inference, ``train_cfg`` may lack values or
            be None), or ``heatmap_act`` is given and ``loss_cls`` takes
            logits.
    """

    def __init__(self,
                 *args: Any,
                 heatmap_act: dict | None = None,
                 **kwargs: Any) -> None:
        arguments = name_arguments(self, super().__init__, args, kwargs)
        check_parts(**arguments)
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
            check_train_cfg(self.train_cfg)
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
            torch.tensor([1.0] * self._code_size if weights is None else
                         list(weights), dtype=torch.float32).view(torch.int32),
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

        Raises:
            ValueError: The predictions are not of so many samples, or of
                another grid than ``train_cfg``, which has to be complete.
        """
        found = preds_dicts[0][0]['heatmap']
        check_batch(found, len(batch_gt_instances_3d))
        heatmaps, boxes, indices, masks = self.get_targets(
            batch_gt_instances_3d)
        check_grid(found, heatmaps[0], self.train_cfg)
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
        losses = []
        for x, target in zip(logits, targets, strict=True):
            num_peaks = target.eq(1).sum().float().clamp(min=1)
            losses.append(self.loss_cls(
                self.heatmap_act(x), target, avg_factor=num_peaks))
        return losses

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

    def predict_by_feat(self, preds_dicts: tuple[list[dict]],
                        batch_input_metas: list[dict], *args: Any,
                        **kwargs: Any) -> list[InstanceData]:
        """Boxes of each sample.

        Args:
            preds_dicts (tuple[list[dict]]): As for ``loss_by_feat``.
            batch_input_metas (list[dict]): The ``metainfo`` of each sample.
            *args: As upstream's.
            **kwargs: As upstream's.

        Returns:
            list[InstanceData]: ``bboxes_3d``, ``scores_3d`` and
            ``labels_3d`` of each sample; empty where its ``metainfo`` has
            ``no_points``, whatever an empty map looks like to the network.

        Raises:
            ValueError: The features are not of so many samples.
        """
        check_batch(preds_dicts[0][0]['heatmap'], len(batch_input_metas))
        found = super().predict_by_feat(preds_dicts, batch_input_metas, *args,
                                        **kwargs)
        return [
            boxes[:0] if meta.get('no_points') else boxes
            for boxes, meta in zip(found, batch_input_metas, strict=True)
        ]

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

        Raises:
            ValueError: ``train_cfg`` lacks a value, or there is no sample.
        """
        cfg = self.train_cfg
        check_complete(cfg)
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


def _does_only(module: nn.Module, kind: type[_Module]) -> TypeGuard[_Module]:
    """Whether a call of ``module`` runs the forward of ``kind`` alone."""
    hooks = (module._forward_hooks, module._forward_pre_hooks,
             module._backward_hooks, module._backward_pre_hooks)
    return (type(module) is kind and 'forward' not in vars(module)
            and not any(hooks))
