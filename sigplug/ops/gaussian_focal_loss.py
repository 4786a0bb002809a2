"""The Gaussian focal loss of heatmap heads, computed from logits."""
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import (
    check_between,
    check_device,
    check_float_tensor,
    check_shape,
    check_tensor,
    check_weight,
    fits_into,
    is_number,
)
from ._dtypes import upcast_half
from .backends import (
    Form,
    is_traced,
    plain_gradients,
    select,
    wants_plain_backward,
)
from .clip_sigmoid import representable_bounds

REDUCTIONS = ('none', 'mean', 'sum')

# mmdet adds this inside its logarithms and to avg_factor.
LOG_EPS = 1e-12
AVG_FACTOR_EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class FocalOptions:
    """The numbers in the formula of the loss.

    :func:`gaussian_focal_loss_with_logits` explains them and their errors.
    """

    alpha: float = 2.0
    gamma: float = 4.0
    pos_weight: float = 1.0
    neg_weight: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        for name in ('alpha', 'gamma', 'pos_weight', 'neg_weight'):
            check_weight(name, getattr(self, name))
        if self.clip is not None:
            check_between('clip', self.clip, 0.0, 0.5)

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        """Return the bounds of the probability; 0 and 1 without a clip."""
        if self.clip is None:
            return 0.0, 1.0
        return representable_bounds(self.clip, 1 - self.clip, dtype)


# Checked once: a head gives the same numbers each time.
_kept_options = functools.lru_cache(maxsize=64, typed=True)(FocalOptions)


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
        avg_factor: float | Tensor | None = None,
        backend: str = 'auto') -> Tensor:
    r"""Compute the Gaussian focal loss of logits.

    .. math::
        \ell = -w_+ [t = 1] (1 - q)^\alpha \log q
               - w_- (1 - t)^\gamma q^\alpha \log(1 - q), \qquad
        q = \sigma(x)

    With ``clip=None`` the logarithms are taken in logit space,
    :math:`\log q = -\mathrm{softplus}(-x)`: value and gradient are finite for
    every finite logit, and a confidently wrong cell keeps its gradient. With
    ``clip=eps`` :math:`q` is clipped to ``[eps, 1 - eps]`` and the result is
    that of ``clip_sigmoid`` followed by mmdet's ``gaussian_focal_loss``
    (``mmdet/models/losses/gaussian_focal_loss.py``). Half-precision dtypes
    are computed in float32.

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
        avg_factor (float | Tensor, optional): Divides the sum instead of the
            number of elements; only with ``'mean'`` and (without effect)
            ``'none'``. Defaults to None.
        backend (str): ``'auto'``, ``'eager'``, ``'cpp'`` or ``'triton'``, see
            :mod:`sigplug.ops.backends`. Defaults to ``'auto'``.

    Returns:
        Tensor: The loss, float32 for half-precision dtypes and the dtype of
        ``logits`` otherwise; of the shape of ``logits`` for ``'none'``, else
        a scalar.

    Raises:
        TypeError: ``logits`` is not a floating point tensor, or another
            argument has a type other than above.
        ValueError: Another argument is out of its range.
        BackendError: The requested backend cannot be used.

    Examples:
        >>> logits = torch.tensor([100., -100., 0.])
        >>> target = torch.tensor([1., 1., 0.])
        >>> gaussian_focal_loss_with_logits(logits, target, reduction='none')
        tensor([  0.0000, 100.0000,   0.1733])
    """
    options = (FocalOptions if is_traced() else _kept_options)(
        alpha, gamma, pos_weight, neg_weight, clip)
    check_reduction('reduction', reduction)
    _check_tensors(logits, target, weight)
    _check_avg_factor(avg_factor, reduction)
    by_cell = reduction == 'none' or weight is not None
    divisor, tensors = None, [logits, target]
    if reduction == 'mean':
        divisor = logits.numel() if avg_factor is None else avg_factor
        if isinstance(divisor, Tensor):
            divisor = divisor.reshape(())
            tensors.append(divisor)
        elif avg_factor is not None:
            divisor += AVG_FACTOR_EPS
    form = select(PLAIN, backend, *tensors)
    # Kernels know the gradient of the logits alone.
    if form is PLAIN or (torch.is_grad_enabled() and any(
            t.requires_grad for t in tensors[1:])):
        form = PLAIN
    elif isinstance(divisor, Tensor) and divisor.device.type == 'cpu':
        divisor = divisor.item() + AVG_FACTOR_EPS
    arguments = logits, target, options, by_cell, None if by_cell else divisor
    loss = (focal_loss(*arguments) if form is PLAIN else
            _FocalLoss.apply(*arguments, form))
    if weight is not None:
        loss = loss * weight
    return _divide(loss.sum(), divisor) if (
        by_cell and reduction != 'none') else loss


