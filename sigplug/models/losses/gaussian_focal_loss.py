"""The Gaussian focal loss of logits as a module."""

from torch import Tensor, nn

from sigplug.ops.gaussian_focal_loss import (
    check_focal_arguments,
    gaussian_focal_loss_with_logits,
)
from sigplug.registry import register_everywhere


@register_everywhere
class GaussianFocalLossWithLogits(nn.Module):
    """Gaussian focal loss that takes logits in place of probabilities.

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

    Raises:
        ValueError: An argument is out of its range.
    """

    # Tells a head to pass its logits as they are.
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
        check_focal_arguments(alpha, gamma, pos_weight, neg_weight, clip,
                              reduction)
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
                weight: Tensor | None = None,
                avg_factor: float | Tensor | None = None,
                reduction_override: str | None = None) -> Tensor:
        """Loss of heatmap logits.

        Args:
            pred (Tensor): Logits of any shape.
            target (Tensor): Gaussian target of the same shape.
            weight (Tensor, optional): Elementwise weight.
            avg_factor (float | Tensor, optional): Divides the sum.
            reduction_override (str, optional): Takes the place of
                ``reduction``.

        Returns:
            Tensor: The weighted loss.
        """
        return self.loss_weight * gaussian_focal_loss_with_logits(
            pred,
            target,
            alpha=self.alpha,
            gamma=self.gamma,
            pos_weight=self.pos_weight,
            neg_weight=self.neg_weight,
            clip=self.clip,
            weight=weight,
            reduction=reduction_override or self.reduction,
            avg_factor=avg_factor)
