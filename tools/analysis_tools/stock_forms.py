"""The usual forms that the analysis tools draw and measure ours against.

They are written out here, so that neither mmdet3d nor a CenterPoint checkout
is needed; a test holds them to the installed originals, bit for bit.
"""
import torch.nn.functional as F
from torch import Tensor


def clip_sigmoid(x: Tensor, eps: float = 1e-4) -> Tensor:
    """``mmdet3d/models/utils/clip_sigmoid.py``, but ``x`` is left alone."""
    return x.sigmoid().clamp(min=eps, max=1 - eps)


def gaussian_focal_loss(pred: Tensor, target: Tensor) -> Tensor:
    """``mmdet/models/losses/gaussian_focal_loss.py``, without reduction."""
    eps = 1e-12
    pos_loss = -(pred + eps).log() * (1 - pred).pow(2.0) * target.eq(1)
    neg_loss = -(1 - pred + eps).log() * pred.pow(2.0) * (1 - target).pow(4.0)
    return pos_loss + neg_loss


def gem(x: Tensor, p: float | Tensor, eps: float = 1e-6) -> Tensor:
    """The textbook form of global GeM pooling, as in mmpretrain.

    Args:
        x (Tensor): Shape ``(N, C, H, W)``.
        p (float | Tensor): The power.
        eps (float): Lower clamp of the input.

    Returns:
        Tensor: Shape ``(N, C, 1, 1)``.
    """
    return F.avg_pool2d(x.clamp(min=eps).pow(p), x.shape[-2:]).pow(1.0 / p)
