"""The Gaussian focal loss of heatmap heads, computed from logits."""
import math
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backends
from ._autograd import needs_closed_form, widen
from ._checks import (
    check_device,
    check_number,
    check_tensor,
    check_weight,
    fits_into,
    is_number,
)
from .clip_sigmoid import representable_bounds

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
        avg_factor: float | Tensor | None = None,
        backend: str = 'auto') -> Tensor:
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
        backend (str): ``'auto'``, ``'eager'``, ``'cpp'`` or ``'triton'``, see
            :mod:`sigplug.ops.backends`. Defaults to ``'auto'``.

    Returns:
        Tensor: The loss, float32 for half types and the dtype of ``logits``
        otherwise; of the shape of ``logits`` for ``'none'``, else a scalar.

    Raises:
        TypeError: ``logits`` is not a floating point tensor, or an argument
            of another type than above.
        ValueError: Another argument is out of its range.
        BackendError: The backend that is asked for cannot be used.

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
    check_tensor('target', target)
    if target.shape != logits.shape:
        raise ValueError(f'target must have the shape of logits '
                         f'{tuple(logits.shape)}, but has '
                         f'{tuple(target.shape)}')
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
    check_focal_arguments(alpha, gamma, pos_weight, neg_weight, clip,
                          reduction)
    if avg_factor is not None and reduction == 'sum':
        raise ValueError("avg_factor does not go with reduction='sum': use "
                         "'mean', or divide the sum yourself")
    if avg_factor is not None:
        _check_avg_factor(avg_factor)

    arguments = (alpha, gamma, pos_weight, neg_weight, clip, backend)
    if weight is None and reduction != 'none':
        loss = focal_loss_sums(logits, target, 1, *arguments)[0]
    else:
        loss = _focal_loss(logits, target, *arguments)
        if weight is not None:
            loss = loss * weight
        if reduction == 'none':
            return loss
        logits, loss = loss, loss.sum()
    if reduction == 'sum':
        return loss
    if avg_factor is None:
        return loss / logits.numel()
    return loss / (avg_factor + AVG_FACTOR_EPS)


