"""Generalised-mean pooling over windows."""
import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import PowerLike, check_input
from ._dtypes import upcast_half
from ._tracing import is_exporting
from .backends import is_traced, needs_plain
from .generalized_mean import check_power
from .power_mean import Dims, clamp, power_mean

IntOrTuple = int | Sequence[int | None] | None
# Windows of at most so many cells take kernels less time at once than dim by
# dim.
SMALL = 4
# About the cells that fit into the cache of a processor several times.
CACHED = 2**20


def gem_pool(x: Tensor,
             p: PowerLike = 3.0,
             kernel_size: IntOrTuple = None,
             stride: IntOrTuple = None,
             padding: int | Sequence[int] = 0,
             *,
             eps: float | None = 1e-6,
             output_size: int | Sequence[int] | None = None,
             backend: str = 'auto') -> Tensor:
    r"""Generalised-mean pooling over 1-d, 2-d or 3-d windows.

    .. math::
        y = \mathrm{avgpool}(\max(x, \epsilon)^p)^{1/p}

    with the windows of ``torch.nn.functional.avg_pool*d``: ``p = 1`` equals
    it on positive inputs and ``p = inf`` equals ``max_pool*d``. Padded cells
    hold 0 after the power and count in the mean, as in ``avg_pool*d``.

    With ``p = inf`` equal maxima of a window share its gradient, where
    ``max_pool*d`` gives it to the first: by column and then within each
    column, or evenly in small windows that do not overlap (but not within
    ``torch.compile`` and ``torch.func``).

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
        output_size (int | Sequence[int], optional): Number of windows instead
            of their size, those of ``adaptive_avg_pool*d``: window :math:`i`
            of :math:`b` along :math:`H` cells takes in the cells
            :math:`\lfloor iH/b \rfloor` to
            :math:`\lceil (i+1)H/b \rceil`. A 3-d input is read as for
            ``kernel_size``. Defaults to None.
        backend (str): ``'auto'``, ``'eager'``, ``'cpp'`` or ``'triton'``, see
            :mod:`sigplug.ops.backends`. Defaults to ``'auto'``.

    Returns:
        Tensor: The pooled windows, in the dtype of ``x``; the pooled dims
        stay, with size 1 where a window takes in the full extent.

    Raises:
        TypeError: ``x`` is not a floating point tensor.
        ValueError: ``x`` has another number of dims, a window, a stride, a
            padding, ``p`` or ``eps`` is out of its range, or ``output_size``
            is given beside them.
        BackendError: The backend that is asked for cannot be used.

    Examples:
        >>> x = torch.ones(10, 3, 4, 4)
        >>> gem_pool(x, p=1.0, kernel_size=(4, 4)).shape
        torch.Size([10, 3, 1, 1])
    """
    check_input(x, eps)
    if output_size is not None:
        check_windows(kernel_size, stride, padding, output_size)
        return _pool_adaptively(x, p, output_size, eps, backend)
    plan = _plan(kernel_size, stride, padding, x.shape)
    dtype = x.dtype
    p = check_power(p, x, plan.dims)
    if (plan.overlap and x.device.type == 'cpu' and x.numel() > CACHED
            and x.dim() == len(plan.dims) + 2 and len(x) > 1
            and not is_traced()):
        # Copies of the cells for each window, of all samples, would not stay
        # in the cache of a processor.
        return torch.cat([
            gem_pool(sample, p, kernel_size, stride, padding, eps=eps,
                     backend=backend) for sample in x.split(1)])
    for dim, step in plan.slices:
        x = x[(slice(None), ) * dim + (slice(None, None, step), )]
    if plan.margins:
        # Padded cells are 0 behind the clamp. That of torch passes the
        # gradient at eps before 2.14 alone, which no export needs.
        if eps is None or is_exporting():
            x = clamp(x, eps)
        else:
            x = clamp(x, None)
            x = torch.where(x < eps, eps, x)
        eps = None
        x = F.pad(x, plan.margins)
    elif plan.overlap:
        # The gradient of a cell is the sum over its windows.
        x = upcast_half(x)
    if plan.at_once and not is_traced():
        for i, (dim, size, step) in enumerate(plan.cuts):
            x = _cut_windows(x, dim + i, size, step)
        sets = tuple(range(len(plan.cuts)))
        return _pool(x, p, sets, eps, backend)[0].squeeze(sets).to(dtype)
    if plan.whole:
        x, eps = _pool(x, p, plan.whole, eps, backend)
    # The mean of equal sets is the mean of their means: dim by dim, a window
    # of k by k cells costs 2 k in place of k^2.
    for dim, size, step in plan.cuts:
        x, eps = _pool(_cut_windows(x, dim, size, step), p, (0, ), eps,
                       backend)
        x = x.squeeze(0)
    return x.to(dtype)


