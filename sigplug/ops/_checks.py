"""Checks that the operations share."""
import math
from numbers import Real

import torch
from torch import Tensor

from ._autograd import is_compiling


def check_number(name: str, value: object) -> None:
    """Raise a ``TypeError`` unless ``value`` is a real number."""
    if not isinstance(value, Real):
        raise TypeError(f'{name} must be a number, but got {value!r}')


def check_positive(name: str, value: object) -> None:
    """Raise an error unless ``value`` is a finite number above 0."""
    check_number(name, value)
    if not 0.0 < value < math.inf:
        raise ValueError(
            f'{name} must be above 0 and finite, but got {value}')


def check_tensor(name: str, value: object) -> None:
    """Raise a ``TypeError`` unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f'{name} must be a tensor, but got {type(value).__name__}: '
            'convert it by torch.as_tensor()')


def find_range(x: Tensor) -> tuple[float, float] | None:
    """Smallest and largest value; None where they cannot be looked at.

    On a GPU that would wait for the device; compilers, fake tensors and vmap
    have no values.
    """
    if x.device.type != 'cpu' or x.numel() == 0 or is_compiling():
        return None
    try:
        low, high = torch.aminmax(x)
        return low.item(), high.item()
    except RuntimeError:
        return None


def fits_into(shape: torch.Size, larger: torch.Size) -> bool:
    """Whether a tensor of ``shape`` broadcasts to just ``larger``."""
    try:
        return torch.broadcast_shapes(shape, larger) == larger
    except RuntimeError:
        return False
