"""Generalised (power) mean over dims."""
from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import (
    PowerLike,
    check_device,
    check_flag,
    check_input,
    check_tensor,
    fits_into,
    prepare_power,
)
from .power_mean import Dims, power_mean


def generalized_mean(x: Tensor,
                     p: PowerLike = 3.0,
                     dim: int | Sequence[int] = (-2, -1),
                     *,
                     eps: float | None = 1e-6,
                     mask: Tensor | None = None,
                     keepdim: bool = False,
                     backend: str = 'auto') -> Tensor:
    r"""Generalised (power) mean over some dims.

    .. math::
        y = \Big(\frac{1}{N} \sum_{i=1}^N \max(x_i, \epsilon)^p\Big)^{1/p}

    ``p = inf`` is the maximum and a number ``p = 1`` the mean, exactly (a
    tensor ``p`` of 1 to 1 ulp). The powers are taken relative to the largest
    element, so that the result is finite wherever it is representable;
    half-precision dtypes are computed in float32. With a tensor ``p`` below 1
    the relative error grows as ``1 / p``.

    Source: Radenović et al., `Fine-tuning CNN Image Retrieval with No Human
    Annotation <https://arxiv.org/abs/1711.02512>`_, eq. (3).

    Args:
        x (Tensor): Input of any shape; float16, bfloat16, float32 or float64.
        p (float | Tensor): The power, above 0. A tensor of one element is
            shared; one of shape ``(C, )`` holds a value per channel, where
            the channels are dim 1 of ``x``, or its last dim if dim 1 is
            pooled (of three dims with the last two pooled, an image without
            a batch, dim 0); any other shape must broadcast against the
            result with ``keepdim=True``. Defaults to 3.0.
        dim (int | Sequence[int]): The dims to pool. Defaults to (-2, -1).
        eps (float, optional): Lower clamp of the input, which makes it
            positive. ``None`` does not clamp: the input must then be
            non-negative. Defaults to 1e-6.
        mask (Tensor, optional): Boolean tensor that broadcasts against
            ``x``; False excludes an element. A set without any element gives
            0, with zero gradient.
        keepdim (bool): Keep the pooled dims with size 1. Defaults to False.
        backend (str): ``'auto'``, ``'eager'``, ``'cpp'`` or ``'triton'``, see
            :mod:`sigplug.ops.backends`. Defaults to ``'auto'``.

    Returns:
        Tensor: The pooled values, in the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating point tensor, ``p`` complex or
            boolean, or ``mask`` or ``keepdim`` not boolean.
        ValueError: ``p``, ``eps``, ``dim`` or the shape of ``mask`` is not
            as described, ``p`` or ``mask`` is on another device, or a pooled
            dim is empty.
        BackendError: The backend that is asked for cannot be used.

    Examples:
        >>> x = torch.tensor([[1., 2., 3., 4.]])
        >>> generalized_mean(x, p=1.0, dim=1)
        tensor([2.5000])
        >>> generalized_mean(x, p=float('inf'), dim=1)
        tensor([4.])
    """
    check_input(x, eps)
    check_flag('keepdim', keepdim)
    dims = _normalize_dims(x, dim)
    p = check_power(p, x, dims)
    if 0 in [x.shape[d] for d in dims]:
        raise ValueError(f'x must not be empty along the pooled dims {dims}, '
                         f'but has the shape {tuple(x.shape)}')
    if mask is not None:
        mask = _check_mask(mask, x)

    return power_mean(x, p, Dims(dims, mask), eps, backend,
                      keepdim).to(x.dtype)


def check_power(p: PowerLike, x: Tensor, dims: tuple[int, ...]) -> PowerLike:
    """Shape ``p`` to broadcast against ``x`` with ``dims`` of size 1."""
    p = prepare_power(p, x)
    if not isinstance(p, Tensor) or p.numel() == 1:
        return p
    pooled = [1 if d in dims else size for d, size in enumerate(x.shape)]
    if p.dim() == 1:
        channel = (x.dim() - 1 if 1 in dims else 1) if x.dim() > 1 else 0
        # gem_pool on an unbatched image has its channels in front.
        if x.dim() == 3 and dims == (1, 2):
            channel = 0
        if pooled[channel] == p.numel():
            return p.view([-1 if d == channel else 1 for d in range(x.dim())])
    if not fits_into(p.shape, torch.Size(pooled)):
        raise ValueError(
            f'p of shape {tuple(p.shape)} does not fit the pooled shape '
            f'{tuple(pooled)} of x: give one value, one value per channel, or '
            'a shape that broadcasts against it')
    return p


def _check_mask(mask: Tensor, x: Tensor) -> Tensor:
    check_tensor('mask', mask)
    if mask.dtype != torch.bool:
        raise TypeError(f'mask must be a boolean tensor, but got {mask.dtype}'
                        ': convert it, e.g. mask.bool()')
    check_device('mask', mask, x)
    try:
        return mask.expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f'mask of shape {tuple(mask.shape)} does not broadcast against x '
            f'of shape {tuple(x.shape)}') from None


def _normalize_dims(x: Tensor, dim: int | Sequence[int]) -> tuple[int, ...]:
    dims = tuple(dim) if isinstance(dim, Sequence) else (dim, )
    if not all([type(d) is int for d in dims]):
        raise ValueError(f'dim must be an integer or several, but got {dim!r}')
    rank = x.dim()
    positive = tuple(sorted([d + rank if d < 0 else d for d in dims]))
    if not (dims and len(set(positive)) == len(dims)
            and 0 <= positive[0] and positive[-1] < rank):
        raise ValueError(f'dim must name distinct dims of x, but got {dim} '
                         f'for x of shape {tuple(x.shape)}')
    return positive