@dataclass(frozen=True)
class _Plan:
    """What is done to the spatial dims of an input of some shape.

    Attributes:
        dims (tuple[int, ...]): The spatial dims.
        slices (tuple): Dims with windows of one cell, and their steps.
        margins (tuple[int, ...]): Padding as of ``F.pad``, empty without.
        whole (tuple[int, ...]): Dims of which one window takes in all.
        cuts (tuple): The other dims, with the size and the step of windows.
        at_once (bool): Whether windows are too small to gain from going dim
            by dim.
        overlap (bool): Whether a cell is in several windows.
    """

    dims: tuple[int, ...]
    slices: tuple[tuple[int, int], ...]
    margins: tuple[int, ...]
    whole: tuple[int, ...]
    cuts: tuple[tuple[int, int, int], ...]
    at_once: bool
    overlap: bool


def _plan(kernel_size: IntOrTuple, stride: IntOrTuple,
          padding: int | Sequence[int], shape: torch.Size) -> _Plan:
    """Check the windows and plan them, once for each shape."""
    if not is_traced():
        try:
            return _kept_plan(*(tuple(v) if isinstance(v, list) else v
                                for v in (kernel_size, stride, padding)),
                              shape)
        except TypeError:
            pass  # What cannot be hashed is refused below.
    return _new_plan(kernel_size, stride, padding, shape)


def _new_plan(kernel_size: IntOrTuple, stride: IntOrTuple,
              padding: int | Sequence[int], shape: torch.Size) -> _Plan:
    spatial = _num_spatial_dims('kernel_size', kernel_size, shape)
    extent = shape[-spatial:]
    kernel = _window('kernel_size', kernel_size, spatial, extent)
    steps = _window('stride', stride, spatial, kernel)
    pad = _window('padding', padding, spatial, ())
    _check_extent(extent, shape)
    for k, size, margin in zip(kernel, extent, pad):
        if 2 * margin > k:
            raise ValueError('padding must be at most half of kernel_size, '
                             f'but got padding={pad}, kernel_size={kernel}')
        if k > size + 2 * margin:
            raise ValueError(f'kernel_size {kernel} must fit into the padded '
                             f'input, but x has the shape {tuple(shape)} '
                             f'and padding={pad}')
    dims = tuple(range(len(shape) - spatial, len(shape)))
    # A window of one cell along a dim takes a slice; of all, one is left.
    pooled = [dim for dim, k in zip(dims, kernel)
              if not (isinstance(k, int) and k == 1)] or dims[-1:]
    whole = tuple(
        dim for dim, k, size, margin in zip(dims, kernel, extent, pad)
        if dim in pooled and margin == 0 and _is_full(k, size))
    cuts = tuple((dim, k, step) for dim, k, step in zip(dims, kernel, steps)
                 if dim in pooled and dim not in whole)
    overlap = any(step < k for k, step in zip(kernel, steps))
    return _Plan(
        dims,
        tuple((dim, step) for dim, step in zip(dims, steps)
              if dim not in pooled and step != 1),
        tuple(m for m in reversed(pad) for _ in range(2)) if any(pad) else (),
        whole, cuts,
        bool(cuts) and not whole and not overlap
        and math.prod([k for _, k, _ in cuts]) <= SMALL,
        overlap)


_kept_plan = functools.lru_cache(maxsize=1024, typed=True)(_new_plan)


