"""The choice between plain PyTorch and kernels for each operation.

The plain form of an operation stands in its file and specifies it; it runs
everywhere. A backend is a package with faster forms of some operations for
one kind of device, which compute the same values:

- ``cpp`` (CPU), in ``cpu_kernels``: C++, compiled once with the machine's
  compiler;
- ``triton`` (CUDA), in ``cuda_kernels``: Triton.

``backend='auto'``, the default of each operation, takes the one for the
device of the input and falls back to the plain form with one warning;
``'eager'`` is the plain form. The environment variable ``SIGPLUG_BACKEND``
sets what ``'auto'`` means. An operation without a kernel in the backend is as
fast in its plain form, which is then used.
"""
import functools
import importlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from ._checks import warn
from ._tracing import is_compiling

# The device and the package of each backend.
BACKENDS = {'cpp': ('cpu', 'cpu_kernels'), 'triton': ('cuda', 'cuda_kernels')}
_BACKEND_OF = {device: name for name, (device, _) in BACKENDS.items()}
NAMES = ('auto', 'eager', *BACKENDS)
VARIABLE = 'SIGPLUG_BACKEND'


class BackendError(RuntimeError):
    """A requested backend cannot be used."""


@dataclass(frozen=True)
class Form:
    """The functions that compute an operation.

    Attributes:
        operation (str): The name of the operation.
        forward (Callable): Its value.
        backward (Callable, optional): Its gradients, from those of the value
            and the arguments of ``forward``. None leaves them to autograd.
        prepare (Callable, optional): What both take in place of the sets.
    """

    operation: str
    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    prepare: Callable[..., Any] | None = None


def available_backends() -> tuple[str, ...]:
    """Return the names that the argument ``backend`` takes on this machine.

    Compiles the C++ kernels if that has not been done yet.

    Returns:
        tuple[str, ...]: ``'auto'``, ``'eager'`` and the backends whose
        device, compiler and libraries are there.
    """
    return ('auto', 'eager', *(name for name in BACKENDS
                               if not _load(name).problem))


def select(plain: Form, backend: str, *tensors: Tensor) -> Form:
    """Return the form to compute with: ``plain``, or kernels.

    Compilers, exporters, ``torch.func``, forward mode, dispatch modes and
    subclasses of tensors get the plain form, as they have to look inside; so
    do tensors on several devices, for its error. If the first tensor is of
    floating point numbers, the kernels have to compute its dtype.

    Raises:
        ValueError: There is no backend of this name.
        BackendError: The requested backend cannot compute these tensors.
    """
    name = _resolve(backend)
    if name == 'eager' or needs_plain(*tensors):
        return plain
    device, dtype = tensors[0].device, tensors[0].dtype
    for x in tensors:
        # Single values may come from the CPU.
        if x.device != device and (x.dim() or x.device.type != 'cpu'):
            return plain
    asked = name != 'auto'
    if not asked:
        if device.type not in _BACKEND_OF:
            return plain
        name = _BACKEND_OF[device.type]
    kernels = _load(name)
    problem = kernels.problem
    if not problem and device.type != BACKENDS[name][0]:
        problem = f'it computes {BACKENDS[name][0]} tensors, not {device.type}'
    if not problem and (
            dtype in kernels.dtypes or not dtype.is_floating_point):
        return kernels.forms.get(plain.operation, plain)
    if not problem and not asked:
        return plain
    problem = problem or f'it does not compute {str(dtype)[6:]}'
    if asked:
        raise BackendError(f'backend={name!r} cannot be used: {problem}. '
                           f'Available: {", ".join(available_backends())}')
    _warn_once(name, problem)
    return plain


def wants_plain_backward(grad: Tensor) -> bool:
    """Return whether a backward pass is itself differentiated or mapped."""
    if torch.is_grad_enabled() or needs_plain(grad):
        return True
    try:
        grad.untyped_storage()
    except RuntimeError:
        # One for many, of torch.autograd.grad(..., is_grads_batched=True).
        return True
    return False


def plain_gradients(function: Callable[..., Tensor], inputs: Sequence[Any],
                    wanted: Sequence[bool],
                    grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of a plain form where they are wanted.

    They can be differentiated again if that is what happens.
    """
    with torch.enable_grad():
        # Views: one input may have been computed from another.
        inputs = [x.view_as(x) if want else x
                  for x, want in zip(inputs, wanted)]
        y = function(*inputs)
    grads = iter(torch.autograd.grad(
        y, [x for x, want in zip(inputs, wanted) if want], grad,
        create_graph=torch.is_grad_enabled()))
    return tuple(next(grads) if want else None
                 for _, want in zip(inputs, wanted))


def needs_plain(*tensors: Tensor) -> bool:
    """Return whether somebody looks inside of the operation."""
    return is_traced() or not all(map(has_memory, tensors))


def check_backend(backend: str) -> None:
    """Raise a ``ValueError`` unless there is a backend of this name."""
    if backend not in NAMES:
        raise ValueError(f'backend must be one of {NAMES}, but got '
                         f'{backend!r}')


def _resolve(backend: str) -> str:
    """Return the backend; for ``'auto'``, the environment may name it."""
    check_backend(backend)
    if backend != 'auto' or is_compiling():
        return backend
    name = os.environ.get(VARIABLE) or 'auto'
    if name not in NAMES:
        raise ValueError(f'the environment variable {VARIABLE} must be one of '
                         f'{NAMES}, but is {name!r}')
    return name


@dataclass(frozen=True)
class _Kernels:
    """The kernels of a backend, or the reason why they are missing."""

    forms: Mapping[str, Form]
    dtypes: Collection[torch.dtype]
    problem: str = ''


@functools.cache
def _load(name: str) -> _Kernels:
    try:
        package = importlib.import_module(
            f'.{BACKENDS[name][1]}', __package__)
        package.prepare()
    except (ImportError, OSError, BackendError) as error:
        return _Kernels({}, (), str(error))
    return _Kernels(package.FORMS, package.DTYPES)


@functools.cache
def _warn_once(name: str, problem: str) -> None:
    warn(f'sigplug computes without its {name} kernels, in the slower eager '
         f'form: {problem} (set {VARIABLE}=eager to choose that silently)',
         RuntimeWarning)


def has_memory(x: Tensor) -> bool:
    """Return whether kernels may read the memory of a tensor as it is."""
    # The memory of a negative view has the other sign.
    return (type(x) in (Tensor, torch.nn.Parameter)
            and x.layout is torch.strided and not x.is_neg()
            and unpack_dual(x).tangent is None)


def is_traced() -> bool:
    """Return whether a compiler, a tracer or a mode sees each operation."""
    # Modes and torch.func would miss what a kernel does. torch has no public
    # way to ask for either.
    return (is_compiling() or torch.jit.is_tracing()
            or torch._C._are_functorch_transforms_active()
            or torch._C._len_torch_dispatch_stack() > 0)
