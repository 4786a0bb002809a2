"""Values, gradients and allowed errors of the operations, by formula.

Nothing here calls sigplug. numpy's longdouble is at least float64; where it
is wider, as on x86, it can also judge float64 results and powers that float64
cannot hold.

Each reference returns pairs of the true value and the error that is allowed,
which is counted in roundings of the computing dtype (float32 for the half
types) and, once, of the output dtype.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LD = np.longdouble


def wide(dtype: torch.dtype) -> torch.dtype:
    """What ``dtype`` is computed in."""
    return torch.promote_types(dtype, torch.float32)


def exact(x: Tensor | float) -> np.ndarray:
    """The numbers that a tensor holds, none rounded."""
    if isinstance(x, Tensor):
        x = x.detach().double().numpy()
    return np.asarray(x, dtype=LD)


def rounding(dtype: torch.dtype) -> LD:
    """Half the distance of 1 to the next number: the error of one step."""
    return LD(torch.finfo(wide(dtype)).eps) / 2


def smallest_normal(dtype: torch.dtype) -> LD:
    """Below it, results lose bits or are flushed."""
    return LD(torch.finfo(dtype).smallest_normal)


def ulp(value: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Distance of the neighbours of ``value`` in ``dtype``."""
    info = torch.finfo(dtype)
    exponent = np.frexp(np.asarray(value, dtype=LD))[1]
    return np.maximum(np.ldexp(LD(info.eps), exponent - 1),
                      LD(info.smallest_normal) * LD(info.eps))


def steps(actual: Tensor, expected: np.ndarray) -> np.ndarray:
    """Error in units of the last place of ``actual``'s dtype."""
    return np.abs(exact(actual) - expected) / ulp(expected, actual.dtype)


def assert_within(actual: Tensor, expected: np.ndarray,
                  allowed: np.ndarray) -> None:
    """Compare elementwise. A NaN fails, also where an error is unbounded.

    What the dtype cannot hold may be infinite, of the right sign.
    """
    assert tuple(actual.shape) == expected.shape
    value = exact(actual)
    largest = torch.finfo(actual.dtype).max
    with np.errstate(invalid='ignore', over='ignore'):
        close = np.abs(value - expected) <= allowed
        close |= value == expected
        beyond = np.abs(expected) + allowed > largest
    too_large = (beyond & np.isinf(value)
                 & (np.sign(value) == np.sign(expected)))
    unbounded = np.isinf(allowed) & ~np.isnan(value)
    bad = ~(close | too_large | unbounded)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise AssertionError(
            f'{bad.sum()} of {bad.size} differ, the first at {place}: '
            f'{value[place]:.17g}, expected {expected[place]:.17g} '
            f'+- {allowed[place]:.3g} in {actual.dtype}')


# --- clip_sigmoid ---------------------------------------------------------


def bounds(low: float, high: float,
           dtype: torch.dtype) -> tuple[LD, LD]:
    """The bounds as ``dtype`` holds them: halves inwards, others nearest."""
    one, zero = torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype)
    lo, hi = (torch.tensor(v, dtype=torch.float64).to(dtype)
              for v in (low, high))
    if dtype in (torch.float16, torch.bfloat16):
        lo = torch.nextafter(lo, one) if lo.item() < low else lo
        hi = torch.nextafter(hi, zero) if hi.item() > high else hi
    lo = torch.maximum(lo, torch.nextafter(zero, one))
    hi = torch.minimum(hi, torch.nextafter(one, zero))
    return LD(lo.item()), LD(hi.item())


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over='ignore'):
        return 1 / (1 + np.exp(-x))