def focal_loss_sums(logits: Tensor, target: Tensor, rows: int, alpha: float,
                    gamma: float, pos_weight: float, neg_weight: float,
                    clip: float | None, backend: str) -> Tensor:
    """Sums of the loss over ``rows`` equal pieces of the flattened input.

    The arguments are those of :func:`gaussian_focal_loss_with_logits`, of
    which they are not checked.

    Returns:
        Tensor: Shape ``(rows, )``.
    """
    arguments = (alpha, gamma, pos_weight, neg_weight, clip)
    kernels = _select(backend, logits, target)
    if kernels:
        return _FocalLossSums.apply(logits, target, rows, *arguments, kernels)
    loss = _focal_loss(logits, target, *arguments, 'eager')
    return loss.reshape(rows, loss.numel() // rows).sum(1)


def _focal_loss(logits: Tensor, target: Tensor, alpha: float, gamma: float,
                pos_weight: float, neg_weight: float, clip: float | None,
                backend: str) -> Tensor:
    """The loss of each cell."""
    arguments = (alpha, gamma, pos_weight, neg_weight, clip,
                 _select(backend, logits, target))
    # The closed form knows no gradient of the target.
    if needs_closed_form(logits) and not target.requires_grad:
        return _GaussianFocalLoss.apply(logits, target, *arguments)
    return _GaussianFocalLoss.forward(logits, target, *arguments)


def _select(backend: str, logits: Tensor,
            target: Tensor) -> ModuleType | None:
    kernels = backends.select(backend, logits, target)
    trained_target = target.requires_grad and torch.is_grad_enabled()
    return None if trained_target else kernels


def gaussian_focal_loss_forward(logits: Tensor, target: Tensor, alpha: float,
                                gamma: float, pos_weight: float,
                                neg_weight: float,
                                clip: float | None) -> Tensor:
    """The plain form, whose gradient autograd derives: the loss per cell."""
    x = widen(logits)
    t = target.to(x.dtype)
    if clip is None:
        # Not 1 - q, which would lose its digits.
        q, not_q = torch.sigmoid(x), torch.sigmoid(-x)
        log_q, log_not_q = F.logsigmoid(x), F.logsigmoid(-x)
    else:
        q = torch.sigmoid(x).clamp(*representable_bounds(
            clip, 1 - clip, x.dtype))
        not_q = 1 - q
        log_q, log_not_q = (q + LOG_EPS).log(), (not_q + LOG_EPS).log()
    pos = log_q * _power(not_q, alpha) * t.eq(1)
    neg = log_not_q * _power(q, alpha) * (1 - t).pow(gamma)
    return -(pos_weight * pos + neg_weight * neg)


def gaussian_focal_loss_backward(grad_loss: Tensor, logits: Tensor,
                                 target: Tensor, alpha: float, gamma: float,
                                 pos_weight: float, neg_weight: float,
                                 clip: float | None) -> Tensor:
    r"""The closed form of the gradient with respect to the logits.

    .. math::
        \frac{d\ell}{dx} = w_+ [t = 1] (1 - q)^\alpha
            (\alpha q \log q - (1 - q))
            + w_- (1 - t)^\gamma q^\alpha
            (q - \alpha (1 - q) \log(1 - q))

    and 0 where ``clip`` holds :math:`q`. In either line both
    terms have the same sign, so that nothing cancels.
    """
    x = widen(logits)
    t = target.to(x.dtype)
    grad_loss = grad_loss.to(x.dtype)
    if clip is None:
        q, not_q = torch.sigmoid(x), torch.sigmoid(-x)
        log_q, log_not_q = F.logsigmoid(x), F.logsigmoid(-x)
        pos, neg = not_q, q
    else:
        low, high = representable_bounds(clip, 1 - clip, x.dtype)
        q = torch.sigmoid(x)
        inside = (q >= low) & (q <= high)
        q = q.clamp(low, high)
        not_q = 1 - q
        log_q, log_not_q = (q + LOG_EPS).log(), (not_q + LOG_EPS).log()
        # q (1 - q) times the derivatives of the two logarithms.
        pos, neg = not_q * (q / (q + LOG_EPS)), q * (not_q / (not_q + LOG_EPS))
    pos = (alpha * q * log_q - pos) * _power(not_q, alpha) * t.eq(1)
    neg = (neg - alpha * not_q * log_not_q) * _power(q, alpha) * (
        1 - t).pow(gamma)
    slope = pos_weight * pos + neg_weight * neg
    if clip is not None:
        slope = torch.where(inside, slope, torch.zeros_like(slope))
    return (grad_loss * slope).to(logits.dtype)


def _power(q: Tensor, exponent: float) -> Tensor:
    """A power of a probability, away from 0, where its slope is infinite."""
    return q.clamp(min=torch.finfo(q.dtype).tiny).pow(exponent)


class _GaussianFocalLoss(torch.autograd.Function):
    """Saves its two inputs and nothing else."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, target, *options):
        *arguments, kernels = options
        form = (kernels.gaussian_focal_loss_forward
                if kernels else gaussian_focal_loss_forward)
        return form(logits, target, *arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, target, *ctx.arguments, ctx.kernels = inputs
        ctx.save_for_backward(logits, target)
        ctx.save_for_forward(logits, target)

    @staticmethod
    def backward(ctx, grad_loss):
        logits, target = ctx.saved_tensors
        form = (ctx.kernels.gaussian_focal_loss_backward
                if backends.usable(ctx.kernels, grad_loss, logits, target)
                else gaussian_focal_loss_backward)
        grad = form(grad_loss, logits, target, *ctx.arguments)
        return grad, *[None] * (2 + len(ctx.arguments))

    @staticmethod
    def jvp(ctx, tangent, *_):
        return gaussian_focal_loss_backward(tangent, *ctx.saved_tensors,
                                            *ctx.arguments)


class _FocalLossSums(torch.autograd.Function):
    """Sums by a backend: no loss per cell, and the slope in the same pass."""

    @staticmethod
    def forward(ctx, logits, target, rows, *arguments):
        *ctx.arguments, ctx.kernels = arguments
        sums, slope = ctx.kernels.gaussian_focal_loss_sums(
            logits, target, rows, *ctx.arguments,
            wants_slope=ctx.needs_input_grad[0])
        ctx.save_for_backward(logits, target, slope)
        return sums

    @staticmethod
    def backward(ctx, grad_sums):
        logits, target, slope = ctx.saved_tensors
        rows = len(grad_sums)
        if not backends.usable(ctx.kernels, grad_sums, logits, target):
            grad_loss = grad_sums.view(rows, 1).expand(
                -1, logits.numel() // rows).reshape(logits.shape)
            grad = gaussian_focal_loss_backward(grad_loss, logits, target,
                                                *ctx.arguments)
        elif slope is None:
            grad = ctx.kernels.gaussian_focal_loss_backward(
                grad_sums, logits, target, *ctx.arguments)
        else:
            grad = (slope.view(rows, -1) * grad_sums.view(rows, 1)).view(
                logits.shape)
        return grad, *[None] * (3 + len(ctx.arguments))


def _check_avg_factor(avg_factor: float | Tensor) -> None:
    # A tensor is not looked into: that of a head is on a GPU.
    if isinstance(avg_factor, Tensor):
        fits = avg_factor.numel() == 1
    else:
        fits = is_number(avg_factor) and 0.0 <= avg_factor < math.inf
    if not fits:
        raise ValueError('avg_factor must be a number of at least 0, or a '
                         f'tensor of one, but got {avg_factor!r}')


def check_focal_arguments(alpha: float, gamma: float, pos_weight: float,
                          neg_weight: float, clip: float | None,
                          reduction: str) -> None:
    """Raise an error that names an argument out of its range."""
    for name, value in (('alpha', alpha), ('gamma', gamma),
                        ('pos_weight', pos_weight),
                        ('neg_weight', neg_weight)):
        check_weight(name, value)
    if clip is not None:
        check_number('clip', clip)
        if not 0.0 < clip < 0.5:
            raise ValueError(
                f'clip must lie between 0 and 0.5 or be None, but got {clip}')
    if reduction not in REDUCTIONS:
        raise ValueError(
            f'reduction must be one of {REDUCTIONS}, but got {reduction!r}')
