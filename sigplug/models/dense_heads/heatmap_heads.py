"""mmdet's heads on heatmaps with an activation that is chosen by config."""
from typing import Any

import torch
from mmdet.models.dense_heads import CenterNetHead as _CenterNetHead
from mmdet.models.dense_heads import CentripetalHead as _CentripetalHead
from mmdet.models.dense_heads import CornerHead as _CornerHead
from mmdet.models.dense_heads.centernet_update_head import (
    CenterNetUpdateHead as _CenterNetUpdateHead,
)
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from sigplug.ops._dtypes import upcast_half
from sigplug.registry import MODELS

from .heatmap_loss import (
    SelectableAct,
    check_reductions,
    count_peaks,
    heatmap_loss,
)
from .image_targets import CenterNetTargets, CornerTargets


@MODELS.register_module()
class CenterNetHead(SelectableAct, CenterNetTargets, _CenterNetHead):
    """Drop-in for mmdet's ``CenterNetHead`` with a selectable activation.

    Arguments, parameter names, losses and predictions are those of mmdet 3.3
    at the default settings. What differs: ``forward`` returns the heatmap as
    logits, their activation for the loss is computed at least in float32,
    also under autocast, and targets are computed without a loop per box.

    Decoding uses the plain sigmoid: a clip is there for the logarithm of the
    loss.

    Args:
        *args: Those of mmdet's ``CenterNetHead``.
        heatmap_act (dict, optional): Config of the activation in front of
            ``loss_center_heatmap``. Defaults to ``dict(type='Sigmoid')``, and
            to none where the loss takes logits.
        **kwargs: Those of mmdet's ``CenterNetHead``.

    Raises:
        ValueError: ``heatmap_act`` is given and ``loss_center_heatmap`` takes
            logits, or the reduction of a loss is not ``'mean'``.
    """

    default_act = 'Sigmoid'
    averaged = 'loss_center_heatmap', 'loss_wh', 'loss_offset'

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the heatmap of one level as logits, sizes and offsets."""
        return self.heatmap_head(x), self.wh_head(x), self.offset_head(x)

    def loss_by_feat(self, center_heatmap_preds: list[Tensor], *args: Any,
                     **kwargs: Any) -> dict[str, Tensor]:
        """Compute mmdet's losses from the logits that ``forward`` returns."""
        heatmaps = [self.heatmap_act(upcast_half(logits))
                    for logits in center_heatmap_preds]
        return super().loss_by_feat(heatmaps, *args, **kwargs)

    def predict_by_feat(self, center_heatmap_preds: list[Tensor], *args: Any,
                        **kwargs: Any) -> list[InstanceData]:
        """Decode the logits that ``forward`` returns as mmdet does."""
        probs = [logits.sigmoid() for logits in center_heatmap_preds]
        return super().predict_by_feat(probs, *args, **kwargs)


