"""Dtypes that the operations compute in."""
import torch
from torch import Tensor


def upcast_half(x: Tensor) -> Tensor:
    """Return half-precision tensors as float32, all others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
