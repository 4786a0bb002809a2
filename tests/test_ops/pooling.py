"""What the tests of pooling share."""
import math

import torch


def reference(x, p, dims, eps=1e-6, keepdim=False):
    """Power mean in float64 by logarithms, which never overflow.

    Differentiable; a tensor ``p`` broadcasts against the kept dims.
    """
    c = x.double() if eps is None else x.double().clamp(min=eps)
    largest = c.amax(dims, keepdim=True)
    p = torch.as_tensor(p, dtype=torch.float64)
    if p.isinf().all():
        return largest if keepdim else largest.squeeze(dims)
    mean = (p * c.log()).logsumexp(dims, keepdim=True) - math.log(
        c.numel() // largest.numel())
    y = torch.where(p.isinf(), largest, (mean / p).exp())
    return y if keepdim else y.squeeze(dims)


def grads(function, *inputs):
    """Gradients of the sum of an output with respect to the inputs."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*inputs).sum(), inputs)


def random_input(*shape):
    """Positive and negative values over several orders of magnitude."""
    return torch.randn(shape) * torch.randn(shape).exp()
