"""The options and the device of every kernel launch."""
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Fused multiply-adds are written out; no version of Triton may add others.
OPTIONS = dict(enable_fp_fusion=False)


def on_device_of(x: Tensor) -> AbstractContextManager:
    """Make the device of ``x`` current; the interpreter runs on the CPU."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()
