"""The Gaussian focal loss of logits as a module."""
from functools import partial

import torch
from torch import Tensor, nn

from sigplug.ops._checks import check_weight
from sigplug.ops.gaussian_focal_loss import (
    FocalOptions,
    check_reduction,
    gaussian_focal_loss_with_logits,
)
from sigplug.registry import register_everywhere


@register_everywhere
class GaussianFocalLossWithLogits(nn.Module):
    """Gaussian focal loss that takes logits instead of probabilities.

    See :func:`sigplug.ops.gaussian_focal_loss_with_logits`. The arguments
    are those of mmdet's ``GaussianFocalLoss`` and ``clip``.

    Args:
        alpha (float): Power of the modulating factor. Defaults to 2.0.
        gamma (float): Power of the penalty reduction. Defaults to 4.0.
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``.
            Defaults to ``'mean'``.
        loss_weight (float): Weight of the loss. Defaults to 1.0.
        pos_weight (float): Weight of the peaks. Defaults to 1.0.
        neg_weight (float): Weight of all other cells. Defaults to 1.0.
        clip (float, optional): Clip of the probability; ``None`` is the
            exact loss. Defaults to None.
    """

    # A head passes its logits as they are.
    from_logits = True

    def __init__(self,
                 alpha: float = 2.0,
                 gamma: float = 4.0,
                 reduction: str = 'mean',
                 loss_weight: float = 1.0,
                 pos_weight: float = 1.0,
                 neg_weight: float = 1.0,
                 clip: float | None = None) -> None:
        super().__init__()
        FocalOptions(alpha, gamma, pos_weight, neg_weight, clip)
        check_reduction('reduction', reduction)
        check_weight('loss_weight', loss_weight)
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        self.loss_weight = loss_weight
        self.pos_weight = pos_weight
        self.neg_weight = neg_weight
        self.clip = clip

    def forward(self,
                pred: Tensor,
                target: Tensor,
                pos_inds: Tensor | None = None,
                pos_labels: Tensor | None = None,
                weight: Tensor | None = None,
                avg_factor: float | Tensor | None = None,
                reduction_override: str | None = None) -> Tensor:
        """Compute the loss of heatmap logits.

        The peaks are the cells of target 1 or, as in mmdet's
        ``CenterNetUpdateHead``, those at ``pos_inds``, which may name a cell
        several times. There ``'mean'`` without ``avg_factor`` adds the mean
        over the peaks to that over all cells.

        Args:
            pred (Tensor): Logits of any shape; ``(N, num_classes)`` with
                ``pos_inds``.
            target (Tensor): Gaussian target of the same shape.
            pos_inds (Tensor, optional): Rows of the peaks, ``(M, )`` int64.
            pos_labels (Tensor, optional): Classes of the peaks, ``(M, )``
                int64.
            weight (Tensor, optional): Elementwise weight; not with
                ``pos_inds``.
            avg_factor (float | Tensor, optional): Divides the sum.
            reduction_override (str, optional): Used instead of
                ``reduction``.

        Returns:
            Tensor: The weighted loss, for ``'none'`` of the shape of
            ``pred``.

        Raises:
            TypeError: An argument is of another type.
            ValueError: ``pos_inds`` comes without ``pos_labels`` or with
                ``weight``, or an argument is out of its range.
        """
        if reduction_override is not None:
            check_reduction('reduction_override', reduction_override)
        reduction = reduction_override or self.reduction
        focal_loss = partial(
            gaussian_focal_loss_with_logits, alpha=self.alpha,
            gamma=self.gamma, clip=self.clip, reduction=reduction,
            avg_factor=avg_factor)
        # A product of the loss would be two more launches on a GPU.
        pos_weight, neg_weight = (
            w * self.loss_weight for w in (self.pos_weight, self.neg_weight))
        if pos_inds is None:
            return focal_loss(pred, target, pos_weight=pos_weight,
                              neg_weight=neg_weight, weight=weight)
        if pos_labels is None or weight is not None or pred.dim() != 2:
            raise ValueError(
                'pos_inds needs pos_labels, no weight, and pred of the shape '
                f'(N, num_classes), which is {tuple(pred.shape)}')
        cells = pos_inds, pos_labels
        peaks = pred[cells]
        pos = focal_loss(peaks, torch.ones_like(peaks),
                         pos_weight=pos_weight, neg_weight=0.0)
        neg = focal_loss(pred, target, pos_weight=0.0,
                         neg_weight=neg_weight)
        return (neg.index_put(cells, pos, accumulate=True)
                if reduction == 'none' else pos + neg)
