"""The dtypes of the C++ kernels."""
import torch

# With the number that stands for each in C++.
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
