"""Detection of compilers and exporters that trace the running code."""
import torch

if hasattr(torch.compiler, 'is_compiling'):
    is_compiling = torch.compiler.is_compiling
else:  # torch before 2.2
    is_compiling = torch._dynamo.is_compiling


# Before torch 2.7 an exporter other than ONNX's is a compiler like all others.
_is_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)


def is_exporting() -> bool:
    """Return whether a program is exported, to ONNX or another runtime.

    Some runtimes have no float64, and each node costs time.
    """
    return torch.onnx.is_in_onnx_export() or _is_exporting()
