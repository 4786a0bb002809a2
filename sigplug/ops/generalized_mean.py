r"""Generalised (power) mean pooling over dims, windows and segments.

All three forms compute

.. math::
    y = \Big(\frac{1}{N} \sum_i c_i^p\Big)^{1/p}
      = m \Big(\frac{1}{N} \sum_i (c_i / m)^p\Big)^{1/p}, \qquad
    c_i = \max(x_i, \epsilon), \quad m = \max_i c_i

in the second form: every ratio is at most 1, so that no power overflows, and
at least one is 1, so that the mean does not vanish. ``m`` cancels out of the
formula and is therefore treated as a constant in the backward pass.
"""
import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

Power = float | Tensor
IntOrTuple = int | Sequence[int | None] | None


def generalized_mean(x: Tensor,
                     p: Power = 3.0,
                     dim: int | Sequence[int] = (-2, -1),
                     *,
                     eps: float | None = 1e-6,
                     mask: Tensor | None = None,
                     keepdim: bool = False) -> Tensor:
    r"""Generalised (power) mean over some dims.

    .. math::
        y = \Big(\frac{1}{N} \sum_{i=1}^N \max(x_i, \epsilon)^p\Big)^{1/p}

    ``p = 1`` is the mean and ``p = inf`` the maximum, exactly. The powers
    are taken relative to the largest element, so that the result is finite
    wherever it is representable; half types are computed in float32.

    Source: Radenović et al., `Fine-tuning CNN Image Retrieval with No Human
    Annotation <https://arxiv.org/abs/1711.02512>`_, eq. (3).

    Args:
        x (Tensor): Input of any shape; float16, bfloat16, float32 or float64.
        p (float | Tensor): The power, above 0. A tensor of one element is
            shared; one of shape ``(C, )`` holds a value per channel, where
            the channels are dim 1 of ``x``, or its last dim if dim 1 is
            pooled; any other shape must broadcast against the result with
            ``keepdim=True``. Defaults to 3.0.
        dim (int | Sequence[int]): The dims to pool. Defaults to (-2, -1).
        eps (float, optional): Lower clamp of the input, which makes it
            positive. ``None`` does not clamp: the input must then be
            non-negative. Defaults to 1e-6.
        mask (Tensor, optional): Boolean tensor that broadcasts against
            ``x``; False excludes an element. A set without any element gives
            0, with zero gradient.
        keepdim (bool): Keep the pooled dims with size 1. Defaults to False.

    Returns:
        Tensor: The pooled values, in the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating point tensor, or ``mask`` is not
            boolean.
        ValueError: ``p``, ``eps``, ``dim`` or the shape of ``mask`` is not
            as described, or a pooled dim is empty.

    Examples:
        >>> x = torch.tensor([[1., 2., 3., 4.]])
        >>> generalized_mean(x, p=1.0, dim=1)
        tensor([2.5000])
        >>> generalized_mean(x, p=float('inf'), dim=1)
        tensor([4.])
    """
    _check_input(x, eps)
    dims = _normalize_dims(x, dim)
    p = _check_power(p, x, dims)
    if any(x.shape[d] == 0 for d in dims):
        raise ValueError(f'x must not be empty along the pooled dims {dims}, '
                         f'but has the shape {tuple(x.shape)}')
    if mask is not None:
        mask = _check_mask(mask, x)

    c = x.to(torch.promote_types(x.dtype, torch.float32))
    if eps is not None:
        c = c.clamp(min=eps)
    y = _power_mean(c, p, dims, mask)
    if not keepdim:
        y = y.squeeze(dims)
    return y.to(x.dtype)


