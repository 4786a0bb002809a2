"""mmdet's heads on heatmaps with an activation that is chosen by config."""
import math
from typing import Any

from mmdet.models.dense_heads import CenterNetHead as _CenterNetHead
from mmdet.models.dense_heads import CentripetalHead as _CentripetalHead
from mmdet.models.dense_heads import CornerHead as _CornerHead
from mmdet.models.dense_heads.centernet_update_head import (
    CenterNetUpdateHead as _CenterNetUpdateHead,
)
from mmengine.structures import InstanceData
from torch import Tensor

from sigplug.ops._dtypes import upcast_half
from sigplug.registry import MODELS

from ..arguments import check_keywords
from .heatmap_act import HeatmapLogits, build_heatmap_act


@MODELS.register_module()
class CenterNetHead(_CenterNetHead):
    """Drop-in for mmdet's ``CenterNetHead`` with a selectable activation.

    Arguments, parameter names, losses and predictions are those of mmdet 3.3
    at the default settings. What differs: ``forward`` returns the heatmap as
    logits, and their activation for the loss is computed at least in float32,
    also under autocast.

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
            logits.
    """

    def __init__(self,
                 *args: Any,
                 heatmap_act: dict | None = None,
                 **kwargs: Any) -> None:
        check_keywords(self, kwargs)
        super().__init__(*args, **kwargs)
        self.heatmap_act = build_heatmap_act(
            heatmap_act, self.loss_center_heatmap, dict(type='Sigmoid'))

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict from the features of one level.

        Args:
            x (Tensor): Features, ``(B, in_channels, H, W)``.

        Returns:
            tuple[Tensor, Tensor, Tensor]: Logits of the heatmap
            ``(B, num_classes, H, W)``, sizes and offsets ``(B, 2, H, W)``.
        """
        return self.heatmap_head(x), self.wh_head(x), self.offset_head(x)

    def loss_by_feat(self, center_heatmap_preds: list[Tensor], *args: Any,
                     **kwargs: Any) -> dict[str, Tensor]:
        """Losses of mmdet, of the logits that ``forward`` returns."""
        probs = [self.heatmap_act(upcast_half(logits))
                 for logits in center_heatmap_preds]
        return super().loss_by_feat(probs, *args, **kwargs)

    def predict_by_feat(self, center_heatmap_preds: list[Tensor], *args: Any,
                        **kwargs: Any) -> list[InstanceData]:
        """Predictions of mmdet, of the logits that ``forward`` returns."""
        probs = [logits.sigmoid() for logits in center_heatmap_preds]
        return super().predict_by_feat(probs, *args, **kwargs)


@MODELS.register_module()
class CenterNetUpdateHead(_CenterNetUpdateHead):
    """Drop-in for mmdet's ``CenterNetUpdateHead``, see there.

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
        ValueError: ``heatmap_act`` is given and ``loss_cls`` takes logits.
    """

    def __init__(self,
                 *args: Any,
                 heatmap_act: dict | None = None,
                 **kwargs: Any) -> None:
        check_keywords(self, kwargs)
        super().__init__(*args, **kwargs)
        self.heatmap_act = build_heatmap_act(
            heatmap_act, self.loss_cls, dict(type='ClipSigmoid'))
        # Upstream clamps to [c, 1 - c] what heatmap_act returns: no more.
        self.sigmoid_clamp = -math.inf

    def loss_by_feat(self, cls_scores: list[Tensor], *args: Any,
                     **kwargs: Any) -> dict[str, Tensor]:
        """Losses of mmdet, with ``heatmap_act`` in place of its sigmoid."""
        logits = [HeatmapLogits(x, self.heatmap_act) for x in cls_scores]
        return super().loss_by_feat(logits, *args, **kwargs)

    def _get_targets_single(self, gt_instances: InstanceData, *args: Any,
                            **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Targets of mmdet, with no peak in an image without boxes."""
        heatmap, boxes = super()._get_targets_single(
            gt_instances, *args, **kwargs)
        if len(gt_instances) == 0:
            heatmap = boxes.new_zeros(heatmap.shape)
        return heatmap, boxes


@MODELS.register_module()
class CornerHead(_CornerHead):
    """Drop-in for mmdet's ``CornerHead`` with a selectable activation.

    Arguments, parameter names, losses and predictions are those of mmdet 3.3
    at the default settings, except that the activation for the loss is
    computed at least in float32, also under autocast.

    Args:
        *args: Those of mmdet's ``CornerHead``.
        heatmap_act (dict, optional): Config of the activation in front of
            ``loss_heatmap``, for both corners. Defaults to
            ``dict(type='Sigmoid')``, and to none where the loss takes logits.
        **kwargs: Those of mmdet's ``CornerHead``.

    Raises:
        ValueError: ``heatmap_act`` is given and ``loss_heatmap`` takes
            logits.
    """

    def __init__(self,
                 *args: Any,
                 heatmap_act: dict | None = None,
                 **kwargs: Any) -> None:
        check_keywords(self, kwargs)
        super().__init__(*args, **kwargs)
        self.heatmap_act = build_heatmap_act(
            heatmap_act, self.loss_heatmap, dict(type='Sigmoid'))

    def loss_by_feat_single(self, tl_hmp: Tensor, br_hmp: Tensor, *args: Any,
                            **kwargs: Any) -> tuple[Tensor | None, ...]:
        """Losses of mmdet, with ``heatmap_act`` in place of its sigmoid."""
        return super().loss_by_feat_single(
            HeatmapLogits(tl_hmp, self.heatmap_act),
            HeatmapLogits(br_hmp, self.heatmap_act), *args, **kwargs)


@MODELS.register_module()
class CentripetalHead(CornerHead, _CentripetalHead):
    """Drop-in for mmdet's ``CentripetalHead``, as :class:`CornerHead` is.

    Args:
        *args: Those of mmdet's ``CentripetalHead``.
        heatmap_act (dict, optional): That of :class:`CornerHead`.
        **kwargs: Those of mmdet's ``CentripetalHead``.

    Raises:
        ValueError: ``heatmap_act`` is given and ``loss_heatmap`` takes
            logits.
    """