def _pool_adaptively(x: Tensor, p: PowerLike, output_size: IntOrTuple,
                     eps: float | None, backend: str) -> Tensor:
    """Pool dim by dim, and those that are left with one cell at the end."""
    spatial = _num_spatial_dims('output_size', output_size, x.shape)
    extent = x.shape[-spatial:]
    counts = _window('output_size', output_size, spatial, ())
    _check_extent(extent, x.shape)
    dims, dtype = tuple(range(x.dim() - spatial, x.dim())), x.dtype
    p = check_power(p, x, dims)
    whole = tuple(d for d, count in zip(dims, counts) if count == 1)
    cut = [d for d in dims if d not in whole]
    if not cut:
        return _pool(x, p, whole, eps, backend)[0].to(dtype)
    for dim in cut:
        joint = whole if dim == cut[-1] else ()
        size, count = x.shape[dim], counts[dim - x.dim()]
        # An open size is not asked: the slices below fit any.
        if isinstance(size, int) and size % count == 0:
            cells = _cut_windows(x, dim, size // count, size // count)
            x, eps = _pool(cells, p, (0, *(d + 1 for d in joint)), eps,
                           backend)
            x = x.squeeze(0)
            continue
        # The gradient of a cell is the sum over its windows.
        x = upcast_half(x)
        # No floor of a negative number: integers in ONNX round towards 0.
        before = (slice(None), ) * dim
        pieces = [x[before + (slice(i * size // count,
                                    ((i + 1) * size + count - 1) // count), )]
                  for i in range(count)]
        pooled = [_pool(cells, p, (dim, *joint), eps, backend)
                  for cells in pieces]
        x, eps = torch.cat([y for y, _ in pooled], dim), pooled[0][1]
    return x.to(dtype)


def _pool(x: Tensor, p: PowerLike, dims: tuple[int, ...], eps: float | None,
          backend: str) -> tuple[Tensor, float | None]:
    """Return the means, and what to clamp them at if they are pooled again.

    They are at least eps up to rounding; the lower clamp keeps their
    gradient.
    """
    return (power_mean(x, p, Dims(dims), eps, backend),
            None if eps is None else eps / 2)


def _cut_windows(x: Tensor, dim: int, size: int, step: int) -> Tensor:
    """Return the cells of each window along ``dim`` in a new first dim."""
    if step == size and not is_traced():
        count = x.shape[dim] // size
        if count * size < x.shape[dim]:
            x = x.narrow(dim, 0, count * size)
        return x.unflatten(dim, (count, size)).movedim(dim + 1, 0)
    if needs_plain(x):
        # Slices, which every compiler and runtime has.
        return _stack_slices(x, dim, size, step)
    return _Windows.apply(x, dim, size, step)


def _slice(x: Tensor, dim: int, size: int, step: int, k: int) -> Tensor:
    """Return cell ``k`` of each window."""
    return x[(slice(None), ) * dim + (slice(k, k + 1 - size or None, step), )]


def _stack_slices(x: Tensor, dim: int, size: int, step: int) -> Tensor:
    return torch.stack([_slice(x, dim, size, step, k) for k in range(size)])


class _Windows(torch.autograd.Function):
    """Slices whose gradients are added up in one tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *cut: int) -> Tensor:
        ctx.shape, ctx.cut = x.shape, cut
        return _stack_slices(x, *cut)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        total = grad.new_zeros(ctx.shape)
        dim, size, step = ctx.cut
        for k, share in enumerate(grad):
            _slice(total, dim, size, step, k).add_(share)
        return total, None, None, None


def _check_extent(extent: Sequence[int], shape: torch.Size) -> None:
    if min(extent) < 1:
        raise ValueError('x must not be empty along the pooled dims, but has '
                         f'the shape {tuple(shape)}')


def _is_full(size: int, extent: int) -> bool:
    """Return whether a window takes in all, as an open one of None does."""
    if isinstance(size, int) and isinstance(extent, int):
        return size == extent
    return not isinstance(size, int)


def _num_spatial_dims(name: str, value: IntOrTuple, shape: torch.Size) -> int:
    dims = len(shape)
    if isinstance(value, (tuple, list)):
        spatial = len(value)
        if 1 <= spatial <= 3 and dims in (spatial + 1, spatial + 2):
            if dims == spatial + 2 or spatial == 2:
                return spatial
        raise ValueError(f'{name} {tuple(value)} has {spatial} entries, which '
                         f'does not fit x of shape {tuple(shape)}')
    if dims == 3:
        return 1 if value is None else 2
    if dims in (4, 5):
        return dims - 2
    raise ValueError('x must have 3, 4 or 5 dims (batch, channels and one to '
                     f'three more), but got the shape {tuple(shape)}')


def check_windows(kernel_size: IntOrTuple, stride: IntOrTuple,
                  padding: int | Sequence[int],
                  output_size: int | Sequence[int] | None = None) -> None:
    """Raise a ``ValueError`` if no input has such windows."""
    windows = dict(kernel_size=kernel_size, stride=stride, padding=padding)
    if output_size is not None:
        if (kernel_size, stride, padding) != (None, None, 0):
            raise ValueError(
                f'output_size={output_size} excludes kernel_size, stride and '
                f'padding, but got {windows}: leave out the one or the others')
        windows['output_size'] = output_size
    for name, value in windows.items():
        if len(_entries(name, value)) > 3:
            raise ValueError(f'{name} must have at most three entries, but '
                             f'got {value}')


def _entries(name: str, value: IntOrTuple) -> tuple[int | None, ...]:
    """One entry, or those of a sequence; only windows and steps have None."""
    least = 0 if name == 'padding' else 1
    optional = name in ('kernel_size', 'stride')
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value, )
    try:
        read = tuple(
            entry if entry is None and optional else operator.index(entry)
            for entry in entries)
    except TypeError:
        read = ()
    if (not read or any(isinstance(entry, bool) for entry in entries)
            or any(entry is not None and entry < least for entry in read)):
        raise ValueError(f'{name} must consist of integers of at least '
                         f'{least}, but got {value!r}')
    return read


def _window(name: str, value: IntOrTuple, spatial: int,
            default: Sequence[int]) -> tuple[int, ...]:
    """One int for each spatial dim, with ``default`` in place of None."""
    entries = _entries(name, value)
    if not isinstance(value, (tuple, list)):
        entries *= spatial
    if len(entries) != spatial:
        raise ValueError(f'{name} must be one value or {spatial} values, but '
                         f'got {value}')
    # The extent stays as it is: a program may be exported with it open.
    return tuple(default[i] if entry is None else entry
                 for i, entry in enumerate(entries))
