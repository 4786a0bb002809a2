"""The operations in float64, without cancellation, and errors against them."""
import math

import numpy as np
import torch
from torch import Tensor


def sigmoid_reference(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``sigmoid(x)`` and ``sigmoid(-x)``."""
    e = np.exp(-np.abs(x))
    high, low = 1 / (1 + e), e / (1 + e)
    return np.where(x > 0, high, low), np.where(x > 0, low, high)


def focal_reference(
        x: np.ndarray, t: float,
        bounds: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the Gaussian focal loss and its gradient.

    Args:
        x (np.ndarray): Logits.
        t (float): Target.
        bounds (tuple[float, float], optional): Clip of the sigmoid, which
            makes it mmdet's form.
    """
    q, not_q = sigmoid_reference(x)
    slope = q * not_q
    if bounds is None:
        softplus = np.log1p(np.exp(-np.abs(x)))
        log_q = np.minimum(x, 0) - softplus
        log_not_q = np.minimum(-x, 0) - softplus
        # d log(q) / dq = 1 / q, multiplied by q (1 - q).
        pos_slope = not_q**2 * (2 * q * log_q - not_q)
        neg_slope = q**2 * (q - 2 * not_q * log_not_q)
    else:
        low, high = bounds
        slope = slope * ((q >= low) & (q <= high))
        not_q = not_q.clip(1 - high, 1 - low)
        q = q.clip(low, high)
        log_q, log_not_q = log_near_one(q, not_q), log_near_one(not_q, q)
        pos_slope = slope * (2 * not_q * log_q - not_q**2 / (q + 1e-12))
        neg_slope = slope * (q**2 / (not_q + 1e-12) - 2 * q * log_not_q)
    positive, negative = t == 1, (1 - t)**4
    loss = -(positive * not_q**2 * log_q + negative * q**2 * log_not_q)
    return loss, positive * pos_slope + negative * neg_slope


def log_near_one(q: np.ndarray, not_q: np.ndarray) -> np.ndarray:
    """Return ``log(q + 1e-12)``, by the complement where ``q`` is large."""
    return np.where(q > 0.5, np.log1p(1e-12 - not_q), np.log(q + 1e-12))


def mean_reference(
    c: np.ndarray, p: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the power mean over the last dim with its gradients.

    Returns:
        tuple: ``y``, ``dy/dc``, ``dy/dp`` and ``y / p``, the natural size of
        the latter.
    """
    top = c.max(-1, keepdims=True)
    ratio = c / top
    power = ratio**p
    mean = power.mean(-1, keepdims=True)
    y = top * mean**(1 / p)
    dx = (c / y)**(p - 1) / c.shape[-1]
    log_mean = (power * np.log(ratio)).sum(-1) / power.sum(-1)
    y = y[..., 0]
    return y, dx, y / p * (log_mean - np.log(mean[..., 0]) / p), y / p


def unit_in_last_place(value: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Return the distance of neighbours in ``dtype`` around values."""
    info = torch.finfo(dtype)
    exponent = np.frexp(value)[1] + round(math.log2(info.eps)) - 1
    lowest = round(math.log2(info.smallest_normal) + math.log2(info.eps))
    return np.ldexp(1.0, np.maximum(exponent, lowest))


class Worst:
    """The worst error of several comparisons with a reference.

    ``ulp`` is that of all values, in units in the last place; ``relative``
    leaves out references that are subnormal in the dtype.
    """

    def __init__(self) -> None:
        self.ulp = self.relative = 0.0

    def add(self, result: Tensor, reference: np.ndarray,
            scale: np.ndarray | None = None) -> None:
        """Compare; ``scale`` replaces the size of the reference."""
        size = np.abs(reference if scale is None else scale)
        error = np.abs(result.detach().double().numpy() - reference)
        # A result that is not finite is infinitely wrong.
        error[~np.isfinite(error)] = np.inf
        normal = size >= torch.finfo(result.dtype).smallest_normal
        units = error / unit_in_last_place(size, result.dtype)
        self.ulp = max(self.ulp, float(units.max(initial=0)))
        self.relative = max(
            self.relative,
            float((error[normal] / size[normal]).max(initial=0)))
