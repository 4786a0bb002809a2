"""The Gaussian focal loss by a C++ kernel."""
from ctypes import c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from ..backends import Form
from ..gaussian_focal_loss import LOG_EPS, FocalOptions, focal_loss
from .library import DTYPES, count_threads, kernel, pointer

_OPTIONS = c_float * 7
# dtype, logits, target, their number, options, losses, sum and slopes,
# threads.
_ARGUMENTS = (c_int, c_void_p, c_void_p, c_int64, _OPTIONS, c_void_p,
              c_void_p, c_void_p, c_int)


def forward(logits: Tensor, target: Tensor, options: FocalOptions,
            by_cell: bool, divisor: float | None,
            slopes: Tensor | None) -> Tensor:
    """Compute :func:`sigplug.ops.gaussian_focal_loss.focal_loss`.

    The derivatives of the cells go into ``slopes``, float32, where given.
    """
    if not logits.numel():
        return focal_loss(logits, target, options, by_cell, divisor)
    logits, target = logits.contiguous(), target.float().contiguous()
    loss = logits.new_empty(logits.shape if by_cell else (),
                            dtype=torch.float32 if by_cell else torch.float64)
    # The weights are divided in place of the sum and the slopes.
    weights = (w / (1 if divisor is None else divisor)
               for w in (options.pos_weight, options.neg_weight))
    kernel('gaussian_focal_loss', _ARGUMENTS)(
        DTYPES[logits.dtype], logits.data_ptr(), target.data_ptr(),
        logits.numel(), _OPTIONS(
            options.alpha, options.gamma, *weights,
            *options.bounds(torch.float32), LOG_EPS),
        pointer(loss if by_cell else None),
        pointer(None if by_cell else loss), pointer(slopes),
        count_threads(logits))
    return loss.float()


FORM = Form('gaussian_focal_loss', forward)