def _power_mean(c: Tensor, p: Power, dims: tuple[int, ...],
                mask: Tensor | None) -> Tensor:
    """Power mean of ``c`` over ``dims``, kept with size 1."""
    count = None
    if mask is not None:
        c = torch.where(mask, c, c.new_zeros(()))
        count = mask.sum(dims, keepdim=True).clamp(min=1).to(c.dtype)

    if isinstance(p, float) and p == 1.0:
        mean = _mean(c, dims, count)
        # The sum may overflow where the mean does not.
        total = c.numel() // max(mean.numel(), 1) if count is None else count
        return torch.where(mean.isinf(), (c / total).sum(dims, keepdim=True),
                           mean)
    if isinstance(p, float) and math.isinf(p):
        return c.amax(dims, keepdim=True)

    largest = c.detach().amax(dims, keepdim=True)
    scale = _safe_scale(largest)
    # A set of zeros: passing it as ones keeps its gradient from 0 * inf.
    ratio = torch.where(largest == 0, torch.ones_like(c), c / scale)
    if mask is None:
        power = ratio.pow(_finite(p))
    else:
        # Excluded elements pass through the power as 1, whose gradient is
        # finite for every p, and leave the sum afterwards.
        power = torch.where(mask, ratio, ratio.new_ones(()))
        power = power.pow(_finite(p)) * mask
    mean = _mean(power, dims, count)
    # An empty set leaves the root with a zero gradient, not an infinite one.
    mean = torch.where(largest == 0, mean.new_ones(()), mean)
    y = torch.where(largest == 0, largest, scale * mean.pow(1 / _finite(p)))
    return _replace_infinite(y, p, lambda: c.amax(dims, keepdim=True))


def _finite(p: Power) -> Power:
    """A tensor ``p`` with 1 in the places of ``inf``."""
    if isinstance(p, float) or p.requires_grad:
        return p
    return torch.where(torch.isinf(p), torch.ones_like(p), p)


def _replace_infinite(y: Tensor, p: Power,
                      maximum: Callable[[], Tensor]) -> Tensor:
    """The maximum where a tensor ``p`` is ``inf``."""
    if isinstance(p, float) or p.requires_grad:
        return y
    return torch.where(torch.isinf(p), maximum(), y)


def _mean(c: Tensor, dims: tuple[int, ...],
          count: Tensor | None) -> Tensor:
    """Mean over ``dims``, of ``count`` elements where that is given."""
    if count is None:
        return c.mean(dims, keepdim=True)
    return c.sum(dims, keepdim=True) / count


