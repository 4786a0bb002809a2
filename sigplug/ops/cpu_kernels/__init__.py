"""Kernels for CPUs, in C++.

The arithmetic is in float32, and sums are in float64; the bits of a result do
not depend on the number of threads.
"""
import torch

from . import gaussian_focal_loss, power_mean
from .library import DTYPES, kernel

FORMS = {form.operation: form
         for form in (gaussian_focal_loss.FORM, power_mean.FORM)}

__all__ = ['DTYPES', 'FORMS', 'prepare']


def prepare() -> None:
    """Compile the kernels if that has not been done.

    Raises:
        BackendError: They cannot be compiled.
    """
    if kernel('knows_float16')():
        DTYPES[torch.float16] = 2
