"""The clipped sigmoid of CenterPoint-style heatmap heads."""
import math
from types import ModuleType

import torch
from torch import Tensor

from . import backends
from ._autograd import is_compiling, needs_closed_form, widen
from ._checks import check_flag, check_number

GRAD_MODES = ('zero', 'straight_through')

# Significant bits and the exponent of the smallest subnormal, by dtype.
_FLOAT_FORMATS = {
    torch.float16: (11, -24),
    torch.bfloat16: (8, -133),
    torch.float32: (24, -149),
    torch.float64: (53, -1074),
}


def _round_to_grid(value: float, dtype: torch.dtype, rounding) -> float:
    """Round a positive float to a multiple of its unit in ``dtype``."""
    bits, min_exponent = _FLOAT_FORMATS[dtype]
    unit = max(math.frexp(value)[1] - bits, min_exponent)
    return math.ldexp(rounding(math.ldexp(value, -unit)), unit)


def representable_bounds(min_val: float, max_val: float,
                         dtype: torch.dtype) -> tuple[float, float]:
    r"""Bounds that ``dtype`` can hold, strictly between 0 and 1.

    The half types round inwards, so that ``min_val <= y <= max_val`` still
    holds after the cast; :math:`1 - 10^{-4}` would otherwise become exactly
    1. float32 and float64 round to nearest, as ``torch.clamp`` does, and
    step inside only where that gives 0 or 1.

    Args:
        min_val (float): Lower bound, in (0, 1).
        max_val (float): Upper bound, in (``min_val``, 1).
        dtype (torch.dtype): A floating point type.

    Returns:
        tuple[float, float]: The lower and the upper bound.

    Raises:
        TypeError: A bound is not a number.
        ValueError: The bounds are not ``0 < min_val < max_val < 1``, or they
            cross once they are rounded to ``dtype``.
    """
    check_number('min_val', min_val)
    check_number('max_val', max_val)
    if not 0.0 < min_val < 1.0:
        raise ValueError(f'min_val must lie strictly between 0 and 1, but got '
                         f'{min_val}')
    if not 0.0 < max_val < 1.0:
        raise ValueError(f'max_val must lie strictly between 0 and 1, but got '
                         f'{max_val}')
    if min_val >= max_val:
        raise ValueError(f'min_val must be smaller than max_val, but got '
                         f'min_val={min_val} and max_val={max_val}')
    half = dtype in (torch.float16, torch.bfloat16)
    low = _round_to_grid(min_val, dtype, math.ceil if half else round)
    high = _round_to_grid(max_val, dtype, math.floor if half else round)
    bits, min_exponent = _FLOAT_FORMATS[dtype]
    low = max(low, math.ldexp(1.0, min_exponent))
    high = min(high, 1.0 - math.ldexp(1.0, -bits))
    if low >= high:
        raise ValueError(
            f'min_val={min_val} and max_val={max_val} cross when rounded to '
            f'{dtype}: move them further apart or use a wider dtype')
    return low, high


def check_grad_mode(grad: str) -> None:
    """Raise a ``ValueError`` unless ``grad`` is a known gradient mode."""
    if grad not in GRAD_MODES:
        raise ValueError(
            f'grad must be one of {GRAD_MODES}, but got {grad!r}')