def gem_pool(x: Tensor,
             p: Power = 3.0,
             kernel_size: IntOrTuple = None,
             stride: IntOrTuple = None,
             padding: int | Sequence[int] = 0,
             *,
             eps: float | None = 1e-6) -> Tensor:
    r"""Generalised-mean pooling over 1-d, 2-d or 3-d windows.

    .. math::
        y = \mathrm{avgpool}(\max(x, \epsilon)^p)^{1/p}

    with the windows of ``torch.nn.functional.avg_pool*d``: ``p = 1`` equals
    it on positive inputs and ``p = inf`` equals ``max_pool*d``. Padded cells
    hold 0 after the power and count in the mean, as in ``avg_pool*d``.

    Args:
        x (Tensor): Input of shape ``(N, C, L)``, ``(N, C, H, W)`` or
            ``(N, C, D, H, W)``, or an unbatched image ``(C, H, W)``. A 3-d
            input is read as ``(N, C, L)`` if ``kernel_size`` is ``None`` or
            has one entry, and as ``(C, H, W)`` otherwise.
        p (float | Tensor): The power, above 0; a tensor of one element, or of
            shape ``(C, )`` with a value per channel. Defaults to 3.0.
        kernel_size (int | Sequence[int | None] | None): Window size. ``None``
            is the full extent, also for a single entry: ``(1, None)`` pools
            each row of an image. Defaults to None.
        stride (int | Sequence[int | None] | None): Step of the windows.
            Defaults to ``kernel_size``.
        padding (int | Sequence[int]): Zeros added on both sides, at most half
            the window. Defaults to 0.
        eps (float, optional): Lower clamp of the input; ``None`` does not
            clamp. Defaults to 1e-6.

    Returns:
        Tensor: The pooled windows, in the dtype of ``x``; the pooled dims
        stay, with size 1 where a window takes in the full extent.

    Raises:
        TypeError: ``x`` is not a floating point tensor.
        ValueError: ``x`` has another number of dims, or a window, a stride,
            a padding, ``p`` or ``eps`` is out of its range.

    Examples:
        >>> x = torch.ones(10, 3, 4, 4)
        >>> gem_pool(x, p=1.0, kernel_size=(4, 4)).shape
        torch.Size([10, 3, 1, 1])
    """
    _check_input(x, eps)
    spatial = _num_spatial_dims(x, kernel_size)
    extent = x.shape[-spatial:]
    kernel = _window('kernel_size', kernel_size, spatial, extent)
    step = _window('stride', stride, spatial, kernel)
    pad = _window('padding', padding, spatial, (0, ) * spatial, minimum=0)
    for k, size, margin in zip(kernel, extent, pad):
        if 2 * margin > k:
            raise ValueError('padding must be at most half of kernel_size, '
                             f'but got padding={pad}, kernel_size={kernel}')
        if k > size + 2 * margin:
            raise ValueError(f'kernel_size {kernel} must fit into the padded '
                             f'input, but x has the shape {tuple(x.shape)} '
                             f'and padding={pad}')
    channel_dim = x.dim() - spatial - 1
    p = _check_power(p, x, tuple(range(channel_dim + 1, x.dim())))
    if isinstance(p, Tensor) and p.numel() > 1:
        # The windows become trailing dims.
        p = p.reshape(p.shape + (1, ) * spatial)

    c = x.to(torch.promote_types(x.dtype, torch.float32))
    if eps is not None:
        c = c.clamp(min=eps)
    c = F.pad(c, [side for margin in reversed(pad) for side in (margin, ) * 2])
    for i in range(spatial):
        c = c.unfold(channel_dim + 1 + i, kernel[i], step[i])
    window_dims = tuple(range(c.dim() - spatial, c.dim()))
    y = _power_mean(c, p, window_dims, None)
    return y.squeeze(window_dims).to(x.dtype)


