"""Functions for the kernels, in float32.

``pow``, ``exp`` and ``log`` are libdevice's, of at most 4, 2 and 1 ulp (CUDA
Math API, "Single Precision Mathematical Functions"). Triton's interpreter has
none of libdevice and takes NumPy's.
"""
import math
import os
from ctypes import c_float

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

INFINITY = tl.constexpr(math.inf)
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


@triton.jit
def _interpreted_fma(a, b, c):
    return (a.to(tl.float64) * b + c).to(tl.float32)


exp = _interpreted_exp if INTERPRETED else libdevice.exp
log = _interpreted_log if INTERPRETED else libdevice.log
pow = _interpreted_pow if INTERPRETED else libdevice.pow
fma = _interpreted_fma if INTERPRETED else tl.fma


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
def _add_pairs(total, rest, other, other_rest):
    new, rest = add(total, rest, other)
    return new, rest + other_rest


@triton.jit
def _reduce_pairs(total, rest, axis: tl.constexpr, keep_dims: tl.constexpr):
    return tl.reduce((total, rest), axis, _add_pairs, keep_dims=keep_dims)


@triton.jit
def _interpreted_sum(total, rest, axis: tl.constexpr,
                     keep_dims: tl.constexpr):
    # Its tl.reduce takes an element at a time.
    rest = tl.where(rest == rest, rest, 0.0)
    exact = tl.sum(total.to(tl.float64) + rest, axis, keep_dims=keep_dims)
    total = exact.to(tl.float32)
    return total, (exact - total).to(tl.float32)


# The sum of pairs of a total and what roundings have taken from it.
sum_pairs = _interpreted_sum if INTERPRETED else _reduce_pairs


@triton.jit
def sum_of_programs(sum_ptr, parts_ptr, part, programs):
    """Add up a float64 of each program, always in the same order.

    ``parts_ptr`` has one int64 more than there are programs: how many are
    done, 0 at first, and then the bits of each part.
    """
    program = tl.program_id(0).to(tl.int64)
    tl.store(parts_ptr + 1 + program, part.to(tl.int64, bitcast=True))
    tl.debug_barrier()
    if tl.atomic_add(parts_ptr, 1) == programs - 1:
        # The last one adds up.
        sums = tl.zeros([1024], tl.float64)
        for done in range(0, programs, 1024):
            k = done + tl.arange(0, 1024)
            sums += tl.load(
                parts_ptr + 1 + k, mask=k < programs, other=0,
                cache_modifier='.cg').to(tl.float64, bitcast=True)
        tl.store(sum_ptr, tl.sum(sums, 0).to(tl.float32))


@triton.jit
def split_log2(x):
    """Return a whole number and a number in [-0.5, 0.5], of the sum log2(x).

    For positive finite numbers, with an absolute error below 2**-24; of
    infinity it is 128.
    """
    small = x < 1.1754944e-38
    whole, part = split_log2_of_normal(tl.where(small, x * 16777216.0, x))
    return tl.where(small, whole - 24.0, whole), part


@triton.jit
def split_log2_of_normal(x):
    """Return :func:`split_log2` of a number of at least 2**-126."""
    bits = x.to(tl.int32, bitcast=True)
    # The bits of sqrt(0.5): the mantissa is between that and sqrt(2).
    whole = (bits - 0x3F3504F3) >> 23
    s = (bits - (whole << 23)).to(tl.float32, bitcast=True) - 1.0
    # A minimax polynomial for log2(1 + s) / s.
    q = fma(s, 0.12569612, -0.21006037)
    q = fma(s, q, 0.21713333)
    q = fma(s, q, -0.23855063)
    q = fma(s, q, 0.28769386)
    q = fma(s, q, -0.36072016)
    q = fma(s, q, 0.48092064)
    q = fma(s, q, -0.72134715)
    q = fma(s, q, 1.4426949)
    return whole.to(tl.float32), s * q