def clip_sigmoid(x: Tensor, low: float, high: float, grad: str):
    """Value, and gradient for an upstream gradient of 1."""
    s, slope = sigmoid(exact(x)), sigmoid(exact(x)) * sigmoid(-exact(x))
    lo, hi = bounds(low, high, x.dtype)
    y = np.clip(s, lo, hi)
    # The bound that the project states. The clip takes no rounding away.
    y_allowed = 2 * ulp(y, x.dtype)

    u = rounding(x.dtype)
    # Rounded to the output dtype; a few steps in the computing one.
    slope_allowed = ulp(slope, x.dtype) + 8 * u * slope
    if grad == 'zero':
        # y (1 - y), as autograd and mmdet3d have it: where y is close to 1,
        # 1 - y has the error of y.
        slope_allowed = slope_allowed + 4 * u * (s > 0.5)
        # Within the error of y either side of the bound may be taken.
        edge = 4 * ulp(y, wide(x.dtype))
        at_edge = (np.abs(s - lo) <= edge) | (np.abs(s - hi) <= edge)
        outside = (s < lo) | (s > hi)
        slope_allowed = slope_allowed + at_edge * slope
        slope = np.where(outside & ~at_edge, 0, slope)
        slope_allowed = np.where(outside & ~at_edge, 0, slope_allowed)
    else:
        # A sigmoid below the smallest normal number may be flushed.
        slope_allowed = slope_allowed + smallest_normal(wide(x.dtype))
    return (y, y_allowed), (slope, slope_allowed)


# --- gaussian_focal_loss_with_logits --------------------------------------


def focal_loss(logits: Tensor, target: Tensor, *, alpha=2.0, gamma=4.0,
               pos_weight=1.0, neg_weight=1.0, clip=None):
    """Elementwise loss, and gradient for an upstream gradient of 1."""
    dtype = wide(logits.dtype)
    u, tiny = rounding(dtype), smallest_normal(dtype)
    x, t = exact(logits), exact(target.to(dtype))
    # A power with a float exponent: its own error and the one of 1 - t.
    far = (1 - t)**LD(gamma)
    far_error = (gamma + 4) * u
    pos, neg = pos_weight * (t == 1), neg_weight * far
    if clip is None:
        q, r = sigmoid(x), sigmoid(-x)
        log_q, log_r = -np.logaddexp(0, -x), -np.logaddexp(0, x)
        q_error = r_error = 0
        inside = np.ones(x.shape, dtype=bool)
        # q / q and r / r, also where they underflow.
        q_share = r_share = LD(1)
    else:
        lo, hi = bounds(clip, 1 - clip, dtype)
        s, log_eps = sigmoid(x), LD(1e-12)
        q = np.clip(s, lo, hi)
        r = 1 - q
        log_q, log_r = np.log(q + log_eps), np.log(r + log_eps)
        # mmdet takes 1 - q, which has the error of q where q is close to 1.
        q_step = 2 * ulp(q, dtype)
        q_error, r_error = q_step / q, q_step / r + 2 * u
        q_share, r_share = q / (q + log_eps), r / (r + log_eps)
        inside = (s >= lo) & (s <= hi)
        edge = 2 * q_step
        at_edge = (np.abs(s - lo) <= edge) | (np.abs(s - hi) <= edge)

    with np.errstate(over='ignore', invalid='ignore'):
        q_alpha, r_alpha = q**LD(alpha), r**LD(alpha)
        losses = (-pos * r_alpha * log_q, -neg * q_alpha * log_r)
        # d(q)/dx = q r; the two terms of each have the same sign.
        slopes = (-pos * r_alpha * (r * q_share
                                    - alpha * q * log_q),
                  neg * q_alpha * (q * r_share
                                   - alpha * r * log_r))
        # exp(alpha log q) turns the rounding of its exponent into a relative
        # error, and so does a power whose base is rounded.
        errors = [
            8 * u + 4 * u * alpha * np.minimum(np.abs(log), 800) +
            (alpha + 2) * base_error + 2 * other_error +
            (0 if clip is None else base_log_error)
            for log, base_error, other_error, base_log_error in (
                (log_r, r_error, q_error, q_error / np.maximum(
                    np.abs(log_q), LD(1e-30))),
                (log_q, q_error, r_error, r_error / np.maximum(
                    np.abs(log_r), LD(1e-30))))]
        errors[1] = errors[1] + far_error

        def combine(terms):
            allowed = sum(np.abs(term) * error
                          for term, error in zip(terms, errors))
            total = sum(terms)
            # Powers below the smallest normal number may be flushed, and
            # what is left multiplies the logarithm and the weights. Where
            # that of 1 - t is flushed, the logarithm may be of any size.
            log = np.minimum(np.abs(x), 800 + 800 / LD(alpha or 1))
            log = np.where(far < tiny, np.abs(x), log)
            floor = tiny * (4 + log) * (
                1 + pos_weight + neg_weight) * (1 + alpha)
            return total, allowed + 2 * u * np.abs(total) + floor

        value, (slope, slope_allowed) = combine(losses), combine(slopes)
    if clip is not None:
        slope_allowed = slope_allowed + at_edge * np.abs(slope)
        slope_allowed = np.where(inside | at_edge, slope_allowed, 0)
        slope = np.where(inside | at_edge, slope, 0)
    slope_allowed = slope_allowed + (
        0 if dtype == logits.dtype else ulp(slope, logits.dtype))
    return value, (slope, slope_allowed)