def segment_generalized_mean(x: Tensor,
                             index: Tensor,
                             num_segments: int,
                             p: Power = 3.0,
                             *,
                             eps: float | None = 1e-6) -> Tensor:
    r"""Generalised mean of ragged sets, such as the points of a pillar.

    .. math::
        y_s = \Big(\frac{1}{N_s} \sum_{i: \mathrm{index}_i = s}
            \max(x_i, \epsilon)^p\Big)^{1/p}

    Args:
        x (Tensor): One row per element, shape ``(M, ...)``.
        index (Tensor): Integer segment of each row, in
            ``[0, num_segments)``, in any order, shape ``(M, )``.
        num_segments (int): Number of segments ``S``.
        p (float | Tensor): The power, above 0; a tensor of one element, or
            one that broadcasts against a row of ``x``. Defaults to 3.0.
        eps (float, optional): Lower clamp of the input; ``None`` does not
            clamp. Defaults to 1e-6.

    Returns:
        Tensor: Shape ``(S, ...)``, in the dtype of ``x``; an empty segment
        gives 0.

    Raises:
        TypeError: ``x`` is not a floating point tensor or ``index`` is not an
            integer one.
        ValueError: ``index``, ``num_segments``, ``p`` or ``eps`` is not as
            described.

    Examples:
        >>> x = torch.tensor([[1.], [3.], [5.]])
        >>> segment_generalized_mean(x, torch.tensor([0, 0, 2]), 3, p=1.0)
        tensor([[2.],
                [0.],
                [5.]])
    """
    _check_input(x, eps)
    if index.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8,
                           torch.int8):
        raise TypeError('index must be an integer tensor, but got '
                        f'{index.dtype}')
    if x.dim() < 1 or index.shape != x.shape[:1]:
        raise ValueError('index must hold one segment for each row of x, but '
                         f'got index of shape {tuple(index.shape)} and x of '
                         f'shape {tuple(x.shape)}')
    if num_segments < 0:
        raise ValueError(
            f'num_segments must be at least 0, but got {num_segments}')
    p = _check_row_power(p, x)
    index = index.long()
    _check_index(index, num_segments)
    shape = (num_segments, *x.shape[1:])
    column = (-1, ) + (1, ) * (x.dim() - 1)
    rows = index.view(column).expand_as(x)

    c = x.to(torch.promote_types(x.dtype, torch.float32))
    if eps is not None:
        c = c.clamp(min=eps)

    def maximum() -> Tensor:
        return c.new_zeros(shape).scatter_reduce(
            0, rows, c, 'amax', include_self=False)

    if isinstance(p, float) and math.isinf(p):
        return maximum().to(x.dtype)
    count = c.new_zeros(num_segments).index_add(
        0, index, c.new_ones(len(x))).clamp(min=1).view(column)
    if isinstance(p, float) and p == 1.0:
        mean = c.new_zeros(shape).index_add(0, index, c) / count
        # The sum may overflow where the mean does not.
        parts = c / count.index_select(0, index)
        mean = torch.where(mean.isinf(),
                           c.new_zeros(shape).index_add(0, index, parts), mean)
        return mean.to(x.dtype)

    largest = c.new_zeros(shape).scatter_reduce(0, rows, c.detach(), 'amax')
    scale = _safe_scale(largest)
    ratio = c / scale.index_select(0, index)
    if eps is None:
        # A set of zeros: passing it as ones keeps its gradient from 0 * inf.
        zeros = (largest == 0).index_select(0, index)
        ratio = torch.where(zeros, torch.ones_like(c), ratio)
    mean = c.new_zeros(shape).index_add(0, index,
                                        ratio.pow(_finite(p))) / count
    # Empty segments leave the root with a zero gradient, not an infinite one.
    mean = torch.where(largest == 0, mean.new_ones(()), mean)
    y = torch.where(largest == 0, largest, scale * mean.pow(1 / _finite(p)))
    return _replace_infinite(y, p, maximum).to(x.dtype)


def _safe_scale(largest: Tensor) -> Tensor:
    """Normaliser that can be divided by: neither 0 nor infinite."""
    largest = largest.clamp(max=torch.finfo(largest.dtype).max)
    return torch.where(largest > 0, largest, largest.new_ones(()))


def _check_input(x: Tensor, eps: float | None) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f'x must be a floating point tensor, but got {got}: '
                        'convert it, e.g. x.float()')
    if eps is not None and not 0.0 < eps < math.inf:
        raise ValueError('eps must be above 0 and finite, or None for inputs '
                         f'that are not negative, but got {eps}')


def _check_index(index: Tensor, num_segments: int) -> None:
    # On a GPU the comparison would wait for the device, whose own kernels
    # check the range.
    if index.device.type != 'cpu' or index.numel() == 0:
        return
    low, high = index.min().item(), index.max().item()
    if low < 0 or high >= num_segments:
        raise ValueError(
            f'index must lie in [0, num_segments={num_segments}), but has '
            f'values from {low} to {high}')


def _check_row_power(p: Power, x: Tensor) -> Power:
    """A float, or a tensor that broadcasts against one row of ``x``."""
    if not isinstance(p, Tensor):
        return _check_float_power(p)
    p = p.to(torch.promote_types(x.dtype, torch.float32))
    if p.numel() == 1:
        return p.reshape(())
    try:
        fits = torch.broadcast_shapes(p.shape, x.shape[1:]) == x.shape[1:]
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f'p of shape {tuple(p.shape)} does not broadcast '
                         f'against a row of x, of shape {tuple(x.shape[1:])}')
    return p


