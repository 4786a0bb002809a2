"""Functions for the kernels.

Exponentials and logarithms are libdevice's, of at most 2 ulp in float32 (CUDA
Math API, "Single Precision Mathematical Functions"). Triton's interpreter has
none of libdevice and takes NumPy's.
"""
import os

import triton
import triton.language as tl
from triton.language.extra import libdevice

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

if INTERPRETED:

    @triton.jit
    def exp(x):
        """Return the exponential."""
        return tl.exp(x)

    @triton.jit
    def log(x):
        """Return the natural logarithm."""
        return tl.log(x)
else:
    exp, log = libdevice.exp, libdevice.log


@triton.jit
def log1p(e):
    """Return ``ln(1 + e)`` for e in [0, 1], with the rounding of the sum."""
    u = 1.0 + e
    return log(u) + tl.div_rn(e - (u - 1.0), u)


@triton.jit
def _times_power_of_two(y, n):
    """Return ``y * 2**n`` for a whole n in [-250, 250], also subnormal."""
    half = n >> 1
    y = y * ((half + 127) << 23).to(tl.float32, bitcast=True)
    return y * ((n - half + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _round(x):
    """Return the nearest whole number as float32 and int32, below 2**22."""
    # The sum has no bits after the point.
    shifted = x + 12582912.0
    bits = shifted.to(tl.int32, bitcast=True)
    return shifted - 12582912.0, bits - 0x4b400000


@triton.jit
def _split(c):
    """Return k and g such that ``c = 2**k (1 + g)``, g in [-0.3, 0.42]."""
    subnormal = c < 1.1754943508222875e-38
    bits = tl.where(subnormal, c * 16777216.0, c).to(tl.int32, bitcast=True)
    # 0x3f3504f3 are the bits of sqrt(0.5).
    k = (bits - 0x3f3504f3) >> 23
    g = (bits - (k << 23)).to(tl.float32, bitcast=True) - 1.0
    k = tl.where(subnormal, k - 24, k).to(tl.float32)
    # NaN for NaN and for infinity, which the callers replace.
    return k, g + (c - c)


@triton.jit
def log2(c):
    """Return the binary logarithm of c > 0: a whole part, one in +-0.5."""
    k, g = _split(c)
    q = tl.fma(g, 0.12541245668319068, -0.21030334800464465)
    q = tl.fma(q, g, 0.21737937787710687)
    q = tl.fma(q, g, -0.23851943603400222)
    q = tl.fma(q, g, 0.2876566755107987)
    q = tl.fma(q, g, -0.36072119541546)
    q = tl.fma(q, g, 0.48092252889962905)
    q = tl.fma(q, g, -0.7213471284683272)
    q = tl.fma(q, g, 1.4426948685559389)
    return k, q * g


@triton.jit
def exp2_product(p, k, f):
    """Return ``2**(p (k + f))`` for a whole k."""
    exponent = p * k + p * f
    inside = tl.where(exponent > 129.0, 129.0,
                      tl.where(exponent < -151.0, -151.0, exponent))
    n, whole = _round(inside)
    # p k may be large, but is not rounded before n is taken from it.
    r = tl.fma(p, k, -n) + p * f
    q = tl.fma(r, 0.00015353361928130698, 0.0013398874408254444)
    q = tl.fma(q, r, 0.009618437357547931)
    q = tl.fma(q, r, 0.05550332471144403)
    q = tl.fma(q, r, 0.24022647913630607)
    q = tl.fma(q, r, 0.6931472028550547)
    y = _times_power_of_two(tl.fma(q, r, 1.0), whole)
    y = tl.where(exponent < -151.0, 0.0, y)
    return tl.where(exponent > 129.0, float('inf'), y)


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
        k, f = log2(base)
        return tl.where(base == 0, 0.0, exp2_product(exponent, k, f))


def small_whole(exponent: float) -> int:
    """Return the argument WHOLE of :func:`power`."""
    return int(exponent) if exponent in (0, 1, 2, 4) else -1


@triton.jit
def sigmoid(x):
    """Compute the sigmoid as PyTorch does on CUDA."""
    return tl.div_rn(1.0, 1.0 + exp(-x))


@triton.jit
def add(total, rest, value):
    """Return the next sum, and what roundings have taken from it so far."""
    new = total + value
    part = new - total
    return new, rest + ((total - (new - part)) + (value - part))


@triton.jit
def finish_sum(total, rest):
    """Return the sum in float64; an infinite one needs no correction."""
    return total.to(tl.float64) + tl.where(rest == rest, rest, 0.0)
