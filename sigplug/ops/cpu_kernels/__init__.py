"""Kernels for CPUs, in C++.

float32 and bfloat16 tensors; the arithmetic is in float32, and sums are in
float64. The bits of a result do not depend on the number of threads.
"""
from . import gaussian_focal_loss, power_mean
from .library import DTYPES
from .library import load as prepare

FORMS = {form.operation: form
         for form in (gaussian_focal_loss.FORM, power_mean.FORM)}

__all__ = ['DTYPES', 'FORMS', 'prepare']
