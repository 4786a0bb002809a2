"""Which code computes an operation: the eager forms, or kernels of ours.

The eager forms, in plain PyTorch, stand beside each operation and specify it;
they run everywhere. A backend is a module with the same functions for one
kind of device:

- ``cpp`` (CPU): C++ kernels, compiled once with the machine's compiler;
- ``triton`` (CUDA): Triton kernels.

``backend='auto'``, the default of each operation, takes the one for the
device of the input and falls back to the eager form with one warning. The
environment variable ``SIGPLUG_BACKEND`` says what ``'auto'`` means.
"""
import functools
import importlib
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor

from ._autograd import is_compiling

EAGER = 'eager'
# The type of device that each one runs on.
DEVICES = {'cpp': 'cpu', 'triton': 'cuda'}
PACKAGES = {'cpp': 'cpu_kernels', 'triton': 'cuda_kernels'}
NAMES = ('auto', EAGER, *DEVICES)
VARIABLE = 'SIGPLUG_BACKEND'


class BackendError(RuntimeError):
    """A requested backend cannot be used."""


def available_backends() -> tuple[str, ...]:
    """The names that the argument ``backend`` takes on this machine.

    Compiles the C++ kernels if that has not been done yet.

    Returns:
        tuple[str, ...]: ``'auto'``, ``'eager'`` and the backends whose
        device, compiler and libraries are there.
    """
    return ('auto', EAGER, *(name for name in DEVICES
                             if not isinstance(_load(name), str)))


def select(backend: str, *tensors: Tensor) -> ModuleType | None:
    """The module to compute with; None stands for the eager form.

    Compilers, exporters, ``torch.func``, forward mode and subclasses of
    tensors always get the eager form, as they have to look inside; so do
    tensors on several devices, for its error.

    Args:
        backend (str): One of ``NAMES``.
        *tensors (Tensor): Inputs. If the first is a floating point tensor,
            its dtype has to be one that can be computed.

    Returns:
        ModuleType | None: The module of a backend.

    Raises:
        ValueError: There is no backend of this name.
        BackendError: One is asked for that cannot compute these tensors.
    """
    name = _resolve(backend)
    if (name == EAGER or _is_watched() or not all(map(_is_plain, tensors))
            or not _share_device(*tensors)):
        return None
    device, dtype = tensors[0].device.type, tensors[0].dtype
    if name != 'auto':
        return _require(name, device, dtype)
    for name, runs_on in DEVICES.items():
        if device != runs_on:
            continue
        module = _load(name)
        if isinstance(module, str):
            _warn_once(name, module)
        elif dtype in module.DTYPES or not dtype.is_floating_point:
            return module
    return None


def usable(module: ModuleType | None, *tensors: Tensor) -> bool:
    """Whether a backward pass may stay with the backend of its forward.

    A second derivative, or one that is mapped, needs the eager form.
    """
    return (module is not None and not torch.is_grad_enabled()
            and not _is_watched() and all(map(_is_plain, tensors)))


def _resolve(backend: str) -> str:
    """What is asked for, with the environment variable behind ``'auto'``."""
    if backend not in NAMES:
        raise ValueError(f'backend must be one of {NAMES}, but got '
                         f'{backend!r}')
    if backend != 'auto' or is_compiling():
        return backend
    name = os.environ.get(VARIABLE) or 'auto'
    if name not in NAMES:
        raise ValueError(f'the environment variable {VARIABLE} must be one of '
                         f'{NAMES}, but is {name!r}')
    return name


def _require(name: str, device: str, dtype: torch.dtype) -> ModuleType:
    module = _load(name)
    if isinstance(module, str):
        problem = module
    elif device != DEVICES[name]:
        problem = f'it computes {DEVICES[name]} tensors, not {device} ones'
    elif dtype.is_floating_point and dtype not in module.DTYPES:
        problem = 'it computes {}, not {}'.format(
            ', '.join(str(d)[6:] for d in module.DTYPES), str(dtype)[6:])
    else:
        return module
    raise BackendError(f'backend={name!r} cannot be used: {problem}. '
                       f'Available: {", ".join(available_backends())}')


@functools.cache
def _load(name: str) -> ModuleType | str:
    """The module of a backend, or why it is not there."""
    try:
        module = importlib.import_module(
            f'sigplug.ops.{PACKAGES[name]}')
        module.prepare()
    except (ImportError, OSError, BackendError) as error:
        return str(error)
    return module


@functools.cache
def _warn_once(name: str, problem: str) -> None:
    warnings.warn(
        f'sigplug computes without its {name} kernels, in the slower eager '
        f'form: {problem} (set {VARIABLE}=eager to choose that silently)',
        RuntimeWarning,
        stacklevel=2)


def _is_plain(x: Tensor) -> bool:
    """Whether a tensor has memory of its own that a kernel may read."""
    return (type(x) in (Tensor, torch.nn.Parameter)
            and x.layout is torch.strided
            # The memory of a negative view has the other sign.
            and not x.is_neg()
            and not torch._C._functorch.is_functorch_wrapped_tensor(x))


def _share_device(first: Tensor, *others: Tensor) -> bool:
    """Whether tensors may meet: single values can come from the CPU."""
    return all(x.device == first.device
               or (x.dim() == 0 and x.device.type == 'cpu') for x in others)


def _is_watched() -> bool:
    """Whether a compiler, a tracer or a mode sees each operation."""
    return (is_compiling() or torch.jit.is_tracing()
            or torch._C._are_functorch_transforms_active()
            or torch._C._len_torch_dispatch_stack() > 0
            or torch.autograd.forward_ad._current_level >= 0)
