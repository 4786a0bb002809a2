"""MonoFlex's head, completed, with an activation that is chosen by config."""
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.utils.gaussian_target import (
    get_local_maximum,
    get_topk_from_heatmap,
    transpose_and_gather_feat,
)
from mmdet3d.models.dense_heads import MonoFlexHead as _MonoFlexHead
from mmdet3d.models.utils import (
    filter_outside_objs,
    get_keypoints,
    handle_proj_objs,
)
from mmengine.structures import InstanceData
from torch import Tensor, nn

from sigplug.ops._dtypes import upcast_half
from sigplug.registry import MODELS

from .heatmap_loss import SelectableAct, count_peaks, heatmap_loss
from .image_targets import ImageCells, box_radius, sample_of, scale_of
from .smoke_head import as_scores


@MODELS.register_module()
class MonoFlexHead(SelectableAct, _MonoFlexHead):
    """mmdet3d's ``MonoFlexHead``, completed so that it trains and predicts.

    Arguments, parameter names and the forward pass are those of mmdet3d 1.4,
    with the heatmap as logits. Its targets, losses and predictions cannot be
    upstream's, which end in errors: ``loss`` calls itself, ``get_targets``
    expects three results of ``get_keypoints``, the losses ask for keys that
    the targets and the coder do not have, ``MultiBinLoss`` returns after the
    first bin, decoding leaves out an argument of the coder, and the truncated
    objects' ellipses divide by 0. Here they follow the paper
    (`Zhang et al., 2021 <https://arxiv.org/abs/2104.02323>`_): offsets,
    keypoints and 2-D boxes in cells of the feature map, an ellipse of
    ``sigma = (2 r + 1) / 6`` for an object whose centre is outside the image,
    all bins of the orientation.

    Targets are computed without a loop per box. All losses, and the decoding,
    are computed at least in float32, also under autocast.

    Args:
        *args: Those of mmdet3d's ``MonoFlexHead``.
        heatmap_act (dict, optional): Config of the activation in front of
            ``loss_cls``. Defaults to ``dict(type='ClipSigmoid')``, and to
            none where ``loss_cls`` takes logits.
        **kwargs: Those of mmdet3d's ``MonoFlexHead``.

    Raises:
        TypeError: ``heatmap_act`` is not a config.
        ValueError: ``heatmap_act`` is given and ``loss_cls`` takes logits, or
            its reduction is not ``'mean'``.
    """

    def init_weights(self) -> None:
        """Initialise as upstream means to, which looks for absent layers."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.conv_cls.bias, self.init_bias)
        for branch in (4, 7):
            nn.init.xavier_normal_(self.conv_regs[branch][0].weight, 0.01)

    def forward_single(self, x: Tensor,
                       batch_img_metas: list[dict]) -> tuple[Tensor, Tensor]:
        """Return the heatmap of one level as logits, and the boxes."""
        # Upstream returns scores; its logits leave the last of these.
        last = self.edge_fuse_cls if self.use_edge_fusion else self.conv_cls
        seen: list[Tensor] = []
        handle = last.register_forward_hook(
            lambda module, args, out: seen.append(out))
        try:
            _, boxes = super().forward_single(x, batch_img_metas)
        finally:
            handle.remove()
        return seen[0], boxes

    def loss(self, x: list[Tensor], batch_data_samples: list,
             **kwargs: Any) -> dict[str, Tensor]:
        """Compute the losses of features and of annotated samples."""
        metas = [sample.metainfo for sample in batch_data_samples]
        cls_scores, bbox_preds = self(x, metas)
        return self.loss_by_feat(
            cls_scores, bbox_preds,
            [sample.gt_instances_3d for sample in batch_data_samples],
            [sample.gt_instances for sample in batch_data_samples], metas)

    def predict(self, x: list[Tensor], batch_data_samples: list,
                rescale: bool = False) -> list[InstanceData]:
        """Return the boxes of each sample; ``rescale`` has no effect."""
        metas = [sample.metainfo for sample in batch_data_samples]
        cls_scores, bbox_preds = self(x, metas)
        return self.predict_by_feat(cls_scores, bbox_preds, metas)

    def predict_by_feat(self, cls_scores: list[Tensor],
                        bbox_preds: list[Tensor],
                        batch_img_metas: list[dict]) -> list[InstanceData]:
        """Decode the logits that ``forward`` returns."""
        return super().predict_by_feat(
            *as_scores(cls_scores, bbox_preds), batch_img_metas)

    def _decode_heatmap(self,
                        cls_score: Tensor,
                        reg_pred: Tensor,
                        batch_img_metas: list[dict],
                        cam2imgs: Tensor,
                        topk: int = 100,
                        kernel: int = 3) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and labels of the highest local maxima."""
        ratio = batch_img_metas[0]['pad_shape'][0] / cls_score.shape[2]
        *found, y, x = get_topk_from_heatmap(
            get_local_maximum(cls_score, kernel=kernel),
            k=min(topk, cls_score[0].numel()))
        scores, index, labels = found
        centers = torch.stack((x, y), -1).flatten(0, 1).to(reg_pred.dtype)
        cameras = cam2imgs.repeat_interleave(scores.shape[1], 0)
        preds = self.bbox_coder.decode(
            transpose_and_gather_feat(reg_pred, index).flatten(0, 1), centers,
            labels.flatten(), ratio, cameras)
        # A pixel at a depth d is (u d, v d, d, 1) of the camera.
        pixels = (centers + preds['offsets2d']) * ratio
        depth = preds['combined_depth'].unsqueeze(1)
        rays = torch.cat((pixels * depth, depth, torch.ones_like(depth)), 1)
        place = torch.linalg.solve(cameras, rays.unsqueeze(2))[:, :3, 0]
        yaw, _ = self.bbox_coder.decode_orientation(
            preds['orientations'], place)
        boxes = torch.cat((place, preds['dimensions'], yaw.unsqueeze(1)), 1)
        return boxes.view(*scores.shape, -1), scores, labels

    def get_targets(
            self, batch_gt_instances_3d: list[InstanceData],
            batch_gt_instances: list[InstanceData], feat_shape: tuple,
            batch_img_metas: list[dict]) -> tuple[Tensor, Tensor, dict]:
        """Return the heatmap, the number of its peaks, and the targets.

        The arguments are upstream's. All targets are of the ``N`` objects of
        the batch, in cells where they are 2-D.
        """
        batch, _, height, width = feat_shape
        scale = scale_of(feat_shape, batch_img_metas)
        boxes_2d = [gt.bboxes for gt in batch_gt_instances]
        labels_2d = [gt.labels for gt in batch_gt_instances]
        centers_2d = [gt.centers_2d for gt in batch_gt_instances_3d]
        labels_3d = [gt.labels_3d for gt in batch_gt_instances_3d]
        # A copy: filter_outside_objs writes into it.
        boxes_3d = [gt.bboxes_3d.to(gt.labels_3d.device).clone()
                    for gt in batch_gt_instances_3d]
        if self.filter_outside_objs:
            filter_outside_objs(boxes_2d, labels_2d, boxes_3d, labels_3d,
                                centers_2d, batch_img_metas)
        bases, _, truncated = handle_proj_objs(
            centers_2d, boxes_2d, batch_img_metas)
        keypoints, deep = get_keypoints(boxes_3d, centers_2d, batch_img_metas)

        boxes, labels = torch.cat(boxes_2d) * scale, torch.cat(labels_2d)
        base, outside = torch.cat(bases) * scale, torch.cat(truncated)
        sample = sample_of(bases)
        cells = ImageCells(base.long(), sample, torch.ones_like(outside),
                           (batch, height, width))
        radius = box_radius(boxes[:, 2:] - boxes[:, :2], 0.7)
        sides = (torch.minimum(cells.cell - boxes[:, :2],
                               boxes[:, 2:] - cells.cell)
                 * self.edge_heatmap_ratio).clamp(min=0).long()
        sides = torch.where(outside.unsqueeze(1), sides, radius.unsqueeze(1))
        ellipses = torch.cat(
            ((2 * sides + 1) / 6, torch.zeros_like(base[:, :1])), 1)
        heatmap = cells.draw(
            sides.amax(1), labels, self.num_classes, ellipses)

        points = torch.cat(keypoints)
        all_boxes = torch.cat([x.tensor for x in boxes_3d])
        return heatmap, count_peaks(heatmap), dict(
            cell=cells.cell, sample=sample, labels=torch.cat(labels_3d),
            bboxes=boxes, offsets=torch.cat(centers_2d) * scale - cells.cell,
            keypoints=points[..., :2] * scale, seen=points[..., 2] > 0,
            depth=all_boxes[:, 2], keypoints_seen=torch.cat(deep),
            dimensions=all_boxes[:, 3:6], orientations=torch.cat(
                [self.bbox_coder.encode(x) for x in boxes_3d]))

    def loss_by_feat(
            self,
            cls_scores: list[Tensor],
            bbox_preds: list[Tensor],
            batch_gt_instances_3d: list[InstanceData],
            batch_gt_instances: list[InstanceData],
            batch_img_metas: list[dict],
            batch_gt_instances_ignore: list | None = None
    ) -> dict[str, Tensor]:
        """Compute the losses; the arguments are upstream's, with logits."""
        logits, reg = cls_scores[0], upcast_half(bbox_preds[0])
        heatmap, peaks, target = self.get_targets(
            batch_gt_instances_3d, batch_gt_instances, logits.shape,
            batch_img_metas)
        cell, sample = target['cell'], target['sample']
        loss_cls = heatmap_loss(self.heatmap_act, self.loss_cls, logits,
                                heatmap, avg_factor=peaks)
        if len(cell) == 0:
            return dict(loss_cls=loss_cls, loss_bbox=reg.sum() * 0)
        cameras = torch.stack([
            reg.new_tensor(meta['cam2img']) for meta in batch_img_metas])
        pred = self.bbox_coder.decode(
            reg[sample, :, cell[:, 1], cell[:, 0]], cell, target['labels'],
            batch_img_metas[0]['pad_shape'][0] / logits.shape[2],
            cameras[sample])
        depth = target['depth']
        seen, deep = target['seen'], target['keypoints_seen']
        losses = dict(
            loss_cls=loss_cls,
            loss_bbox=self.loss_bbox(pred['bboxes2d'], target['bboxes']),
            loss_keypoints=self.loss_keypoints(
                pred['keypoints2d'][seen], target['keypoints'][seen]),
            loss_dir=self.loss_dir.loss_weight * multibin_loss(
                pred['orientations'], target['orientations']),
            loss_dims=self.loss_dims(
                pred['dimensions'], target['dimensions']),
            loss_offsets_2d=self.loss_offsets_2d(
                pred['offsets2d'], target['offsets']),
            loss_direct_depth=_uncertain(
                self.loss_direct_depth, pred['direct_depth'], depth,
                pred['direct_depth_uncertainty']),
            loss_keypoints_depth=_uncertain(
                self.loss_keypoints_depth, pred['keypoints_depth'][deep],
                depth.unsqueeze(1).expand(-1, 3)[deep],
                pred['keypoints_depth_uncertainty'][deep]))
        if pred['combined_depth'] is not None:
            losses['loss_combined_depth'] = self.loss_combined_depth(
                pred['combined_depth'], depth)
        return losses


