"""The launch of every kernel."""
from typing import Any

import torch
import triton
from torch import Tensor

# Fused multiply-adds are written out; no version of Triton may add others.
OPTIONS = dict(enable_fp_fusion=False)
# What is compiled takes the arguments of the kernel since Triton 3.3. For
# ROCm, Triton also looks at the size of tensors.
KEEPS_COMPILED = (torch.version.hip is None and tuple(
    map(int, triton.__version__.split('.')[:2])) >= (3, 3))
_compiled: dict[tuple[Any, ...], Any] = {}


def launch(kernel: Any, programs: int, tensors: tuple[Tensor | None, ...],
           integers: tuple[int, ...], floats: tuple[float, ...],
           constants: tuple[Any, ...], warps: int = 4) -> None:
    """Launch a kernel whose parameters come in this order.

    Triton inspects every argument to find the kernel that it has compiled for
    the like, which takes longer than the rest of a launch. Here kernels are
    kept by what it compiles for: dtypes, integers that are 1, divisible by 16
    or wide, constants and warps. Addresses that are not divisible by 16 are
    rare and left to Triton.
    """
    first = tensors[0]
    assert first is not None
    device, address = first.device, 0
    # An integer among them would be compiled apart.
    floats = tuple(map(float, floats))
    if device.type == 'cuda' and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return launch(kernel, programs, tensors, integers, floats,
                          constants, warps)
    key = [id(kernel), device, constants, warps]
    for x in tensors:
        if x is None:
            key.append(None)
        else:
            key.append(x.dtype)
            address |= x.data_ptr()
    for n in integers:
        key.append(1 if n == 1 else (n % 16 == 0, n >= 2**31))
    place = tuple(key)
    compiled = None if address % 16 else _compiled.get(place)
    if compiled is not None:
        compiled[programs, 1, 1](*tensors, *integers, *floats, *constants)
        return None
    compiled = kernel[(programs, )](*tensors, *integers, *floats, *constants,
                                    num_warps=warps, **OPTIONS)
    if (KEEPS_COMPILED and address % 16 == 0
            and isinstance(compiled, triton.compiler.CompiledKernel)):
        _compiled[place] = compiled
    return None
