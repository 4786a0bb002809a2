"""The operations in each of their modes, as one table."""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sigplug.ops import (
    clip_sigmoid,
    gaussian_focal_loss_with_logits,
    gem_pool,
    generalized_mean,
    segment_generalized_mean,
)

IMAGE = (2, 3, 2, 3)


def logits() -> Tensor:
    """On both sides of the clips at 1e-2 and 1e-4, none close to them."""
    x = torch.linspace(-11, 11, 36)
    return x[torch.randperm(36)].view(IMAGE)


def inner_logits() -> Tensor:
    """Inside the clips: beyond them a straight gradient is not the slope."""
    return logits() / 3


def targets() -> Tensor:
    t = torch.rand(IMAGE)**3
    t.view(-1)[::7] = 1
    return t


def positive(*shape: int) -> Tensor:
    """Distinct, so that the maximum has no tie, and above the clamp."""
    n = torch.Size(shape).numel()
    return torch.linspace(0.2, 3.0, n)[torch.randperm(n)].view(shape)


class Function(nn.Module):
    """What exporters take."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


@dataclass
class Case:
    """``function(*tensors)``; the first ``inputs`` are differentiable.

    The others, masks, indices and targets, are ``constants``.
    """

    function: Callable[..., Tensor]
    inputs: tuple[Callable[[], Tensor], ...]
    constants: tuple[Callable[[], Tensor], ...] = ()

    def tensors(self, dtype=torch.float32) -> tuple[list, list]:
        inputs = [make().to(dtype) for make in self.inputs]
        constants = [make() for make in self.constants]
        return inputs, [c.to(dtype) if c.is_floating_point() else c
                        for c in constants]


def p_shared() -> Tensor:
    return torch.tensor([2.5])


def p_per_channel() -> Tensor:
    return torch.tensor([1.5, 3.0, 6.5])


def mask() -> Tensor:
    """One set without elements, one with a single one."""
    mask = torch.rand(IMAGE) > 0.4
    mask[0, 0] = False
    mask[1, 1] = False
    mask[1, 1, 0, 0] = True
    return mask


def index() -> Tensor:
    """Segments in no order, one of them empty."""
    return torch.tensor([3, 0, 2, 0, 0, 3, 2, 0])


def image() -> Tensor:
    return positive(*IMAGE)


def rows() -> Tensor:
    return positive(8, 3)


FOCAL = dict(reduction='none')
WINDOW = dict(kernel_size=(3, 2), stride=(1, 2), padding=(1, 1))

CASES = {
    'clip_sigmoid': Case(clip_sigmoid, (logits, )),
    'clip_sigmoid straight': Case(
        lambda x: clip_sigmoid(x, 1e-2, 0.98, grad='straight_through'),
        (inner_logits, )),
    'focal': Case(
        lambda x, t: gaussian_focal_loss_with_logits(x, t, **FOCAL),
        (logits, ), (targets, )),
    'focal clip': Case(
        lambda x, t: gaussian_focal_loss_with_logits(
            x, t, clip=1e-2, **FOCAL), (logits, ), (targets, )),
    'focal exponents': Case(
        lambda x, t: gaussian_focal_loss_with_logits(
            x, t, alpha=1.5, gamma=0.0, pos_weight=2.0, **FOCAL), (logits, ),
        (targets, )),
    'focal mean': Case(
        lambda x, t, w: gaussian_focal_loss_with_logits(
            x, t, weight=w, avg_factor=7.0), (logits, ), (targets, image)),
    'generalized_mean': Case(generalized_mean, (image, )),
    'generalized_mean 1': Case(
        lambda x: generalized_mean(x, 1.0, 1), (image, )),
    'generalized_mean inf': Case(
        lambda x: generalized_mean(x, float('inf'), (1, 3)), (image, )),
    'generalized_mean 0.5': Case(
        lambda x: generalized_mean(x, 0.5, keepdim=True), (image, )),
    'generalized_mean no clamp': Case(
        lambda x, p: generalized_mean(x, p, eps=None), (image, p_shared)),
    'generalized_mean shared': Case(generalized_mean, (image, p_shared)),
    'generalized_mean channels': Case(
        generalized_mean, (image, p_per_channel)),
    'generalized_mean fixed tensor': Case(
        lambda x, p: generalized_mean(x, torch.cat([p[:2], p[2:] / 0])),
        (image, ), (p_per_channel, )),
    'masked': Case(
        lambda x, m: generalized_mean(x, mask=m), (image, ), (mask, )),
    'masked inf': Case(
        lambda x, m: generalized_mean(x, float('inf'), mask=m), (image, ),
        (mask, )),
    'masked channels': Case(
        lambda x, p, m: generalized_mean(x, p, mask=m),
        (image, p_per_channel), (mask, )),
    'gem_pool strips': Case(
        lambda x, p: gem_pool(x, p, kernel_size=(1, None)),
        (image, p_shared)),
    'gem_pool windows': Case(
        lambda x, p: gem_pool(x, p, **WINDOW), (image, p_per_channel)),
    'gem_pool small windows': Case(
        lambda x, p: gem_pool(x, p, 2), (image, p_per_channel)),
    'gem_pool windows 1': Case(
        lambda x: gem_pool(x, 1.0, **WINDOW), (image, )),
    'gem_pool windows inf': Case(
        lambda x: gem_pool(x, float('inf'), **WINDOW), (image, )),
    'gem_pool adaptive': Case(
        lambda x, p: gem_pool(x, p, output_size=(2, 2)),
        (image, p_per_channel)),
    'segment': Case(
        lambda x, i: segment_generalized_mean(x, i, 4), (rows, ), (index, )),
    'segment 1': Case(
        lambda x, i: segment_generalized_mean(x, i, 4, 1.0), (rows, ),
        (index, )),
    'segment 0.5': Case(
        lambda x, i: segment_generalized_mean(x, i, 4, 0.5), (rows, ),
        (index, )),
    'segment inf': Case(
        lambda x, i: segment_generalized_mean(x, i, 4, float('inf')),
        (rows, ), (index, )),
    'segment channels': Case(
        lambda x, p, i: segment_generalized_mean(x, i, 4, p),
        (rows, p_per_channel), (index, )),
}
