"""Functions for the kernels.

Powers, exponentials and logarithms are libdevice's, of at most 4, 2 and 1 ulp
in float32 (CUDA Math API, "Single Precision Mathematical Functions").
Triton's interpreter has none of libdevice and takes NumPy's.
"""
import os

import triton
import triton.language as tl
from triton.language.extra import libdevice

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'


@triton.jit
def _interpreted_exp(x):
    return tl.exp(x)


@triton.jit
def _interpreted_log(x):
    return tl.log(x)


@triton.jit
def _interpreted_pow(base, exponent):
    log_base = tl.log(tl.where(base == 0, 1.0, base).to(tl.float64))
    y = tl.exp(log_base * exponent).to(tl.float32)
    return tl.where((base == 0) & (base + exponent > 0), 0.0, y)


exp = _interpreted_exp if INTERPRETED else libdevice.exp
log = _interpreted_log if INTERPRETED else libdevice.log
pow = _interpreted_pow if INTERPRETED else libdevice.pow


@triton.jit
def log1p(e):
    """Return ``ln(1 + e)`` for e in [0, 1], with the rounding of the sum."""
    u = 1.0 + e
    return log(u) + tl.div_rn(e - (u - 1.0), u)


@triton.jit
def power(base, exponent, WHOLE: tl.constexpr):
    """Return ``base ** exponent`` for numbers of at least 0.

    WHOLE is the exponent if it is a small whole number, else -1.
    """
    if WHOLE == 0:
        return base * 0.0 + 1.0
    elif WHOLE == 1:
        return base
    elif WHOLE == 2:
        return base * base
    elif WHOLE == 4:
        square = base * base
        return square * square
    else:
        return pow(base, exponent)


def small_whole(exponent: float) -> int:
    """Return the argument WHOLE of :func:`power`."""
    return int(exponent) if exponent in (0, 1, 2, 4) else -1


@triton.jit
def sigmoid(x):
    """Return the sigmoid as PyTorch computes it on CUDA."""
    return tl.div_rn(1.0, 1.0 + exp(-x))


@triton.jit
def add(total, rest, value):
    """Return the next sum, and what all roundings have taken from it."""
    new = total + value
    part = new - total
    return new, rest + ((total - (new - part)) + (value - part))


@triton.jit
def finish_sum(total, rest):
    """Return the sum in float64; of infinities nothing is left to add."""
    return total.to(tl.float64) + tl.where(rest == rest, rest, 0.0)
