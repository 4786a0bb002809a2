"""The clipped sigmoid as one pass over the logits."""
import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import OPTIONS, on_device_of
from ._math import exp, sigmoid

BLOCK = 1024


def clip_sigmoid_forward(x: Tensor, low: float, high: float,
                         grad: str) -> Tensor:
    """See :func:`sigplug.ops.clip_sigmoid.clip_sigmoid_forward`."""
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel():
        with on_device_of(x):
            _forward[(triton.cdiv(x.numel(), BLOCK), )](
                x, y, x.numel(), low, high, BLOCK, **OPTIONS)
    return y


def clip_sigmoid_backward(grad_y: Tensor, x: Tensor, low: float, high: float,
                          grad: str) -> Tensor:
    """See :func:`sigplug.ops.clip_sigmoid.clip_sigmoid_backward`."""
    x, grad_y = x.contiguous(), grad_y.contiguous()
    grad_x = torch.empty_like(x)
    if x.numel():
        with on_device_of(x):
            _backward[(triton.cdiv(x.numel(), BLOCK), )](
                grad_y, x, grad_x, x.numel(), low, high,
                grad == 'straight_through', BLOCK, **OPTIONS)
    return grad_x


@triton.jit
def _forward(x_ptr, y_ptr, size, low, high, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = sigmoid(tl.load(x_ptr + place, mask=place < size).to(tl.float32))
    # Not minimum and maximum, which lose a NaN.
    y = tl.where(y < low, low, tl.where(y > high, high, y))
    tl.store(y_ptr + place, y, mask=place < size)


@triton.jit
def _backward(grad_y_ptr, x_ptr, grad_x_ptr, size, low, high,
              STRAIGHT: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place, mask=place < size).to(tl.float32)
    grad = tl.load(grad_y_ptr + place, mask=place < size).to(tl.float32)
    if STRAIGHT:
        # The smaller side keeps its digits where the other rounds to 1.
        e = exp(-tl.abs(x))
        tail = tl.div_rn(e, 1.0 + e)
        grad = grad * (1.0 - tail) * tail
    else:
        y = sigmoid(x)
        inside = (y >= low) & (y <= high)
        grad = tl.where(inside, grad * (1.0 - y) * y, 0.0)
    tl.store(grad_x_ptr + place, grad, mask=place < size)
