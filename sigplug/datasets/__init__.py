"""Checks of the data that a model is given."""
from .check_sample import BadSampleError, CheckSample

__all__ = ['BadSampleError', 'CheckSample']
