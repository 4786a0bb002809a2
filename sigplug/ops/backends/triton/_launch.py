"""What the launches of the kernels share."""
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device_of(x: Tensor) -> AbstractContextManager:
    """Launch on the device of ``x``; the interpreter works on the CPU."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