def _check_float_power(p: float) -> float:
    if not isinstance(p, Real) or not p > 0:
        raise ValueError('p must be a number above 0 (inf gives the maximum) '
                         f'or a tensor of such numbers, but got {p!r}')
    return float(p)


def _check_power(p: Power, x: Tensor, dims: tuple[int, ...]) -> Power:
    """Shape ``p`` to broadcast against ``x`` with ``dims`` of size 1."""
    if not isinstance(p, Tensor):
        return _check_float_power(p)
    p = p.to(torch.promote_types(x.dtype, torch.float32))
    if p.numel() == 1:
        return p.reshape(())
    pooled = [1 if d in dims else size for d, size in enumerate(x.shape)]
    if p.dim() == 1:
        channel = (x.dim() - 1 if 1 in dims else 1) if x.dim() > 1 else 0
        # gem_pool on an unbatched image has its channels in front.
        if x.dim() == 3 and dims == (1, 2):
            channel = 0
        if pooled[channel] == p.numel():
            return p.view([-1 if d == channel else 1 for d in range(x.dim())])
    try:
        fits = torch.broadcast_shapes(p.shape, pooled) == torch.Size(pooled)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f'p of shape {tuple(p.shape)} does not fit the pooled shape '
            f'{tuple(pooled)} of x: give one value, one value per channel, or '
            'a shape that broadcasts against it')
    return p


def _check_mask(mask: Tensor, x: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise TypeError(f'mask must be a boolean tensor, but got {mask.dtype}'
                        ': convert it, e.g. mask.bool()')
    try:
        return mask.expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f'mask of shape {tuple(mask.shape)} does not broadcast against x '
            f'of shape {tuple(x.shape)}') from None


def _normalize_dims(x: Tensor, dim: int | Sequence[int]) -> tuple[int, ...]:
    dims = (dim, ) if isinstance(dim, int) else tuple(dim)
    positive = tuple(sorted(d + x.dim() if d < 0 else d for d in dims))
    if (not dims or len(set(positive)) != len(dims)
            or not all(0 <= d < x.dim() for d in positive)):
        raise ValueError(f'dim must name distinct dims of x, but got {dim} '
                         f'for x of shape {tuple(x.shape)}')
    return positive


def _num_spatial_dims(x: Tensor, kernel_size: IntOrTuple) -> int:
    if isinstance(kernel_size, (tuple, list)):
        spatial = len(kernel_size)
        if 1 <= spatial <= 3 and x.dim() in (spatial + 1, spatial + 2):
            if x.dim() == spatial + 2 or spatial == 2:
                return spatial
        raise ValueError(f'kernel_size {tuple(kernel_size)} has {spatial} '
                         'entries, which does not fit x of shape '
                         f'{tuple(x.shape)}')
    if x.dim() == 3:
        return 1 if kernel_size is None else 2
    if x.dim() in (4, 5):
        return x.dim() - 2
    raise ValueError('x must have 3, 4 or 5 dims (batch, channels and one to '
                     f'three more), but got the shape {tuple(x.shape)}')


def _window(name: str,
            value: IntOrTuple,
            spatial: int,
            default: Sequence[int],
            minimum: int = 1) -> tuple[int, ...]:
    """One int for each spatial dim, with ``default`` in place of None."""
    entries = tuple(value) if isinstance(
        value, (tuple, list)) else (value, ) * spatial
    if len(entries) != spatial:
        raise ValueError(f'{name} must be one value or {spatial} values, but '
                         f'got {value}')
    entries = tuple(d if entry is None else entry
                    for entry, d in zip(entries, default))
    if not all(isinstance(entry, int) and entry >= minimum
               for entry in entries):
        raise ValueError(f'{name} must consist of integers of at least '
                         f'{minimum}, but got {value}')
    return entries
