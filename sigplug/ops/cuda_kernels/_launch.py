"""The launch of every kernel."""
from typing import Any

import torch
import triton
from torch import Tensor

# Fused multiply-adds are written out; no version of Triton may add others.
OPTIONS = dict(enable_fp_fusion=False)
# What is compiled takes the arguments of the kernel since Triton 3.3.
KEEPS_COMPILED = tuple(map(int, triton.__version__.split('.')[:2])) >= (3, 3)
_compiled: dict[tuple[Any, ...], Any] = {}


def launch(kernel: Any, programs: int, tensors: tuple[Tensor | None, ...],
           integers: tuple[int, ...], floats: tuple[float, ...],
           constants: tuple[Any, ...]) -> None:
    """Launch a kernel whose parameters come in this order.

    Triton looks at each argument to find what it has compiled for the like,
    which takes it longer than all the rest of a launch. Here that is kept by
    what it compiles for: the dtypes, integers that are 1 or divisible by 16,
    or wide, and constants. Addresses that are not divisible by 16 are rare
    and go its own way.
    """
    first = tensors[0]
    assert first is not None
    device, address = first.device, 0
    if device.type == 'cuda' and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return launch(kernel, programs, tensors, integers, floats,
                          constants)
    key = [id(kernel), device, constants]
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
                                    **OPTIONS)
    if KEEPS_COMPILED and address % 16 == 0:
        _compiled[place] = compiled
    return None
