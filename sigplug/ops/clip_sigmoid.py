"""The clipped sigmoid of CenterPoint-style heatmap heads."""
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ._checks import check_between, check_flag, check_float_tensor
from ._dtypes import upcast_half
from ._tracing import is_compiling
from .backends import check_backend, is_traced

GRAD_MODES = ('zero', 'straight_through')


def representable_bounds(min_val: float, max_val: float,
                         dtype: torch.dtype) -> tuple[float, float]:
    r"""Return bounds that ``dtype`` can hold, strictly between 0 and 1.

    Half-precision dtypes round inwards, so that ``min_val <= y <= max_val``
    still holds after the cast; :math:`1 - 10^{-4}` would otherwise become
    exactly 1. float32 and float64 round to nearest, as ``torch.clamp`` does,
    and step inside only where that gives 0 or 1.

    Raises:
        TypeError: A bound is not a number.
        ValueError: The bounds are not ``0 < min_val < max_val < 1``, or they
            cross once they are rounded to ``dtype``.
    """
    check_between('min_val', min_val, 0.0, 1.0)
    check_between('max_val', max_val, 0.0, 1.0)
    # Compilers look through a cache, and warn of it.
    find = _bounds.__wrapped__ if is_compiling() else _bounds
    return find(min_val, max_val, dtype)


@functools.cache
def _bounds(min_val: float, max_val: float,
            dtype: torch.dtype) -> tuple[float, float]:
    if min_val >= max_val:
        raise ValueError(f'min_val must be smaller than max_val, but got '
                         f'min_val={min_val} and max_val={max_val}')
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps
    half = dtype in (torch.float16, torch.bfloat16)

    def to_grid(value: float, rounding: Callable[[float], int]) -> float:
        # A power of two, by which a division is exact.
        unit = max(math.ldexp(info.eps, math.frexp(value)[1] - 1), smallest)
        return rounding(value / unit) * unit

    low = max(to_grid(min_val, math.ceil if half else round), smallest)
    high = min(to_grid(max_val, math.floor if half else round),
               1.0 - info.eps / 2)
    if low >= high:
        raise ValueError(
            f'min_val={min_val} and max_val={max_val} cross when rounded to '
            f'{dtype}: move them further apart or use a wider dtype')
    return low, high


def clip_sigmoid(x: Tensor,
                 min_val: float = 1e-4,
                 max_val: float = 1 - 1e-4,
                 *,
                 grad: str = 'zero',
                 inplace: bool = False,
                 backend: str = 'auto') -> Tensor:
    r"""Clip the sigmoid to a closed interval inside (0, 1).

    .. math::
        y = \min(\max(\sigma(x), \mathrm{lo}), \mathrm{hi}), \qquad
        \sigma(x) = \frac{1}{1 + e^{-x}}

    Half-precision dtypes are computed in float32 and their bounds are rounded
    inwards, so that ``0 < y < 1`` holds strictly and the logarithms of a
    focal loss stay finite. In float32 value and gradient equal those of
    mmdet3d's ``clip_sigmoid`` (``mmdet3d/models/utils/clip_sigmoid.py``),
    which however overwrites its input.

    Args:
        x (Tensor): Logits of any shape; float16, bfloat16, float32 or
            float64.
        min_val (float): Lower bound. Defaults to 1e-4.
        max_val (float): Upper bound. Defaults to 1 - 1e-4.
        grad (str): The gradient outside the bounds. ``'zero'`` is the
            gradient of ``clamp``; ``'straight_through'`` keeps
            :math:`\sigma'(x)`, so that a confidently wrong cell can recover.
            Defaults to ``'zero'``.
        inplace (bool): Accepted, as mmcv's ``ConvModule`` passes it to each
            activation; the logits are never overwritten. Defaults to False.
        backend (str): Accepted, as by the other operations: the plain form
            is the only one. Defaults to ``'auto'``.

    Returns:
        Tensor: The activation, with the shape and dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating point tensor, a bound is not a
            number, or ``inplace`` not a bool.
        ValueError: A bound, ``grad`` or ``backend`` is out of its range.

    Examples:
        >>> x = torch.tensor([-20., 0., 20.])
        >>> clip_sigmoid(x, 0.01, 0.99)
        tensor([0.0100, 0.5000, 0.9900])
    """
    check_float_tensor('x', x)
    if grad not in GRAD_MODES:
        raise ValueError(
            f'grad must be one of {GRAD_MODES}, but got {grad!r}')
    check_flag('inplace', inplace)
    check_backend(backend)
    low, high = representable_bounds(min_val, max_val, x.dtype)
    trained = torch.is_grad_enabled() and x.requires_grad
    # Rounding before the clip gives the same, but not the same gradient.
    y = torch.sigmoid(upcast_half(x) if trained or is_traced() else x)
    y = y.clamp(low, high)
    # An ONNX model takes no gradient.
    if grad == 'straight_through' and not torch.onnx.is_in_onnx_export():
        y = _with_gradient_of_sigmoid(y, upcast_half(x))
    return y.to(x.dtype)


def _with_gradient_of_sigmoid(y: Tensor, x: Tensor) -> Tensor:
    r"""Return ``y`` with the gradient :math:`\sigma'(x)` everywhere.

    By way of zeros with the gradient of the smaller tail: torch's
    :math:`\sigma (1 - \sigma)` loses its digits as :math:`\sigma` comes
    close to 1.
    """
    tail = torch.sigmoid(torch.where(x > 0, -x, x))
    tail = torch.where(x > 0, -tail, tail)
    return y.detach() + (tail - tail.detach())