def multibin_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Compute the loss of orientations in bins.

    Args:
        pred (Tensor): Two logits of each bin, then sine and cosine of the
            angle from its centre, ``(N, 4 bins)``.
        target (Tensor): 1 for each bin that holds the angle, then the angle
            from its centre, ``(N, 2 bins)``.

    Returns:
        Tensor: Mean cross entropy, plus the mean error of sine and cosine in
        the bins that hold the angle.
    """
    bins = target.shape[1] // 2
    holds, angle = target[:, :bins], target[:, bins:]
    logits, vector = pred.view(len(pred), 2, bins, 2).unbind(1)
    distance = (F.normalize(vector, dim=2) - torch.stack(
        (angle.sin(), angle.cos()), 2)).abs().sum(2)
    entropy = F.cross_entropy(
        logits.flatten(0, 1), holds.flatten().long(), reduction='sum')
    return (entropy / holds.numel()
            + (distance * holds).sum() / holds.sum().clamp(min=1))


def _uncertain(loss: Any, pred: Tensor, target: Tensor,
               uncertainty: Tensor) -> Tensor:
    """Weigh a loss by exp(-uncertainty), which costs its mean."""
    mean = uncertainty.sum() / max(uncertainty.numel(), 1)
    return loss(pred, target, torch.exp(-uncertainty)) + (
        mean * loss.loss_weight)
