"""Kernels for CUDA, with the signatures and results of the plain forms.

float16, bfloat16 and float32 tensors; the arithmetic is in float32. Nothing
waits for the device.
"""
import torch
import triton

from ..power_mean import Dims
from .clip_sigmoid import clip_sigmoid_backward, clip_sigmoid_forward
from .gaussian_focal_loss import (
    gaussian_focal_loss_backward,
    gaussian_focal_loss_forward,
    gaussian_focal_loss_sums,
)
from .gaussian_heatmap import gaussian_heatmap
from .power_mean import power_mean_backward, power_mean_forward

__all__ = [
    'DTYPES', 'prepare', 'clip_sigmoid_backward', 'clip_sigmoid_forward',
    'gaussian_focal_loss_backward', 'gaussian_focal_loss_forward',
    'gaussian_focal_loss_sums', 'gaussian_heatmap', 'power_mean_backward',
    'power_mean_forward'
]

# What the kernels load and store.
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def prepare() -> None:
    """Raise an ``OSError`` unless kernels can be compiled and launched.

    Triton finds out at a launch that it has no C compiler or no Python
    headers for it, or that the device is too old for it: this is one.
    """
    if int(triton.__version__.split('.')[0]) < 3:
        raise OSError('the kernels need Triton 3, which torch 2.4 and later '
                      f'bring along, but here is {triton.__version__}')
    if not torch.cuda.is_available():
        raise OSError('PyTorch finds no CUDA device: see '
                      'torch.cuda.is_available()')
    try:
        power_mean_forward(torch.ones(1, device='cuda'), 3.0, Dims((0, )),
                           None, None)
    except Exception as error:  # Those of Triton have no common type.
        raise OSError(f'Triton cannot launch a kernel: {error}') from error
