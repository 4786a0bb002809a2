"""The Gaussian focal loss of heatmap heads, computed from logits."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .clip_sigmoid import clip_sigmoid

REDUCTIONS = ('none', 'mean', 'sum')

# What mmdet adds inside its logarithms and to avg_factor.
LOG_EPS = 1e-12
AVG_FACTOR_EPS = torch.finfo(torch.float32).eps


def gaussian_focal_loss_with_logits(
        logits: Tensor,
        target: Tensor,
        *,
        alpha: float = 2.0,
        gamma: float = 4.0,
        pos_weight: float = 1.0,
        neg_weight: float = 1.0,
        clip: float | None = None,
        weight: Tensor | None = None,
        reduction: str = 'mean',
        avg_factor: float | Tensor | None = None) -> Tensor:
    r"""Gaussian focal loss of logits.

    .. math::
        \ell = -w_+ [t = 1] (1 - q)^\alpha \log q
               - w_- (1 - t)^\gamma q^\alpha \log(1 - q), \qquad
        q = \sigma(x)

    With ``clip=None`` the logarithms are taken in logit space,
    :math:`\log q = -\mathrm{softplus}(-x)`: value and gradient are finite for
    every finite logit, and a confidently wrong cell keeps its gradient. With
    ``clip=eps`` :math:`q` is clipped to ``[eps, 1 - eps]`` and the result is
    that of ``clip_sigmoid`` followed by mmdet's ``gaussian_focal_loss``
    (``mmdet/models/losses/gaussian_focal_loss.py``). Half types are computed
    in float32.

    Source: Law and Deng, `CornerNet <https://arxiv.org/abs/1808.01244>`_,
    eq. (1); Lin et al., `Focal Loss <https://arxiv.org/abs/1708.02002>`_.

    Args:
        logits (Tensor): Heatmap logits of any shape.
        target (Tensor): Gaussian target in [0, 1], 1 at the peaks, of the
            shape of ``logits``.
        alpha (float): Power of the modulating factor, at least 0.
            Defaults to 2.0.
        gamma (float): Power of the penalty reduction around the peaks, at
            least 0. Defaults to 4.0.
        pos_weight (float): Weight :math:`w_+`. Defaults to 1.0.
        neg_weight (float): Weight :math:`w_-`. Defaults to 1.0.
        clip (float, optional): Distance of the clip from 0 and 1, in
            (0, 0.5). Defaults to None, no clip.
        weight (Tensor, optional): Elementwise weight that broadcasts against
            the loss. Defaults to None.
        reduction (str): ``'none'``, ``'mean'`` or ``'sum'``.
            Defaults to ``'mean'``.
        avg_factor (float | Tensor, optional): Divides the sum in place of
            the number of elements; only with ``'mean'`` and (without effect)
            ``'none'``. Defaults to None.

    Returns:
        Tensor: The loss, float32 for half types and the dtype of ``logits``
        otherwise; of the shape of ``logits`` for ``'none'``, else a scalar.

    Raises:
        TypeError: ``logits`` is not a floating point tensor.
        ValueError: Another argument is out of its range.

    Examples:
        >>> logits = torch.tensor([100., -100., 0.])
        >>> target = torch.tensor([1., 1., 0.])
        >>> gaussian_focal_loss_with_logits(logits, target, reduction='none')
        tensor([  0.0000, 100.0000,   0.1733])
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits)
        raise TypeError(
            f'logits must be a floating point tensor, but got {got}')
    if target.shape != logits.shape:
        raise ValueError(f'target must have the shape of logits '
                         f'{tuple(logits.shape)}, but has '
                         f'{tuple(target.shape)}')
    check_focal_arguments(alpha, gamma, clip, reduction)
    if avg_factor is not None and reduction == 'sum':
        raise ValueError("avg_factor does not go with reduction='sum': use "
                         "'mean', or divide the sum yourself")

    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    t = target.to(x.dtype)
    if clip is None:
        log_q, log_not_q = F.logsigmoid(x), F.logsigmoid(-x)
        q_alpha = torch.exp(alpha * log_q)
        not_q_alpha = torch.exp(alpha * log_not_q)
    else:
        q = clip_sigmoid(x, clip, 1 - clip)
        log_q, log_not_q = (q + LOG_EPS).log(), (1 - q + LOG_EPS).log()
        q_alpha, not_q_alpha = q.pow(alpha), (1 - q).pow(alpha)
    loss = -(pos_weight * not_q_alpha * log_q * t.eq(1) +
             neg_weight * q_alpha * log_not_q * (1 - t).pow(gamma))
    if weight is not None:
        loss = loss * weight
    if reduction == 'none':
        return loss
    if reduction == 'sum':
        return loss.sum()
    if avg_factor is None:
        return loss.mean()
    return loss.sum() / (avg_factor + AVG_FACTOR_EPS)


def check_focal_arguments(alpha: float, gamma: float, clip: float | None,
                          reduction: str) -> None:
    """Raise a ``ValueError`` that names an argument out of its range."""
    for name, value in (('alpha', alpha), ('gamma', gamma)):
        if not value >= 0:
            raise ValueError(f'{name} must be at least 0, but got {value}')
    if clip is not None and not 0.0 < clip < 0.5:
        raise ValueError(
            f'clip must lie between 0 and 0.5 or be None, but got {clip}')
    if reduction not in REDUCTIONS:
        raise ValueError(
            f'reduction must be one of {REDUCTIONS}, but got {reduction!r}')
