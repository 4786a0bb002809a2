"""The stock forms that the analysis tools compare sigplug's with.

They are written out here, so that neither mmdet3d nor mmpretrain is needed; a
test compares them with the installed originals, bit for bit.
"""
import torch.nn.functional as F
from torch import Tensor


def clip_sigmoid(x: Tensor, eps: float = 1e-4) -> Tensor:
    """Clip as ``mmdet3d/models/utils/clip_sigmoid.py``, but keep ``x``."""
    return x.sigmoid().clamp(min=eps, max=1 - eps)


def gaussian_focal_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Compute ``mmdet/models/losses/gaussian_focal_loss.py`` by cell."""
    eps = 1e-12
    pos_loss = -(pred + eps).log() * (1 - pred).pow(2.0) * target.eq(1)
    neg_loss = -(1 - pred + eps).log() * pred.pow(2.0) * (1 - target).pow(4.0)
    return pos_loss + neg_loss


def gem(x: Tensor,
        p: float | Tensor,
        eps: float = 1e-6,
        kernel_size: int | None = None,
        stride: int | None = None) -> Tensor:
    """Pool ``(N, C, H, W)`` by the textbook form of GeM, as in mmpretrain.

    The window ``None`` is the whole map, the only one in mmpretrain.
    """
    return F.avg_pool2d(
        x.clamp(min=eps).pow(p), kernel_size or x.shape[-2:],
        stride).pow(1.0 / p)


def power_mean_aggregation(x: Tensor,
                           p: float | Tensor,
                           index: Tensor,
                           num_segments: int,
                           low: float = 1e-4,
                           high: float = 100.0) -> Tensor:
    """Compute the power mean of ``torch_geometric/nn/aggr/basic.py``.

    ``x`` has the shape ``(M, C)``, ``index`` (the segment of each row)
    ``(M, )``, the result ``(num_segments, C)``. Values and means are clamped.
    """
    power = x.clamp(low, high).pow(p)
    total = x.new_zeros(num_segments, x.shape[1]).scatter_add_(
        0, index[:, None].expand_as(power), power)
    count = x.new_zeros(num_segments).scatter_add_(
        0, index, x.new_ones(len(index))).clamp(min=1)
    return (total / count[:, None]).clamp(low, high).pow(1.0 / p)
