"""What the launches of the kernels share."""
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Where products and sums fuse is written out: no other place, in any version.
OPTIONS = dict(enable_fp_fusion=False)


def on_device_of(x: Tensor) -> AbstractContextManager:
    """Launch on the device of ``x``; the interpreter works on the CPU."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