def clip_sigmoid(x: Tensor,
                 min_val: float = 1e-4,
                 max_val: float = 1 - 1e-4,
                 *,
                 grad: str = 'zero',
                 inplace: bool = False,
                 backend: str = 'auto') -> Tensor:
    r"""Sigmoid clipped to a closed interval inside (0, 1).

    .. math::
        y = \min(\max(\sigma(x), \mathrm{lo}), \mathrm{hi}), \qquad
        \sigma(x) = \frac{1}{1 + e^{-x}}

    Half types are computed in float32 and their bounds are rounded inwards,
    so that ``0 < y < 1`` holds strictly and the logarithms of a focal loss
    stay finite. In float32 value and gradient equal those of mmdet3d's
    ``clip_sigmoid`` (``mmdet3d/models/utils/clip_sigmoid.py``), which however
    overwrites its input.

    Args:
        x (Tensor): Logits of any shape; float16, bfloat16, float32 or
            float64.
        min_val (float): Lower bound. Defaults to 1e-4.
        max_val (float): Upper bound. Defaults to 1 - 1e-4.
        grad (str): The gradient outside the bounds. ``'zero'`` is the
            gradient of ``clamp``; ``'straight_through'`` keeps
            :math:`\sigma'(x)`, so that a confidently wrong cell can recover.
            Defaults to ``'zero'``.
        inplace (bool): Write the result into ``x`` and return ``x`` where
            that is safe, that is where ``x`` takes no part in autograd and
            its memory may be written; elsewhere the option has no effect.
            Defaults to False.
        backend (str): ``'auto'``, ``'eager'``, ``'cpp'`` or ``'triton'``, see
            :mod:`sigplug.ops.backends`. Defaults to ``'auto'``.

    Returns:
        Tensor: The activation, with the shape and dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating point tensor, a bound is not a
            number, or ``inplace`` not a bool.
        ValueError: A bound, ``grad`` or ``backend`` is out of its range.
        BackendError: The backend that is asked for cannot be used.

    Examples:
        >>> x = torch.tensor([-20., 0., 20.])
        >>> clip_sigmoid(x, 0.01, 0.99)
        tensor([0.0100, 0.5000, 0.9900])
    """
    if not isinstance(x, Tensor) or x.dtype not in _FLOAT_FORMATS:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError('x must be a float16, bfloat16, float32 or float64 '
                        f'tensor, but got {got}: convert it, e.g. x.float()')
    check_grad_mode(grad)
    check_flag('inplace', inplace)
    low, high = representable_bounds(min_val, max_val, x.dtype)
    kernels = backends.select(backend, x)

    if inplace and _may_overwrite(x):
        if x.dtype in (torch.float32, torch.float64):
            return x.sigmoid_().clamp_(low, high)
        return x.copy_(x.float().sigmoid_().clamp_(low, high))

    if needs_closed_form(x):
        return _ClipSigmoid.apply(x, low, high, grad, kernels)
    return _ClipSigmoid.forward(x, low, high, grad, kernels)


def clip_sigmoid_forward(x: Tensor, low: float, high: float,
                         grad: str) -> Tensor:
    """The plain form, whose gradient autograd derives."""
    x, dtype = widen(x), x.dtype
    y = torch.sigmoid(x).clamp(low, high)
    # What runs an ONNX model takes no gradient.
    if grad == 'straight_through' and not torch.onnx.is_in_onnx_export():
        # Zeros with the gradient of the sigmoid, taken where it is small:
        # y * (1 - y) vanishes once y rounds to 1.
        tail = torch.sigmoid(torch.where(x > 0, -x, x))
        tail = torch.where(x > 0, -tail, tail)
        y = y.detach() + (tail - tail.detach())
    return y.to(dtype)


def clip_sigmoid_backward(grad_y: Tensor, x: Tensor, low: float, high: float,
                          grad: str) -> Tensor:
    """The closed form of the gradient, ``grad_y * dy/dx``."""
    x, dtype = widen(x), x.dtype
    grad_y = grad_y.to(x.dtype)
    if grad == 'straight_through':
        tail = torch.sigmoid(-x.abs())
        return torch.ops.aten.sigmoid_backward(grad_y, tail).to(dtype)
    y = torch.sigmoid(x)
    grad_x = torch.ops.aten.sigmoid_backward(grad_y, y)
    inside = (y >= low) & (y <= high)
    return torch.where(inside, grad_x, torch.zeros_like(grad_x)).to(dtype)


class _ClipSigmoid(torch.autograd.Function):
    """Saves the input alone, which in half precision is the smallest."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: float, high: float, grad: str,
                kernels: ModuleType | None) -> Tensor:
        form = (kernels.clip_sigmoid_forward
                if kernels else clip_sigmoid_forward)
        return form(x, low, high, grad)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *ctx.arguments, ctx.kernels = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx, grad_y):
        x, = ctx.saved_tensors
        form = (ctx.kernels.clip_sigmoid_backward
                if backends.usable(ctx.kernels, grad_y, x)
                else clip_sigmoid_backward)
        return form(grad_y, x, *ctx.arguments), None, None, None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        x, = ctx.saved_tensors
        return clip_sigmoid_backward(tangent, x, *ctx.arguments)


def _may_overwrite(x: Tensor) -> bool:
    """Whether writing into ``x`` can break neither autograd nor memory."""
    # A compiler saves the memory by itself. Under torch.func a constant
    # may have to become batched.
    if (is_compiling()
            or torch._C._functorch.is_functorch_wrapped_tensor(x)):
        return False
    # Even without recording, an earlier graph may have saved x.
    if x.requires_grad:
        return False
    if x.is_inference() and not torch.is_inference_mode_enabled():
        return False
    # Expanded and overlapping views show one memory cell under several
    # indices: each stride has to reach beyond all smaller ones together.
    reach = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return False
            reach += stride * (size - 1)
    return True
