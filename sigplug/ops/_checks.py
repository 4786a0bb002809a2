"""Checks of arguments that several operations take."""
import math
import sys
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ._tracing import is_compiling

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8,
                  torch.uint8)

# The power of a generalised mean.
PowerLike = float | Tensor


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user that led here, behind all packages."""
    level = 1
    while sys._getframe(level).f_globals.get('__name__', '').split('.')[0] in (
            'sigplug', 'torch', 'mmengine'):
        level += 1
    warnings.warn(message, category, stacklevel=level + 1)


def check_number(name: str, value: object) -> None:
    """Raise a ``TypeError`` unless ``value`` is a real number."""
    if not is_number(value):
        raise TypeError(f'{name} must be a number, but got {value!r}')


def is_number(value: object) -> bool:
    """Return whether ``value`` is a real number; a bool is not."""
    # First what nearly all values are: an abstract class takes its time.
    return type(value) is float or (
        isinstance(value, Real) and not isinstance(value, bool))


def is_integer(value: Any, least: int) -> bool:
    """Return whether ``value`` is an integer of at least ``least``."""
    # As Any: to a type checker, an Integral has no order.
    kinds: Any = (Integral, torch.SymInt)
    return (isinstance(value, kinds) and not isinstance(value, bool)
            and value >= least)


def check_integer(name: str, value: object, least: int) -> None:
    """Raise a ``ValueError`` unless ``is_integer``."""
    if not is_integer(value, least):
        raise ValueError(f'{name} must be an integer of at least {least}, but '
                         f'got {value!r}')


def check_flag(name: str, value: object) -> None:
    """Raise a ``TypeError`` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f'{name} must be True or False, but got {value!r}')


def check_weight(name: str, value: Any) -> None:
    """Raise an error unless ``value`` is a finite number of at least 0."""
    check_number(name, value)
    if not 0.0 <= value < math.inf:
        raise ValueError(
            f'{name} must be at least 0 and finite, but got {value}')


def check_between(name: str, value: Any, low: float, high: float) -> None:
    """Raise an error unless ``value`` is a number inside of an interval."""
    check_number(name, value)
    if not low < value < high:
        raise ValueError(f'{name} must lie between {low:g} and {high:g}, but '
                         f'got {value}')


def check_positive(name: str, value: Any) -> None:
    """Raise an error unless ``value`` is a finite number above 0."""
    check_between(name, value, 0.0, math.inf)


def check_tensor(name: str, value: object) -> None:
    """Raise a ``TypeError`` unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f'{name} must be a tensor, but got {type(value).__name__}: make '
            'one by torch.tensor(...)')


def check_float_tensor(name: str, value: Any) -> None:
    """Raise a ``TypeError`` unless ``value`` is a tensor to compute with."""
    check_tensor(name, value)
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f'{name} must be a float16, bfloat16, float32 or float64 tensor, '
            f'but got {value.dtype}: convert it, e.g. {name}.float()')


def check_integer_tensor(name: str, value: Any) -> None:
    """Raise a ``TypeError`` unless ``value`` is a tensor of integers."""
    check_tensor(name, value)
    if value.dtype not in INTEGER_DTYPES:
        raise TypeError(f'{name} must be an integer tensor, but got '
                        f'{value.dtype}')


def check_device(name: str, value: Tensor, x: Tensor) -> None:
    """Raise a ``ValueError`` unless ``value`` can meet ``x``."""
    if value.device != x.device and (value.dim()
                                     or value.device.type != 'cpu'):
        raise ValueError(f'{name} must be on {x.device} as the input is, but '
                         f'is on {value.device}')


def check_shape(name: str, value: Tensor, shape: Sequence[int]) -> None:
    """Raise a ``ValueError`` unless ``value`` has this shape."""
    if value.shape != tuple(shape):
        raise ValueError(f'{name} must have the shape {tuple(shape)}, but has '
                         f'{tuple(value.shape)}')


def find_range(x: Tensor) -> tuple[float, float] | None:
    """Return the smallest and largest value, None where they are unknown.

    On a GPU that would wait for the device; in compilers, fake tensors and
    vmap there are no values.
    """
    if (x.device.type != 'cpu' or is_compiling() or torch.jit.is_tracing()
            or x.numel() == 0):
        return None
    try:
        low, high = torch.aminmax(x)
        return low.item(), high.item()
    except RuntimeError:
        return None


def fits_into(shape: torch.Size, larger: torch.Size) -> bool:
    """Return whether ``shape`` broadcasts to just ``larger``."""
    try:
        return torch.broadcast_shapes(shape, larger) == larger
    except RuntimeError:
        return False


def check_input(x: Tensor, eps: float | None) -> None:
    """Raise an error unless ``x`` and ``eps`` can be pooled."""
    check_float_tensor('x', x)
    if eps is not None:
        check_positive('eps', eps)


def prepare_power(p: PowerLike, x: Tensor) -> PowerLike:
    """Return a float, or a tensor as precise as the sums.

    One value has at most one dim, and so broadcasts against any result.

    Raises:
        TypeError: ``p`` does not hold real numbers.
        ValueError: It is not above 0 or on another device.
    """
    if not isinstance(p, Tensor):
        if not is_number(p) or not p > 0:
            raise ValueError('p must be a number above 0 (inf gives the '
                             'maximum) or a tensor of such numbers, but got '
                             f'{p!r}')
        return float(p)
    if p.is_complex() or p.dtype == torch.bool:
        raise TypeError(f'p must hold real numbers, but is of {p.dtype}')
    values = find_range(p.detach())
    if values and not values[0] > 0:
        raise ValueError(f'p must be above 0, but got {p.tolist()}')
    check_device('p', p, x)
    p = p.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return p.reshape(()) if p.numel() == 1 and p.dim() > 1 else p
