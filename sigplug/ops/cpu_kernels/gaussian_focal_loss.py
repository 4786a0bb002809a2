"""The Gaussian focal loss by C++ kernels."""
from ctypes import c_bool, c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from ..backends import Form
from ..gaussian_focal_loss import LOG_EPS, FocalOptions
from .library import DTYPES, count_threads, kernel

_OPTIONS = c_float * 7


def forward(logits: Tensor, target: Tensor, options: FocalOptions,
            rows: int | None) -> Tensor:
    """Compute :func:`sigplug.ops.gaussian_focal_loss.focal_loss`."""
    logits, target = logits.contiguous(), target.float().contiguous()
    if rows is None:
        loss = torch.empty_like(logits, dtype=torch.float32)
        kernel('gaussian_focal_loss_cells', c_int, c_void_p, c_void_p,
               c_int64, _OPTIONS, c_void_p, c_int)(
            DTYPES[logits.dtype], logits.data_ptr(), target.data_ptr(),
            logits.numel(), _numbers(options), loss.data_ptr(),
            count_threads(logits))
        return loss
    sums = logits.new_empty(rows, dtype=torch.float64)
    kernel('gaussian_focal_loss_sums', c_int, c_void_p, c_void_p, c_int64,
           c_int64, _OPTIONS, c_void_p, c_int)(
        DTYPES[logits.dtype], logits.data_ptr(), target.data_ptr(), rows,
        logits.numel() // max(rows, 1), _numbers(options), sums.data_ptr(),
        count_threads(logits))
    return sums.float()


def backward(grad: Tensor, logits: Tensor, target: Tensor,
             options: FocalOptions, rows: int | None) -> Tensor:
    """Return the gradient of the logits."""
    logits, target = logits.contiguous(), target.float().contiguous()
    grad = grad.float().contiguous()
    grad_logits = torch.empty_like(logits)
    pieces = rows or 1
    kernel('gaussian_focal_loss_backward', c_int, c_void_p, c_void_p,
           c_int64, c_int64, c_void_p, c_bool, _OPTIONS, c_void_p, c_int)(
        DTYPES[logits.dtype], logits.data_ptr(), target.data_ptr(), pieces,
        logits.numel() // pieces, grad.data_ptr(), rows is None,
        _numbers(options), grad_logits.data_ptr(), count_threads(logits))
    return grad_logits


def _numbers(options: FocalOptions) -> object:
    """Return the options in the order of the struct of the kernels."""
    return _OPTIONS(
        options.alpha, options.gamma, options.pos_weight, options.neg_weight,
        *options.bounds(torch.float32), LOG_EPS)


FORM = Form('gaussian_focal_loss', forward, backward)