def focal_loss(logits: Tensor, target: Tensor, options: FocalOptions,
               by_cell: bool, divisor: float | Tensor | None = None) -> Tensor:
    """Compute the loss in plain PyTorch; autograd derives its gradient.

    It is that of each cell for ``by_cell``, else their sum over ``divisor``;
    to a tensor of no dims mmdet's epsilon is added.
    """
    x = upcast_half(logits)
    t = target.to(x.dtype)
    if options.clip is None:
        # Not 1 - q, which would lose its digits; and without the slopes of 0
        # beyond the bound, which would meet infinite logarithms.
        bound = 800.0 if x.dtype == torch.float64 else 110.0
        inner = x.clamp(-bound, bound)
        # Torch's slope of a sigmoid, y (1 - y), loses digits as y comes close
        # to 1: that of the larger one is taken from the smaller one.
        high = inner > 0
        away = torch.where(high, -inner, inner)
        less = torch.sigmoid(away)
        more = torch.sigmoid(-away).detach() - (less - less.detach())
        q, not_q = (torch.where(high, more, less),
                    torch.where(high, less, more))
        log_q, log_not_q = F.logsigmoid(x), F.logsigmoid(-x)
    else:
        q = torch.sigmoid(x).clamp(*options.bounds(x.dtype))
        not_q = 1 - q
        log_q, log_not_q = (q + LOG_EPS).log(), (not_q + LOG_EPS).log()
    pos = _power(not_q, options.alpha) * log_q * t.eq(1)
    neg = _power(q, options.alpha) * log_not_q * (1 - t).pow(options.gamma)
    loss = -(options.pos_weight * pos + options.neg_weight * neg)
    return loss if by_cell else _divide(loss.sum(), divisor)


def _divide(loss: Tensor, divisor: float | Tensor | None) -> Tensor:
    """Divide a sum by a number, by a tensor with mmdet's epsilon, or not."""
    if isinstance(divisor, Tensor):
        divisor = divisor + AVG_FACTOR_EPS
    return loss if divisor is None else loss / divisor


PLAIN = Form('gaussian_focal_loss', focal_loss)


class _FocalLoss(torch.autograd.Function):
    """The loss by kernels, which give the slope of each cell as well."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor,
                options: FocalOptions, by_cell: bool,
                divisor: float | Tensor | None, form: Form) -> Tensor:
        slopes = None
        if ctx.needs_input_grad[0]:
            # A gradient in half precision is rounded once, at its end.
            slopes = torch.empty(logits.shape, dtype=torch.float32,
                                 device=logits.device)
        held = divisor if isinstance(divisor, Tensor) else None
        ctx.number = divisor if held is None else None
        # The inputs are for second derivatives.
        ctx.save_for_backward(logits, target, slopes, held)
        ctx.options, ctx.by_cell = options, by_cell
        return form.forward(logits, target, options, by_cell, divisor, slopes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, slopes, divisor = ctx.saved_tensors
        if wants_plain_backward(grad):
            grad_logits, = plain_gradients(
                lambda x: focal_loss(x, target, ctx.options, ctx.by_cell,
                                     ctx.number or divisor),
                (logits, ), ctx.needs_input_grad, grad)
        else:
            # In one pass, also where it rounds to half precision.
            grad_logits = torch.mul(slopes, grad, out=torch.empty_like(
                slopes, dtype=logits.dtype))
        return grad_logits, None, None, None, None, None


def _power(q: Tensor, exponent: float) -> Tensor:
    """Raise a probability to a power, above 0 to keep the slope finite."""
    return q.clamp(min=torch.finfo(q.dtype).tiny).pow(exponent)


def check_reduction(name: str, value: object) -> None:
    """Raise a ``ValueError`` unless ``value`` is a known reduction."""
    if value not in REDUCTIONS:
        raise ValueError(
            f'{name} must be one of {REDUCTIONS}, but got {value!r}')


def _check_tensors(logits: Tensor, target: Tensor,
                   weight: Tensor | None) -> None:
    check_float_tensor('logits', logits)
    check_tensor('target', target)
    check_shape('target', target, logits.shape)
    if target.is_complex():
        raise TypeError('target must hold real numbers, but is of '
                        f'{target.dtype}')
    check_device('target', target, logits)
    if weight is not None:
        check_tensor('weight', weight)
        check_device('weight', weight, logits)
        if not fits_into(weight.shape, logits.shape):
            raise ValueError(
                f'weight of shape {tuple(weight.shape)} does not broadcast '
                f'against logits of shape {tuple(logits.shape)}')


def _check_avg_factor(avg_factor: float | Tensor | None,
                      reduction: str) -> None:
    if avg_factor is None:
        return
    if reduction == 'sum':
        raise ValueError("avg_factor does not go with reduction='sum': use "
                         "'mean', or divide the sum yourself")
    # The value of a tensor is not read: that would wait for a GPU.
    if isinstance(avg_factor, Tensor):
        fits = avg_factor.numel() == 1
    else:
        fits = is_number(avg_factor) and 0.0 <= avg_factor < math.inf
    if not fits:
        raise ValueError('avg_factor must be a number of at least 0, or a '
                         f'tensor of one, but got {avg_factor!r}')
