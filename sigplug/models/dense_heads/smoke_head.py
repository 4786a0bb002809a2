"""SMOKE's head with an activation that is chosen by config."""
from typing import Any

import torch
import torch.nn.functional as F
from mmdet3d.models.dense_heads import SMOKEMono3DHead as _SMOKEMono3DHead
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sigplug.ops._dtypes import upcast_half
from sigplug.registry import MODELS

from .heatmap_loss import SelectableAct, count_peaks
from .image_targets import ImageCells, box_radius, sample_of, scale_of


def as_scores(logits: list[Tensor],
              boxes: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return upstream's scores, which it also clips to predict, in float32."""
    return ([upcast_half(x).sigmoid().clamp(1e-4, 1 - 1e-4) for x in logits],
            [upcast_half(x) for x in boxes])


@MODELS.register_module()
class SMOKEMono3DHead(SelectableAct, _SMOKEMono3DHead):
    """Drop-in for mmdet3d's ``SMOKEMono3DHead``, with logits.

    Arguments, parameter names, losses and predictions are those of mmdet3d
    1.4 at the default settings. What differs:

    - ``forward`` returns the heatmap as logits. Their activation for the
      loss, and the decoding of the boxes, are computed at least in float32,
      also under autocast.
    - Targets are computed without a loop per box.
    - A batch without any box has a loss; upstream's raises an error.

    Args:
        *args: Those of mmdet3d's ``SMOKEMono3DHead``.
        heatmap_act (dict, optional): Config of the activation in front of
            ``loss_cls``. Defaults to ``dict(type='ClipSigmoid')``, and to
            none where ``loss_cls`` takes logits.
        **kwargs: Those of mmdet3d's ``SMOKEMono3DHead``.

    Raises:
        TypeError: ``heatmap_act`` is not a config.
        ValueError: ``heatmap_act`` is given and ``loss_cls`` takes logits, or
            its reduction is not ``'mean'``.
    """

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the heatmap of one level as logits, and the boxes."""
        # Of the base class: upstream's own ends in scores.
        logits, boxes, *_ = super(_SMOKEMono3DHead, self).forward_single(x)
        size, yaw = boxes[:, self.dim_channel], boxes[:, self.ori_channel]
        boxes = boxes.clone()
        boxes[:, self.dim_channel] = size.sigmoid() - 0.5
        boxes[:, self.ori_channel] = F.normalize(yaw)
        return logits, boxes

    def loss_by_feat(self, cls_scores: list[Tensor],
                     bbox_preds: list[Tensor],
                     batch_gt_instances_3d: list[InstanceData], *args: Any,
                     **kwargs: Any) -> dict[str, Tensor]:
        """Compute upstream's losses from the logits of ``forward``."""
        logits, boxes = upcast_half(cls_scores[0]), upcast_half(bbox_preds[0])
        heatmap = self.heatmap_act(logits)
        if not any(len(gt) for gt in batch_gt_instances_3d):
            return dict(
                loss_cls=self.loss_cls(
                    heatmap, torch.zeros_like(heatmap), avg_factor=1),
                loss_bbox=boxes.sum() * 0)
        with torch.autocast(boxes.device.type, enabled=False):
            return super().loss_by_feat(
                [heatmap], [boxes], batch_gt_instances_3d, *args, **kwargs)

    def predict_by_feat(self, cls_scores: list[Tensor],
                        bbox_preds: list[Tensor], *args: Any,
                        **kwargs: Any) -> list[InstanceData]:
        """Decode the logits that ``forward`` returns as upstream does."""
        return super().predict_by_feat(
            *as_scores(cls_scores, bbox_preds), *args, **kwargs)

    def get_targets(
            self, batch_gt_instances_3d: list[InstanceData],
            batch_gt_instances: list[InstanceData], feat_shape: tuple,
            batch_img_metas: list[dict]) -> tuple[Tensor, Tensor, dict]:
        """Return upstream's targets, from the same arguments."""
        batch, _, height, width = feat_shape
        scale = scale_of(feat_shape, batch_img_metas)
        centers = [gt.centers_2d for gt in batch_gt_instances_3d]
        boxes_3d = [gt.bboxes_3d.to(x.device) for gt, x in zip(
            batch_gt_instances_3d, centers, strict=True)]
        boxes = torch.cat([gt.bboxes for gt in batch_gt_instances])
        labels = torch.cat([gt.labels for gt in batch_gt_instances])

        sample = sample_of(centers)
        cells = ImageCells(
            (torch.cat(centers) * scale).long(), sample,
            torch.ones_like(sample, dtype=torch.bool), (batch, height, width))
        heatmap = cells.draw(
            box_radius((boxes[:, 2:] - boxes[:, :2]) * scale, 0.7), labels,
            self.num_classes).to(boxes.dtype)

        # Rows of the objects of each image, zeros after its last.
        padded, locations, labels_3d, exists = (
            pad_sequence(values, batch_first=True) for values in (
                centers, [x.tensor[:, :3] for x in boxes_3d],
                [gt.labels_3d for gt in batch_gt_instances_3d],
                [torch.ones_like(x[:, 0], dtype=torch.bool)
                 for x in centers]))
        tensor = torch.cat([x.tensor for x in boxes_3d])
        learnt = torch.tensor([not meta['affine_aug'] for meta in
                               batch_img_metas], device=sample.device)
        return heatmap, count_peaks(heatmap), dict(
            gt_centers_2d=(padded.flatten(0, 1) * scale).long(),
            gt_labels_3d=labels_3d,
            indices=exists.flatten(),
            reg_indices=learnt[sample],
            gt_locs=locations.flatten(0, 1),
            gt_dims=tensor[:, 3:6],
            gt_yaws=tensor[:, 6:7],
            gt_cors=torch.cat([x.corners for x in boxes_3d]))
