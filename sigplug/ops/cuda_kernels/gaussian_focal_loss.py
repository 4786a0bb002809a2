"""The Gaussian focal loss in one pass: one exponential, one logarithm."""
import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import Form
from ..gaussian_focal_loss import (
    AVG_FACTOR_EPS,
    LOG_EPS,
    FocalOptions,
    focal_loss,
)
from ._launch import launch
from ._math import (
    add,
    exp,
    log,
    log1p,
    power,
    sigmoid,
    small_whole,
    sum_of_programs,
    sum_pairs,
)

BLOCK = 1024
# Programs that a device is busy with; then each takes several blocks.
PROGRAMS = 512


def forward(logits: Tensor, target: Tensor, options: FocalOptions,
            by_cell: bool, divisor: float | Tensor | None,
            slopes: Tensor | None) -> Tensor:
    """Compute :func:`sigplug.ops.gaussian_focal_loss.focal_loss`.

    The derivatives of the cells go into ``slopes``, float32, where given. The
    sum does not depend on the order in which the device works.
    """
    size = logits.numel()
    if not size:
        return focal_loss(logits, target, options, by_cell, divisor)
    logits, target = logits.contiguous(), target.contiguous()
    chunk = BLOCK * min(max(size // (BLOCK * PROGRAMS), 1), 8)
    programs = -(-size // chunk)
    loss = torch.empty(logits.shape if by_cell else (), dtype=torch.float32,
                       device=logits.device)
    # Sums of the programs, behind the number of those that are done.
    sums = None if by_cell else torch.zeros(
        programs + 1, dtype=torch.int64, device=logits.device)
    # The weights are divided in place of the sum and the slopes.
    scale = 1.0
    if divisor is not None and not isinstance(divisor, Tensor):
        scale, divisor = 1 / divisor, None
    launch(_loss_of_all, programs,
           (logits, target, loss, slopes, sums, divisor), (size, chunk),
           (options.alpha, options.gamma, options.pos_weight * scale,
            options.neg_weight * scale, *_bounds(options), LOG_EPS,
            AVG_FACTOR_EPS), _constants(options))
    return loss


FORM = Form('gaussian_focal_loss', forward)


@functools.cache
def _bounds(options: FocalOptions) -> tuple[float, float]:
    return options.bounds(torch.float32)


@functools.cache
def _constants(options: FocalOptions) -> tuple[int | bool, ...]:
    """Return the numbers that are compiled into the kernel."""
    return (small_whole(options.alpha), small_whole(options.gamma),
            options.clip is not None, BLOCK)


@triton.jit
def _load(logits_ptr, target_ptr, place, mask):
    # Beyond the end: a cell whose loss is finite.
    x = tl.load(logits_ptr + place, mask=mask, other=0.0).to(tl.float32)
    t = tl.load(target_ptr + place, mask=mask, other=0.0).to(tl.float32)
    return x, t


@triton.jit
def _term(x, peak, alpha, low, high, log_eps, ALPHA: tl.constexpr,
          CLIP: tl.constexpr):
    """Return a term of the loss without its weight, and its slope.

    With s = -x at a peak and x elsewhere, it is
    ``-sigmoid(s)**alpha log(1 - sigmoid(s))``.
    """
    if CLIP:
        # In the order of the plain form, whose roundings are mmdet's.
        y = sigmoid(x)
        q = tl.where(y < low, low, tl.where(y > high, high, y))
        not_q = 1.0 - q
        of_s = tl.where(peak, not_q, q)
        of_not_s = tl.where(peak, q, not_q)
        away = of_not_s + log_eps
        minus_log = -log(away)
        slope = of_s * tl.div_rn(of_not_s, away)
        # A NaN is not inside.
        inside = (y >= low) & (y <= high)
    else:
        s = tl.where(peak, -x, x)
        e = exp(-tl.abs(s))
        larger = tl.div_rn(1.0, 1.0 + e)
        smaller = e * larger
        of_s = tl.where(s < 0, smaller, larger)
        of_not_s = tl.where(s < 0, larger, smaller)
        minus_log = tl.where(s < 0, 0.0, s) + log1p(e)
        slope = of_s
        inside = x == x
    scale = power(of_s, alpha, ALPHA)
    slope = scale * (slope + alpha * of_not_s * minus_log)
    if CLIP:
        slope = tl.where(inside, slope, 0.0)
    return scale * minus_log, tl.where(peak, -slope, slope)


@triton.jit
def _loss(x, t, alpha, gamma, pos_weight, neg_weight, low, high, log_eps,
          ALPHA: tl.constexpr, GAMMA: tl.constexpr, CLIP: tl.constexpr):
    """Return the loss of each cell and its slope."""
    peak = t == 1.0
    loss, slope = _term(x, peak, alpha, low, high, log_eps, ALPHA, CLIP)
    weight = tl.where(peak, pos_weight,
                      neg_weight * power(1.0 - t, gamma, GAMMA))
    loss, slope = weight * loss, weight * slope
    if GAMMA == 0:
        # A peak is then background, too.
        other, other_slope = _term(x, x != x, alpha, low, high, log_eps,
                                   ALPHA, CLIP)
        loss += tl.where(peak, neg_weight * other, 0.0)
        slope += tl.where(peak, neg_weight * other_slope, 0.0)
    return loss, slope


@triton.jit
def _loss_of_all(logits_ptr, target_ptr, loss_ptr, slopes_ptr, sums_ptr,
                 divisor_ptr, size, chunk, alpha, gamma, pos_weight,
                 neg_weight, low, high, log_eps, divisor_eps,
                 ALPHA: tl.constexpr, GAMMA: tl.constexpr, CLIP: tl.constexpr,
                 BLOCK: tl.constexpr):
    """The loss of each cell, or their sum; the slopes."""
    program = tl.program_id(0).to(tl.int64)
    if divisor_ptr is not None:
        scale = 1.0 / (tl.load(divisor_ptr).to(tl.float32) + divisor_eps)
        pos_weight *= scale
        neg_weight *= scale
    total = tl.zeros([BLOCK], tl.float32)
    rest = tl.zeros([BLOCK], tl.float32)
    first = program * chunk
    for start in range(first, min(first + chunk, size), BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < size
        x, t = _load(logits_ptr, target_ptr, place, inside)
        loss, slope = _loss(x, t, alpha, gamma, pos_weight, neg_weight, low,
                            high, log_eps, ALPHA, GAMMA, CLIP)
        if slopes_ptr is not None:
            tl.store(slopes_ptr + place, slope, mask=inside)
        if sums_ptr is None:
            tl.store(loss_ptr + place, loss, mask=inside)
        else:
            total, rest = add(total, rest, tl.where(inside, loss, 0.0))
    if sums_ptr is not None:
        total, rest = sum_pairs(total, rest, 0, False)
        # Of infinities nothing is left to add.
        total = total.to(tl.float64) + tl.where(rest == rest, rest, 0.0)
        sum_of_programs(loss_ptr, sums_ptr, total, tl.num_programs(0))
