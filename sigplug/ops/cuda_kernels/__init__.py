"""Kernels for CUDA, in Triton.

float16, bfloat16 and float32 tensors; the arithmetic is in float32. Nothing
waits for the device.
"""
import torch
import triton

if int(triton.__version__.split('.')[0]) < 3:
    # What the modules below import, it has not.
    raise ImportError('the kernels need Triton 3, which torch 2.4 and later '
                      f'bring along, but here is {triton.__version__}')

from . import (  # noqa: E402
    gaussian_focal_loss,
    gaussian_heatmap,
    gem_pool,
    power_mean,
)

# The dtypes that the kernels load and store.
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FORMS = {form.operation: form for form in (
    gaussian_focal_loss.FORM, gaussian_heatmap.FORM, gem_pool.FORM,
    power_mean.FORM)}

__all__ = ['DTYPES', 'FORMS', 'prepare']


def prepare() -> None:
    """Raise an ``OSError`` unless kernels can be compiled and launched.

    Triton finds out at a launch that it has no C compiler or no Python
    headers for it, or that the device is too old for it: this is one.
    """
    if not torch.cuda.is_available():
        raise OSError('PyTorch finds no CUDA device: see '
                      'torch.cuda.is_available()')
    try:
        zeros = torch.zeros(1, 2, dtype=torch.int64, device='cuda')
        gaussian_heatmap.forward(zeros, zeros[0, :1], zeros[0, :1], 1, (1, 1))
    except Exception as error:  # Those of Triton have no common type.
        raise OSError(f'Triton cannot launch a kernel: {error}') from error