@MODELS.register_module()
class CenterNetUpdateHead(SelectableAct, _CenterNetUpdateHead):
    """Drop-in for mmdet's ``CenterNetUpdateHead``, with logits.

    Arguments, parameter names, losses and predictions are those of mmdet 3.3
    at the default settings. What differs:

    - The activation for the loss is computed at least in float32, also under
      autocast: float16 and bfloat16 round upstream's bound 1 - 1e-4 to 1,
      whose logarithm is infinite.
    - An image without boxes is background. Upstream's target is
      ``num_classes`` in all of its cells, which weighs each of them by
      ``(num_classes - 1) ** gamma``.

    Args:
        *args: Those of mmdet's ``CenterNetUpdateHead``.
        heatmap_act (dict, optional): Config of the activation in front of
            ``loss_cls``. Defaults to ``dict(type='ClipSigmoid')``, and to
            none where ``loss_cls`` takes logits.
        **kwargs: Those of mmdet's ``CenterNetUpdateHead``.

    Raises:
        ValueError: ``heatmap_act`` is given and ``loss_cls`` takes logits, or
            the reduction of a loss is not ``'mean'``.
    """

    averaged = 'loss_cls', 'loss_bbox'

    def loss_by_feat(
            self,
            cls_scores: list[Tensor],
            bbox_preds: list[Tensor],
            batch_gt_instances: list[InstanceData],
            batch_img_metas: list[dict],
            batch_gt_instances_ignore: list[InstanceData] | None = None
    ) -> dict[str, Tensor]:
        """Compute the losses of the heatmaps and of the boxes.

        The arguments are mmdet's, with logits as ``cls_scores``.
        """
        logits, boxes = _to_rows(cls_scores), _to_rows(bbox_preds)
        assert boxes.isfinite().all(), 'bbox_preds are not finite'
        sizes = [scores.shape[-2:] for scores in cls_scores]
        level_points = self.prior_generator.grid_priors(
            sizes, dtype=boxes.dtype, device=boxes.device)
        points = torch.cat([
            level.repeat(len(batch_gt_instances), 1)
            for level in level_points])
        heatmap, bbox_targets = self.get_targets(
            level_points, batch_gt_instances)
        # The peaks of a box, as many as fit it well; None without any box.
        pos_inds, pos_labels = self.add_cls_pos_inds(
            points, boxes, points.new_tensor(sizes), batch_gt_instances)
        num_peaks = boxes.new_tensor(0 if pos_inds is None else len(pos_inds))
        loss_cls = heatmap_loss(
            self.heatmap_act, self.loss_cls, logits, heatmap,
            pos_inds=pos_inds, pos_labels=pos_labels,
            avg_factor=reduce_mean(num_peaks).clamp(min=1))
        return dict(
            loss_cls=loss_cls,
            loss_bbox=self._bbox_loss(points, boxes, bbox_targets, heatmap))

    def _bbox_loss(self, points: Tensor, boxes: Tensor, targets: Tensor,
                   heatmap: Tensor) -> Tensor:
        """Compute the loss of the boxes of all cells that have a target."""
        cells = (targets.amax(1) >= 0).nonzero().squeeze(1)
        weight = heatmap.amax(1)[cells]
        if not self.soft_weight_on_reg:
            weight = torch.ones_like(weight)
        # Every process takes part, also one without boxes.
        avg_factor = reduce_mean(weight.sum()).clamp(min=1)
        if len(cells) == 0:
            return boxes.sum() * 0
        decoded, decoded_targets = (
            self.bbox_coder.decode(points[cells], distances[cells])
            for distances in (boxes, targets))
        return self.loss_bbox(decoded, decoded_targets, weight=weight,
                              avg_factor=avg_factor)

    def _get_targets_single(self, gt_instances: InstanceData, *args: Any,
                            **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return mmdet's targets, with no peak in an image without boxes."""
        heatmap, boxes = super()._get_targets_single(
            gt_instances, *args, **kwargs)
        if len(gt_instances) == 0:
            heatmap = boxes.new_zeros(heatmap.shape)
        return heatmap, boxes


def _to_rows(levels: list[Tensor]) -> Tensor:
    """Return the cells of all levels and images, ``(N, channels)``."""
    return torch.cat([
        level.permute(0, 2, 3, 1).flatten(0, 2) for level in levels])


@MODELS.register_module()
class CornerHead(SelectableAct, CornerTargets, _CornerHead):
    """Drop-in for mmdet's ``CornerHead`` with a selectable activation.

    Arguments, parameter names, losses and predictions are those of mmdet 3.3
    at the default settings, except that the activation for the loss is
    computed at least in float32, also under autocast, and targets are
    computed without a loop per box.

    Args:
        *args: Those of mmdet's ``CornerHead``.
        heatmap_act (dict, optional): Config of the activation in front of
            ``loss_heatmap``, for both corners. Defaults to
            ``dict(type='Sigmoid')``, and to none where the loss takes logits.
        **kwargs: Those of mmdet's ``CornerHead``.

    Raises:
        ValueError: ``heatmap_act`` is given and ``loss_heatmap`` takes
            logits, or the reduction of a loss is not ``'mean'``.
    """

    default_act = 'Sigmoid'
    averaged = 'loss_heatmap', 'loss_offset'

    def loss_by_feat_single(self, tl_hmp: Tensor, br_hmp: Tensor,
                            tl_emb: Tensor | None, br_emb: Tensor | None,
                            tl_off: Tensor, br_off: Tensor,
                            targets: dict) -> tuple[Tensor | None, ...]:
        """Compute the losses of one level.

        The arguments are mmdet's, with logits as ``tl_hmp`` and ``br_hmp``.

        Returns:
            tuple[Tensor | None, ...]: Losses of the heatmaps, of embeddings
            to pull and to push (None without them), and of the offsets.
        """
        det_losses, off_losses = [], []
        for corner, logits, offset in (('topleft', tl_hmp, tl_off),
                                       ('bottomright', br_hmp, br_off)):
            heatmap = targets[f'{corner}_heatmap']
            det_losses.append(heatmap_loss(
                self.heatmap_act, self.loss_heatmap, logits, heatmap,
                avg_factor=count_peaks(heatmap)))
            # Corners of any class.
            mask = heatmap.eq(1).any(1, keepdim=True).type_as(heatmap)
            off_losses.append(self.loss_offset(
                offset, targets[f'{corner}_offset'], mask,
                avg_factor=mask.sum().clamp(min=1)))
        pull_loss = push_loss = None
        if self.with_corner_emb and self.loss_embedding is not None:
            pull_loss, push_loss = self.loss_embedding(
                tl_emb, br_emb, targets['corner_embedding'])
        return (torch.stack(det_losses).mean(), pull_loss, push_loss,
                torch.stack(off_losses).mean())


@MODELS.register_module()
class CentripetalHead(_CentripetalHead, CornerHead):
    """Drop-in for mmdet's ``CentripetalHead``, as :class:`CornerHead` is.

    What mmdet's class inherits from mmdet's ``CornerHead`` comes from
    :class:`CornerHead` here.

    Args:
        *args: Those of mmdet's ``CentripetalHead``.
        heatmap_act (dict, optional): As for :class:`CornerHead`.
        **kwargs: Those of mmdet's ``CentripetalHead``.

    Raises:
        ValueError: See :class:`CornerHead`.
    """

    def __init__(self,
                 *args: Any,
                 heatmap_act: dict | None = None,
                 **kwargs: Any) -> None:
        super().__init__(*args, heatmap_act=heatmap_act, **kwargs)
        check_reductions(
            self, 'loss_guiding_shift', 'loss_centripetal_shift')