# --- the generalised mean -------------------------------------------------


@dataclass
class Sets:
    """Which elements each output pools: flat places in ``x`` and ``p``."""

    shape: tuple[int, ...]
    members: list[np.ndarray]
    powers: list[int]


def mean_of_set(c: np.ndarray, p: float, dtype: torch.dtype):
    """Value and derivatives of one set, each with its allowed error."""
    u, out, count = rounding(dtype), wide(dtype), len(c)
    zeros = np.zeros(c.shape, dtype=LD)
    if count == 0:
        return (LD(0), LD(0)), (zeros, zeros), (LD(0), LD(0))
    m = c.max()
    if m == 0:
        # Not differentiable: any finite number will do.
        return (LD(0), LD(0)), (zeros, zeros + LD(1e30)), (LD(0), LD(1e30))
    if np.isinf(p):
        ties = (c == m).astype(LD)
        slope = ties / ties.sum()
        return (m, LD(0)), (slope, 2 * u * slope), (LD(0), LD(0))

    p = LD(p)
    ratio = c / m
    with np.errstate(divide='ignore', invalid='ignore', under='ignore'):
        log = np.where(ratio > 0, np.log(ratio), 0)
        power = ratio**p
        mean = power.sum() / count
        log_mean = np.log(mean)
        y = m * mean**(1 / p)
        slope = np.where((ratio > 0) | (p > 1), ratio**(p - 1),
                         1 if p == 1 else np.inf)
        slope = slope * mean**(1 / p - 1) / count
    r = (power * log).sum() / power.sum()
    by_p = y / p * (r - log_mean / p)

    # From p = 1 on, the bound that the project states. Below, the root
    # multiplies the error of the mean, and the rounding of 1/p the mean's
    # logarithm.
    y_allowed = 4 * ulp(y, out)
    if out == torch.float64:
        # Nothing is wider to sum in: a sum of n positive terms is off by
        # up to n - 1 roundings, of which the root takes the p-th part.
        y_allowed += (count - 1) * u * y / p
    # A ratio below the smallest normal number has few bits, or none.
    lost = np.where(ratio < smallest_normal(out), ulp(ratio, out), 0)
    if p < 1:
        power_lost = ((ratio + lost)**p - np.maximum(ratio - lost, 0)**p)
        y_allowed += u * y * (4 - 2 * log_mean) / p + (
            y * power_lost.sum() / power.sum() / p)
    # The power multiplies the roundings of its base, and its logarithm those
    # of the exponent; the mean and its root come on top, as for y. The closed
    # form divides by y, of which a subnormal holds few bits. What underflows
    # in the power is lost.
    slope_error = u * (8 + 4 * p + 4 / p + 4 * (p + 1) * np.minimum(
        np.abs(log), 800 / p) + 2 * np.abs(log_mean) / p)
    if y < smallest_normal(out):
        slope_error = slope_error + np.expm1(
            abs(p - 1) * np.log1p(ulp(y, out) / y))
    with np.errstate(divide='ignore', invalid='ignore'):
        slope_lost = np.abs((ratio + lost)**(p - 1) - np.maximum(
            ratio - lost, 0)**(p - 1)) * mean**(1 / p - 1) / count
        slope_allowed = np.where(lost > 0, slope_lost, 0)
        slope_allowed += slope * slope_error + smallest_normal(out)
    # r: weights that are off by p roundings, over logarithms that are off by
    # one; log_mean: the same weights.
    by_p_allowed = 4 * u * y / p * (
        2 + 3 / p + (p + 5) * np.abs(r) + np.abs(log_mean) / p
    ) + smallest_normal(out)
    if p < 1:
        # The closed form takes y, which is no longer exact to a few steps.
        by_p_allowed += y_allowed / p * (1 + (1 + p) * np.abs(
            r - log_mean / p))
    return (y, y_allowed), (slope, slope_allowed), (by_p, by_p_allowed)


