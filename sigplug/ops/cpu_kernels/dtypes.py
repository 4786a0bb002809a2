"""What the C++ kernels compute."""
import torch

# With the number by which the kernels know a dtype.
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
