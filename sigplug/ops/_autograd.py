"""Which form of an operation is computed, and in which dtype."""
import torch
from torch import Tensor

if hasattr(torch.compiler, 'is_compiling'):
    is_compiling = torch.compiler.is_compiling
else:  # torch before 2.2
    is_compiling = torch._dynamo.is_compiling


# Before torch 2.7 an exporter other than ONNX's is a compiler like all others.
_is_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)


def is_exporting() -> bool:
    """Whether a program for another runtime is made, for ONNX or not.

    Not all of those have float64, and each node costs them.
    """
    return torch.onnx.is_in_onnx_export() or _is_exporting()


def widen(x: Tensor) -> Tensor:
    """A half type becomes float32; float32 and float64 stay as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def needs_closed_form(*inputs: object) -> bool:
    """Whether a reverse-mode gradient is recorded, outside of a compiler.

    Compilers and exporters trace the plain form instead: they derive and
    fuse its backward themselves, and cannot look into every
    ``torch.autograd.Function``.
    """
    return (torch.is_grad_enabled()
            and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
            and not is_compiling()
            and not torch.jit.is_tracing())
