"""CenterPoint's head with an activation that is chosen by config."""
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet3d.models.dense_heads.centerpoint_head import (
    CenterHead as _CenterHead,
)
from mmdet3d.models.task_modules import CenterPointBBoxCoder
from mmengine.structures import InstanceData
from torch import Tensor, nn

from sigplug.models.layers import ClipSigmoid
from sigplug.ops._checks import check_between, warn
from sigplug.ops._dtypes import upcast_half
from sigplug.ops.backends import is_traced
from sigplug.ops.clip_sigmoid import representable_bounds
from sigplug.ops.gaussian_focal_loss import AVG_FACTOR_EPS
from sigplug.registry import MODELS

from .center_checks import (
    check_code_weights,
    check_test_cfg,
    losses_without_act,
)
from .center_decoding import decode, suppress
from .center_targets import head_targets, label_weights
from .heatmap_loss import (
    build_heatmap_act,
    check_class_weights,
    check_reductions,
    class_losses,
    count_peaks,
    heatmap_loss,
)
from .joint_branches import JointBranches


@MODELS.register_module()
class CenterHead(_CenterHead):
    """Drop-in for mmdet3d's ``CenterHead`` with a selectable activation.

    Keyword arguments, parameter names, losses, targets and predictions are
    those of mmdet3d 1.4 at the default settings. What differs:

    - ``heatmap_act`` is applied to a copy: the logits in ``preds_dicts`` are
      not overwritten, so that ``loss`` and ``predict`` may share a forward.
    - The losses are computed in float32 also under autocast. ``loss_bbox`` is
      called with ``reduction_override='none'`` and averaged over the objects
      here; with its default reduction of ``'none'`` upstream averages over
      all values of ``max_objs`` boxes.
    - Targets are computed for the whole batch without a loop per box, and
      neither they nor the losses wait for a GPU (``gaussian_heatmap`` may),
      as far as ``loss_cls`` and ``loss_bbox`` do not.
    - Without a ``vel`` entry in ``common_heads`` the boxes have 7 values, as
      in KITTI, and ``code_weights`` has 8 values.
    - ``init_weights`` applies the ``init_bias`` of the heatmaps; upstream
      keeps the task heads in a plain ``ModuleList``, which mmengine skips,
      and training starts from scores of 0.5.
    - On a GPU the branches of all tasks run as a few convolutions, with the
      parameters and the values of the separate ones.
    - All samples and tasks are predicted at once, which waits at most twice
      for a GPU; half precision is decoded in float32. A custom
      ``bbox_coder`` or ``get_task_detections`` is used as upstream uses it.
    - ``nms_type`` in ``test_cfg`` may be a list with an entry per task.
    - Nothing is predicted for a sample without points, as
      :class:`sigplug.Det3DDataPreprocessor` marks them.
    - A value of a target box that is not finite (a NaN velocity, the
      logarithm of a zero height) is left out of the loss; upstream masks a
      NaN too, but NaN times 0 is still NaN.

    Decoding uses the plain sigmoid: the clip is there for the logarithm of
    the loss.

    Functions in the list ``heatmap_observers`` are called with the number,
    the logits and the target of each task, ``(B, classes, H, W)`` in float32,
    whenever the losses are computed.

    Args:
        *args: Those of mmdet3d's ``CenterHead``.
        heatmap_act (dict): Config of the activation in front of
            ``loss_cls``. Defaults to ``dict(type='ClipSigmoid')``, and to
            none where ``loss_cls`` takes logits.
        class_weights (Sequence[float], optional): Weights of the heatmap
            losses of all classes, in the order of the tasks, for rare
            classes. Defaults to None, all 1.
        log_class_losses (bool): Also log the heatmap loss of each class, as
            ``task{i}.heatmap_{class}``; their sum is the loss of the task.
            Defaults to False.
        heatmap_prior (float, optional): Score in (0, 1) that training from
            scratch starts from, in place of the ``init_bias`` of
            ``separate_head``: 0.01 where few of very many cells hold an
            object. Defaults to None, ``init_bias``, a score of 0.1.
        ignore_label (int, optional): Boxes of this label are regions without
            labels: their cells take no part in the heatmap loss. mmdet3d's
            data sets and ``ObjectNameFilter`` drop boxes of label -1, so
            give them one behind those of the classes. Defaults to None.
        **kwargs: Those of mmdet3d's ``CenterHead``. ``train_cfg`` may hold
            ``oriented_gaussians=True``, see
            :func:`sigplug.ops.center_targets`.

    Raises:
        TypeError: ``heatmap_act`` is not a config.
        ValueError: ``heatmap_act`` is given and ``loss_cls`` takes logits,
            its reduction is not ``'mean'``, ``code_weights`` in
            ``train_cfg`` does not fit ``common_heads``, ``test_cfg`` and
            ``bbox_coder`` lack what predictions need, or another argument is
            out of its range.
    """

    heatmap_prior: float | None = None
    log_class_losses = False
    ignore_label: int | None = None

    def __init__(self,
                 *args: Any,
                 heatmap_act: dict | None = None,
                 class_weights: Sequence[float] | None = None,
                 log_class_losses: bool = False,
                 heatmap_prior: float | None = None,
                 ignore_label: int | None = None,
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if heatmap_prior is not None:
            check_between('heatmap_prior', heatmap_prior, 0.0, 1.0)
        if ignore_label in range(sum(self.num_classes)):
            raise ValueError(
                'ignore_label must be the label of no class, such as '
                f'{sum(self.num_classes)}, but is {ignore_label}')
        self.heatmap_prior = heatmap_prior
        self.log_class_losses = log_class_losses
        self.ignore_label = ignore_label
        self.set_up(heatmap_act, class_weights)

    def set_up(self,
               heatmap_act: dict | None = None,
               class_weights: Sequence[float] | None = None) -> None:
        """Check the parts of the stock head, and build what it lacks."""
        check_reductions(self, 'loss_cls')
        # 'none', mmdet3d's default, is averaged over the boxes like 'mean'.
        if getattr(self.loss_bbox, 'reduction', None) == 'sum':
            raise ValueError("loss_bbox.reduction must be 'mean' or 'none', "
                             "but is 'sum': the loss is averaged over boxes")
        self.heatmap_act = build_heatmap_act(
            heatmap_act, self.loss_cls, 'ClipSigmoid')
        self.heatmap_observers: list[Callable[[int, Tensor, Tensor],
                                              None]] = []
        # DCNSeparateHead keeps its regression branches one level down.
        first = self.task_heads[0]
        self.with_velocity = 'vel' in getattr(first, 'task_head', first).heads
        # A box is (x, y, z, dx, dy, dz, yaw[, vx, vy]); the targets encode
        # the yaw as (sin, cos).
        self.box_size = 9 if self.with_velocity else 7
        code_weights = check_code_weights(
            self.train_cfg or {}, self.box_size + 1)
        if (self.test_cfg and self._decodes_itself
                and type(self).predict_by_feat is CenterHead.predict_by_feat):
            check_test_cfg(self.test_cfg, self.bbox_coder,
                           len(self.num_classes), self.box_size)
        for name in losses_without_act(type(self), CenterHead):
            warn(f'{name} uses neither heatmap_act nor that of CenterHead: '
                 'its loss ignores the activation that the config selects. '
                 'Let it call super() or apply self.heatmap_act to the '
                 'logits')
        # Buffers, as a list in a training step would wait for a GPU; no part
        # of the state_dict. A head that is accelerated may be on one already.
        device = next(self.parameters()).device
        self.register_buffer(
            '_code_weights', code_weights.to(device), persistent=False)
        self.register_buffer(
            '_class_weights', None if class_weights is None else
            check_class_weights(class_weights, sum(self.num_classes)),
            persistent=False)

        self._joint_branches = JointBranches(self.task_heads)

    def forward_single(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Return the maps of each task from the features of one level."""
        x = self.shared_conv(x)
        joint = self._joint_branches
        # A CPU is faster branch by branch, and tracers see the stock modules.
        if x.is_cuda and not is_traced() and joint.are_free():
            return joint(x)
        if not joint.branches:
            # mmcv's deformable convolutions take no channels_last.
            x = x.contiguous()
        # Nor does the ``view`` of upstream's decoding.
        return [{name: maps.contiguous() for name, maps in task(x).items()}
                for task in self.task_heads]

    @property
    def heatmap_clip(self) -> tuple[float, float, bool] | None:
        """Return the bounds of the scores in the loss, None without a clip.

        The third value is True if the gradient is zero outside of them.
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
        never reaches, also draws their convolutions again, from a
        distribution so wide that the first losses are 20 times larger.
        """
        super().init_weights()
        for task_head in self.task_heads:
            # DCNSeparateHead calls its heatmap branch cls_head.
            branch = getattr(task_head, 'heatmap', None) or task_head.cls_head
            nn.init.constant_(
                branch[-1].bias, task_head.init_bias
                if self.heatmap_prior is None else
                math.log(self.heatmap_prior / (1 - self.heatmap_prior)))

    def get_targets(
        self, batch_gt_instances_3d: list[InstanceData]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Return heatmaps, boxes, indices of their cells and masks by task.

        They equal mmdet3d's; the boxes have 7 values without a velocity. See
        ``head_targets``, also for the errors.
        """
        return head_targets(
            batch_gt_instances_3d, self.train_cfg, self.num_classes,
            self.box_size, self.norm_bbox)

    def loss_by_feat(self, preds_dicts: tuple[list[dict]],
                     batch_gt_instances_3d: list[InstanceData], *args: Any,
                     **kwargs: Any) -> dict[str, Tensor]:
        """Compute the heatmap loss and the box loss of each task.

        The arguments are upstream's; the predictions are left as they are.

        Returns:
            dict[str, Tensor]: ``task{i}.loss_heatmap`` and
            ``task{i}.loss_bbox``, float32 scalars; with ``log_class_losses``
            also ``task{i}.heatmap_{class}``, without a gradient.

        Raises:
            ValueError: The predictions have another number of samples, or
                another grid than ``train_cfg``, or that is incomplete.
        """
        _check_batch(preds_dicts, len(batch_gt_instances_3d))
        targets = self.get_targets(batch_gt_instances_3d)
        self._check_grid(preds_dicts, targets[0])
        weight = None if self.ignore_label is None else label_weights(
            batch_gt_instances_3d, self.train_cfg, self.ignore_label)
        heatmaps, boxes, index, mask = targets
        preds = [{key: upcast_half(x) for key, x in levels[0].items()}
                 for levels in preds_dicts]
        losses = {}
        for i, (pred, heatmap, box_loss) in enumerate(zip(
                preds, heatmaps, self._box_losses(preds, boxes, index, mask),
                strict=True)):
            logits = pred['heatmap']
            with torch.no_grad():
                for observe in self.heatmap_observers:
                    observe(i, logits, heatmap)
            losses.update(self._heatmap_losses(i, logits, heatmap, weight))
            losses[f'task{i}.loss_bbox'] = box_loss
        return losses

    def _heatmap_losses(self, task: int, logits: Tensor, target: Tensor,
                        weight: Tensor | None) -> dict[str, Tensor]:
        """Compute the heatmap loss of a task, and what is logged beside."""
        name = f'task{task}.loss_heatmap'
        if (weight is None and self._class_weights is None
                and not self.log_class_losses):
            return {name: heatmap_loss(
                self.heatmap_act, self.loss_cls, logits, target,
                avg_factor=count_peaks(target))}
        values = class_losses(
            self.heatmap_act, self.loss_cls, logits, target, weight)
        if self._class_weights is not None:
            first = sum(self.num_classes[:task])
            values = values * self._class_weights[first:first + len(values)]
        losses = {name: values.sum()}
        if self.log_class_losses:
            # mmengine adds up what has "loss" in its name.
            losses.update(zip(
                (f'task{task}.heatmap_{key}' for key in
                 self.class_names[task]), values.detach(), strict=True))
        return losses

    def _box_losses(self, preds: list[dict[str, Tensor]],
                    boxes: list[Tensor], index: list[Tensor],
                    mask: list[Tensor]) -> Sequence[Tensor]:
        """Compute the box loss of each task at the cells of its objects."""
        keys = ['reg', 'height', 'dim', 'rot']
        if self.with_velocity:
            keys.append('vel')
        target, cells, known = (
            torch.stack(values, dim=1) for values in (boxes, index, mask))
        maps = torch.cat([pred[key] for pred in preds for key in keys], dim=1)
        pred = maps.flatten(2).unflatten(1, (len(preds), -1)).transpose(
            2, 3).gather(2, cells.unsqueeze(3).expand_as(target))
        count = known.sum((0, 2)) + 1e-4 + AVG_FACTOR_EPS
        known = known.unsqueeze(3) * target.isfinite()
        target = target.nan_to_num(0.0, 0.0, 0.0)
        # Weighted and averaged here: given a weight, mmdet's losses first
        # check whether any is positive, and so wait for a GPU.
        loss = self.loss_bbox(pred.flatten(0, 1), target.flatten(0, 1),
                              reduction_override='none').view_as(target)
        return ((loss * known * self._code_weights).sum((0, 2, 3))
                / count).unbind()

    def predict_by_feat(self, preds_dicts: tuple[list[dict]],
                        batch_input_metas: list[dict], *args: Any,
                        **kwargs: Any) -> list[InstanceData]:
        """Return the boxes of each sample, from upstream's arguments.

        Returns:
            list[InstanceData]: ``bboxes_3d``, ``scores_3d`` and
            ``labels_3d`` of each sample; empty where its ``metainfo`` has
            ``no_points``, whatever the network makes of an empty map.

        Raises:
            ValueError: The predictions have another number of samples.
        """
        _check_batch(preds_dicts, len(batch_input_metas))
        found = (self._predict(preds_dicts, batch_input_metas)
                 if self._decodes_itself else super().predict_by_feat(
                     preds_dicts, batch_input_metas, *args, **kwargs))
        return [
            boxes[:0] if meta.get('no_points') else boxes
            for boxes, meta in zip(found, batch_input_metas, strict=True)
        ]

    @property
    def _decodes_itself(self) -> bool:
        """Return whether no part of upstream's decoding was replaced."""
        return (getattr(type(self.bbox_coder), 'decode', None)
                is CenterPointBBoxCoder.decode
                and type(self).get_task_detections
                is _CenterHead.get_task_detections)

    def _predict(self, preds_dicts: tuple[list[dict]],
                 metas: list[dict]) -> list[InstanceData]:
        """Return what upstream predicts, for all samples and tasks at once."""
        found = decode([levels[0] for levels in preds_dicts], self.bbox_coder,
                       self.norm_bbox)
        rows, counts = suppress(found, self.test_cfg)
        boxes, scores, labels = (
            values.flatten(0, 2).index_select(0, rows)
            for values in (found.boxes, found.scores, found.labels))
        # From the centre to that of the bottom.
        boxes = torch.cat((
            boxes[:, :2], boxes[:, 2:3] - boxes[:, 5:6] * 0.5, boxes[:, 3:]),
            dim=1)
        return [
            InstanceData(
                bboxes_3d=meta['box_type_3d'](
                    own, self.bbox_coder.code_size),
                scores_3d=score,
                labels_3d=label)
            for meta, own, score, label in zip(
                metas, boxes.split(counts), scores.split(counts),
                labels.split(counts), strict=True)
        ]

    def _check_grid(self, preds_dicts: tuple[list[dict]],
                    heatmaps: list[Tensor]) -> None:
        """Raise a ``ValueError`` where predictions and targets differ."""
        found = preds_dicts[0][0]['heatmap'].shape[1:]
        wanted = heatmaps[0].shape[1:]
        if found != wanted:
            cfg = self.train_cfg
            raise ValueError(
                'the predicted heatmaps have the shape (classes, y, x) = '
                f'{tuple(found)}, those of train_cfg {tuple(wanted)}: '
                f"grid_size={list(cfg['grid_size'])} over "
                f"out_size_factor={cfg['out_size_factor']}. Give train_cfg "
                'the grid of the voxels, and the backbone and the neck '
                'strides that divide it by out_size_factor')


def _check_batch(preds_dicts: tuple[list[dict]], size: int) -> None:
    """Raise a ``ValueError`` where predictions lack samples of the batch."""
    found = len(preds_dicts[0][0]['heatmap'])
    if found != size:
        raise ValueError(
            f'the features are of {found} samples, but the batch has {size}: '
            'its last one has no points in range, and mmdet3d does not count '
            "it. Choose type='sigplug.Det3DDataPreprocessor' for "
            'model.data_preprocessor')