@triton.jit
def exp2_minus_1(e):
    """Return ``2**e - 1`` for e in [-0.5, 0.5], to 1 ulp of ``2**e``."""
    q = fma(e, 0.00015478837, 0.0013402299)
    q = fma(e, q, 0.0096179955)
    q = fma(e, q, 0.055503234)
    q = fma(e, q, 0.24022651)
    return e * fma(e, q, 0.69314718)


@triton.jit
def round_to_whole(x):
    """Return the nearest whole number, below 2**22, and 2 to its power."""
    shifted = x + 12582912.0
    # The last bits are those of the whole number.
    scale = (shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000
    return shifted - 12582912.0, scale.to(tl.float32, bitcast=True)


@triton.jit
def power_of_two(p, whole, part):
    """Return ``2 ** (p * (whole + part))``, 0 below normal numbers."""
    x = p * (whole + part)
    y = normal_power_of_two(p, whole, part, tl.minimum(x, 127.0))
    return tl.where(x < -126.0, 0.0, y)


@triton.jit
def normal_power_of_two(p, whole, part, x):
    """Return ``2 ** (p * (whole + part))``, where x is about the exponent."""
    n, scale = round_to_whole(x)
    # Rounded where it is small, not where it is large.
    e = fma(p, part, fma(p, whole, -n))
    return fma(exp2_minus_1(e), scale, scale)


@triton.jit
def root_of_mean(mean, share, p, p_rest):
    """The p-th root of ``mean * (1 + share)``, at most 1.

    The whole part of its logarithm is divided with what its quotient leaves:
    the logarithm is then as precise as a number below 1.
    """
    whole, part = split_log2(mean)
    inverse = 1.0 / p
    quotient = whole * inverse
    left = (fma(-quotient, p, whole) - quotient * p_rest) * inverse
    part = fma(share, 1.442695, part) * inverse
    n, scale = round_to_whole(quotient + part)
    e = (quotient - n) + (part + left)
    return fma(exp2_minus_1(e), scale, scale)


def split_power(p: float) -> tuple[float, float]:
    """Return a power as the sum of two numbers of float32."""
    if p == math.inf:
        return p, 0.0
    number = min(c_float(p).value, torch.finfo(torch.float32).max)
    return number, p - number


@triton.jit
def clamp(x, eps):
    """Return at least eps, and NaN for what is negative then."""
    c = tl.where(x < eps, eps, x)
    # All NaNs get one sign.
    return tl.where(c >= 0.0, c, float('nan'))


@triton.jit
def scale_of(whole):
    """Return a power of two and its inverse; products with them are exact."""
    exponent = tl.minimum(tl.maximum(whole, -126.0), 126.0).to(tl.int32)
    return (((127 + exponent) << 23).to(tl.float32, bitcast=True),
            ((127 - exponent) << 23).to(tl.float32, bitcast=True))


@triton.jit
def power_mean(total, rest, n, base, up, largest, p, p_rest):
    """Return the root of the mean of n powers, from the sum of two numbers.

    The powers are relative to ``base``, but to ``up`` where p is 1.
    """
    # A quotient, and what it leaves.
    inverse = 1.0 / n
    mean = total * inverse
    left = fma(-mean, n, total) + rest
    y = base * root_of_mean(mean, left / total, p, p_rest)
    y = tl.where(p == 1.0, fma(left, inverse, mean) * up, y)
    # The mean is never beyond the maximum.
    y = tl.where((p == INFINITY) | (y > largest) | (largest == INFINITY),
                 largest, y)
    return tl.where(largest > 0.0, y, largest)


@triton.jit
def slope_of_mean(c, u_whole, u_part, weight, p, p_rest):
    """Return ``dy/dx = u**(p-1) / N`` from the logarithm of ``u = c / y``."""
    slope = power_of_two((p - 1.0) + p_rest, u_whole, u_part) * weight
    return tl.where(c == 0.0, tl.where(p == 1.0, weight, 0.0), slope)
