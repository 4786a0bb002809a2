"""Values of a dtype, where something changes among them, and errors."""
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from stock_forms import gaussian_focal_loss
from torch import Tensor

SAME_SIZE_INT = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Logits where sigmoid and loss change in float32: at the clip of 1e-4, where
# no clip acts, and where exp leaves the range.
EDGES = (math.log(1 / 1e-4 - 1), 1.0, 5.0, 16.64, 87.34, 103.97)

Function = Callable[[Tensor], Tensor]


def with_gradient(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value and its gradient with respect to ``x``."""
    x = x.detach().clone().requires_grad_()
    y = function(x)
    gradient, = torch.autograd.grad(y.sum(), x)
    return y.detach(), gradient


# Values of a dtype ---------------------------------------------------------


def from_bits(bits: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Return values from their bit patterns, which have the same order."""
    return torch.from_numpy(bits).to(SAME_SIZE_INT[dtype.itemsize]).view(dtype)


def to_bits(value: float, dtype: torch.dtype) -> int:
    """Return the bit pattern of a positive value."""
    return torch.tensor(
        value, dtype=dtype).view(SAME_SIZE_INT[dtype.itemsize]).item()


def edge(test: Function, dtype: torch.dtype, start: float = 0.0,
         stop: float | None = None,
         sign: int = 1) -> tuple[float, float] | None:
    """Find the last value before ``test`` first holds, and the next one.

    On a grid of bit patterns, which is refined where ``test`` first holds;
    half-precision dtypes are searched whole. From ``start`` on, up or down to
    ``stop`` (default: the largest), both positive; with ``sign=-1`` the
    negative of these values. None if it does not hold anywhere.
    """
    first = to_bits(start, dtype)
    last = to_bits(torch.finfo(dtype).max if stop is None else stop, dtype)
    while True:
        step = max(1, abs(last - first) >> (15 if dtype.itemsize == 2 else 12))
        bits = np.append(
            np.arange(first, last, step if first < last else -step), last)
        hits = test(sign * from_bits(bits, dtype))
        if not hits.any():
            return None
        i = int(hits.int().argmax())
        if i == 0 or abs(bits[i] - bits[i - 1]) == 1:
            low, high = from_bits(bits[[max(i - 1, 0), i]], dtype).tolist()
            return sign * low, sign * high
        first, last = int(bits[i - 1]), int(bits[i])


def sweep(dtype: torch.dtype, count: int) -> Iterator[Tensor]:
    """Return logits in chunks: every finite one of a half-precision dtype.

    Of others evenly spaced bit patterns up to 128, which is beyond the end of
    every tail, those around the places where something changes, and the ends
    of the range.
    """
    last = to_bits(torch.finfo(dtype).max, dtype)
    if dtype.itemsize == 2:
        bits = np.arange(last + 1)
    else:
        near = np.arange(-(count // 256), count // 256)
        bits = np.concatenate([
            *(np.linspace(to_bits(low, dtype), to_bits(high, dtype),
                          count // 4, dtype=np.int64)
              for low, high in ((0.0, 128.0), (2.0**-6, 16.0))),
            *(to_bits(value, dtype) + near for value in EDGES),
            np.arange(64), last - np.arange(64)])
    for chunk in np.array_split(bits, len(bits) // 2**18 + 1):
        x = from_bits(chunk, dtype)
        yield torch.cat([x, -x])


# References ----------------------------------------------------------------


def focal_reference(x: Tensor, target: float,
                    bounds: tuple[float, float] | None = None) -> Tensor:
    """Compute the Gaussian focal loss of float64 logits with one target.

    With ``bounds``, the clip of the sigmoid, it is mmdet's form, with its
    guard in the logarithm.
    """
    if bounds is not None:
        return gaussian_focal_loss(
            x.sigmoid().clamp(*bounds), torch.tensor(target).double())
    if target == 1:
        return -(-x).sigmoid().square() * F.logsigmoid(x)
    return -(1 - target)**4 * x.sigmoid().square() * F.logsigmoid(-x)


def mean_reference(x: Tensor, p: float | Tensor, eps: float) -> Tensor:
    """Compute the power mean over the last dim, for float64 values.

    It has the degree 1, so that a common factor may count as constant.
    """
    c = x.clamp(min=eps)
    top = c.detach().amax(-1, keepdim=True)
    return top * (c / top).pow(p).mean(-1, keepdim=True).pow(1 / p)


# Errors --------------------------------------------------------------------


def unit_in_last_place(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance of neighbours in ``dtype`` around float64 values."""
    info = torch.finfo(dtype)
    exponent = value.abs().clamp(min=info.smallest_normal).frexp().exponent
    return info.eps * torch.exp2(exponent.double() - 1)


class Worst:
    """The worst error of several comparisons with a reference.

    ``ulp`` is that of all values, in units in the last place; ``relative``
    leaves out references that are subnormal in the dtype.
    """

    def __init__(self) -> None:
        self.ulp = self.relative = 0.0

    def add(self, result: Tensor, reference: Tensor,
            scale: Tensor | None = None) -> None:
        """Compare; ``scale`` replaces the size of the reference."""
        size = (reference if scale is None else scale).abs()
        error = (result.double() - reference).abs()
        # NaN is infinitely wrong.
        error = error.nan_to_num(nan=math.inf, posinf=math.inf)
        ulp = error / unit_in_last_place(size, result.dtype)
        normal = size >= torch.finfo(result.dtype).smallest_normal
        for name, errors in (('ulp', ulp),
                             ('relative', (error / size)[normal])):
            if errors.numel():
                setattr(self, name, max(getattr(self, name),
                                        errors.max().item()))