def pooled(x: Tensor, p: Tensor | float, sets: Sets, eps: float | None,
           upstream: np.ndarray):
    """Generalised means of ``sets``, and gradients for ``upstream``."""
    dtype, out = x.dtype, wide(x.dtype)
    flat = exact(x).reshape(-1)
    limit = -LD(np.inf) if eps is None else exact(
        torch.tensor(eps, dtype=out))
    c, passes = np.maximum(flat, limit), flat >= limit
    powers = exact(p).reshape(-1)
    upstream = np.broadcast_to(exact(upstream), sets.shape).reshape(-1)

    n = len(sets.members)
    y, y_allowed = np.zeros(n, dtype=LD), np.zeros(n, dtype=LD)
    dx, dx_allowed = np.zeros_like(flat), np.zeros_like(flat)
    dp, dp_allowed = np.zeros_like(powers), np.zeros_like(powers)
    for i, (members, place) in enumerate(zip(sets.members, sets.powers)):
        (y[i], y_allowed[i]), (slope, slope_error), (by_p, by_p_error) = (
            mean_of_set(c[members], powers[place], dtype))
        g, size = upstream[i], abs(upstream[i])
        # A closed gate is a zero, not zero times infinity.
        dx[members] += g * np.where(passes[members], slope, 0)
        dx_allowed[members] += size * np.where(
            passes[members], slope_error, 0)
        dp[place] += g * by_p
        # Sums over the sets are rounded relative to their terms.
        dp_allowed[place] += size * (
            by_p_error + 4 * n * rounding(dtype) * abs(by_p))
    # One more rounding where the computing dtype is not the output's.
    if out != dtype:
        y_allowed += ulp(y, dtype) / 2
        dx_allowed += ulp(dx, dtype)
    dx_allowed += 4 * rounding(dtype) * np.abs(dx)
    if isinstance(p, Tensor):
        dp_allowed += ulp(dp, p.dtype)
    return [[v.reshape(shape) for v in pair] for shape, *pair in (
        (sets.shape, y, y_allowed), (x.shape, dx, dx_allowed),
        (getattr(p, 'shape', -1), dp, dp_allowed))]


def dense_sets(shape, dims, mask=None, p_places=None) -> Sets:
    """Of ``generalized_mean``; ``p_places`` is of the kept shape."""
    places = np.arange(math.prod(shape)).reshape(shape)
    kept = [d for d in range(len(shape)) if d not in dims]
    members = places.transpose(*kept, *dims).reshape(
        -1, math.prod(shape[d] for d in dims))
    if mask is not None:
        members = [row[mask.reshape(-1)[row]] for row in members]
    kept_shape = tuple(shape[d] for d in kept)
    powers = np.broadcast_to(0 if p_places is None else p_places, kept_shape)
    return Sets(kept_shape, members, powers.reshape(-1))


def segment_sets(shape, index, num_segments, per_column) -> Sets:
    """Of ``segment_generalized_mean`` on rows of any shape."""
    columns = math.prod(shape[1:])
    places = np.arange(math.prod(shape)).reshape(shape[0], columns)
    powers = range(columns) if per_column else [0] * columns
    return Sets(
        (num_segments, *shape[1:]),
        [members for segment in range(num_segments)
         for members in places[index == segment].T],
        [*powers] * num_segments)
