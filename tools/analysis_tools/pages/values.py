"""Values of a dtype: all of them, where something changes, and as text."""
import math
import re
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

SAME_SIZE_INT = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Logits where sigmoid and loss change in float32: at the clip of 1e-4, where
# no clip acts, and where exp leaves the range.
EDGES = (math.log(1 / 1e-4 - 1), 1.0, 5.0, 16.64, 87.34, 103.97)

Function = Callable[[Tensor], Tensor]


def from_bits(bits: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Return values from their bit patterns, which have the same order."""
    bits = torch.from_numpy(np.ascontiguousarray(bits, dtype=np.int64))
    return bits.to(SAME_SIZE_INT[dtype.itemsize]).view(dtype)


def to_bits(value: float, dtype: torch.dtype) -> int:
    """Return the bit pattern of a positive value."""
    return torch.tensor(
        value, dtype=dtype).view(SAME_SIZE_INT[dtype.itemsize]).item()


def largest(dtype: torch.dtype) -> float:
    """Return the largest finite value."""
    return torch.finfo(dtype).max


def edge(test: Function, dtype: torch.dtype, start: float = 0.0,
         stop: float | None = None,
         sign: int = 1) -> tuple[float, float] | None:
    """Find the last value before ``test`` first holds, and the next one.

    On a grid of bit patterns, which is refined where ``test`` first holds;
    half-precision dtypes are searched whole.

    Args:
        test (Callable): Tells for a tensor of values where it holds.
        dtype (torch.dtype): The type of the values.
        start (float): First value, positive. Defaults to 0.
        stop (float, optional): Last value, positive; above or below
            ``start``. Defaults to the largest of the type.
        sign (int): -1 searches the negative of these values.

    Returns:
        tuple[float, float] | None: None if ``test`` does not hold anywhere.
    """
    first = to_bits(start, dtype)
    last = to_bits(largest(dtype) if stop is None else stop, dtype)
    while True:
        grid = 2**15 if dtype.itemsize == 2 else 2**12
        step = max(1, abs(last - first) // grid)
        step *= 1 if first < last else -1
        bits = np.append(np.arange(first, last, step, dtype=np.int64), last)
        hits = test(sign * from_bits(bits, dtype)).numpy()
        if not hits.any():
            return None
        i = int(hits.argmax())
        if i == 0 or abs(bits[i] - bits[i - 1]) == 1:
            value = sign * from_bits(bits[[max(i - 1, 0), i]], dtype).double()
            return value[0].item(), value[1].item()
        first, last = int(bits[i - 1]), int(bits[i])


def sweep(dtype: torch.dtype, count: int) -> Iterator[Tensor]:
    """Return logits in chunks: every finite one of a half-precision dtype.

    Of others evenly spaced bit patterns up to 128, which is beyond the end of
    every tail, those around the places where something changes, and the ends
    of the range.
    """
    if dtype.itemsize == 2:
        bits = np.arange(to_bits(largest(dtype), dtype) + 1)
    else:
        ranges = [(to_bits(low, dtype), to_bits(high, dtype))
                  for low, high in ((0.0, 128.0), (2.0**-6, 16.0))]
        bits = np.concatenate([
            *(np.linspace(*ends, count // 4, dtype=np.int64)
              for ends in ranges),
            *(to_bits(value, dtype) + np.arange(-(count // 256), count // 256)
              for value in EDGES),
            np.arange(64), to_bits(largest(dtype), dtype) - np.arange(64)])
    for chunk in np.array_split(bits, len(bits) // 2**18 + 1):
        x = from_bits(chunk, dtype)
        yield torch.cat([x, -x])


def with_gradient(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value and its gradient with respect to ``x``."""
    x = x.detach().clone().requires_grad_()
    y = function(x)
    gradient, = torch.autograd.grad(y.sum(), x)
    return y.detach(), gradient


def safe_range(tests: list[Function], dtype: torch.dtype) -> str:
    """Return the magnitude up to which no test holds, for either sign."""
    found = [edge(test, dtype, sign=sign) for test in tests
             for sign in (1, -1)]
    safe = [abs(pair[0]) for pair in found if pair]
    return sig(min(safe), 5) if safe else all_of(dtype)


def sig(value: float, digits: int) -> str:
    """Return a number with some digits; a zero has no sign."""
    text = f'{value or 0.0:.{digits}g}'.replace('nan', 'NaN')
    return re.sub(r'e([+-])0', r'e\1', text)


def scientific(value: float) -> str:
    """Return up to six digits, always with an exponent."""
    mantissa, exponent = f'{value:.5e}'.split('e')
    return f'{float(mantissa):g}e{int(exponent)}'


def below_one(value: float) -> str:
    """Return a value by its distance from 1."""
    return 'exactly 1' if value == 1 else f'1 - {scientific(1 - value)}'


def all_of(dtype: torch.dtype) -> str:
    """Return the text for a range that does not end."""
    return f'{sig(largest(dtype), 5)} (all)'
