"""What the tests of the pooling operations share."""
import math

import torch

POWERS = (0.5, 1.0, 2.5, 3.0, 6.5, 20.0, 50.0)
HALF = (torch.float16, torch.bfloat16)


def reference(x, p, dims, eps=1e-6, mask=None):
    """Power mean in float64 by logarithms, which never overflow."""
    c = x.double() if eps is None else x.double().clamp(min=eps)
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else (
        mask.expand_as(x))
    count = mask.sum(dims, keepdim=True)
    logs = (p * c.log()).masked_fill(~mask, -math.inf)
    mean = logs.logsumexp(dims, keepdim=True) - count.double().log()
    y = (mean / p).exp()
    return y.squeeze(dims)


def textbook(x, p, dims, eps=1e-6):
    """The usual form, in the dtype of ``x``."""
    return x.clamp(min=eps).pow(p).mean(dims).pow(1 / p)


def grads(function, *inputs):
    """Gradients of the sum of an output with respect to the inputs."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*inputs).sum(), inputs)


def random_input(*shape, seed=0, dtype=torch.float32):
    """Positive and negative values over several orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return (x * torch.exp(torch.randn(shape, generator=generator))).to(dtype)
