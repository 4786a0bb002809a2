"""Generalised-mean pooling over windows."""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import PowerLike, check_input
from ._dtypes import upcast_half
from ._tracing import is_exporting
from ._windows import (
    IntOrTuple,
    Windows,
    check_extent,
    check_windows,
    num_spatial_dims,
    plan_windows,
    read_windows,
)
from .backends import (
    Form,
    is_traced,
    needs_plain,
    plain_gradients,
    select,
    wants_plain_backward,
)
from .generalized_mean import check_power
from .power_mean import Dims, clamp, has_inf, power_mean

# Up to so many cells, windows take less time at once than dim by dim: by a
# kernel for windows, and as sets of cells.
FEW = 16
VERY_FEW = 4
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
    windows = plan_windows(kernel_size, stride, padding, x.shape)
    p = check_power(p, x, windows.dims)
    tensors = [t for t in (x, p) if isinstance(t, Tensor)]
    form = select(PLAIN, backend, *tensors)
    trains = torch.is_grad_enabled() and any(
        [t.requires_grad for t in tensors])
    if (form is PLAIN or not windows.are_small(FEW)
            or not isinstance(p, Tensor) and p <= 1 or trains and has_inf(p)):
        y = pool_dim_by_dim(x, p, windows, eps, backend)
    elif trains:
        y = _GeMPool.apply(x, p, windows, eps, form)
    else:
        y, _ = form.forward(x, p, windows, eps, False)
    return y.to(x.dtype)


def pool_dim_by_dim(x: Tensor, p: PowerLike, windows: Windows,
                    eps: float | None, backend: str = 'eager') -> Tensor:
    """Pool windows by means over dims; float32 for half-precision dtypes.

    The mean of equal sets is the mean of their means: windows of k by k cells
    cost 2 k in place of k^2.
    """
    if (windows.overlap and x.device.type == 'cpu' and x.numel() > CACHED
            and x.dim() == len(windows.dims) + 2 and len(x) > 1
            and not is_traced()):
        # Copies of the cells for each window, of all samples, would not stay
        # in the cache of a processor.
        return torch.cat([pool_dim_by_dim(sample, p, windows, eps, backend)
                          for sample in x.split(1)])
    for dim, step in windows.sliced:
        x = x[(slice(None), ) * dim + (slice(None, None, step), )]
    if any(windows.padding):
        # Padded cells are 0 behind the clamp. That of torch passes the
        # gradient at eps before 2.14 alone, which no export needs.
        if eps is None or is_exporting():
            x = clamp(x, eps)
        else:
            x = clamp(x, None)
            x = torch.where(x < eps, eps, x)
        eps = None
        x = F.pad(x, [m for m in reversed(windows.padding) for _ in range(2)])
    elif windows.overlap:
        # The gradient of a cell is the sum over its windows.
        x = upcast_half(x)
    if (windows.are_small(VERY_FEW) and not windows.overlap
            and not is_traced()):
        for i, (dim, size, step) in enumerate(windows.cut):
            x = _cut_windows(x, dim + i, size, step)
        sets = tuple(range(len(windows.cut)))
        return _pool(x, p, sets, eps, backend)[0].squeeze(sets)
    if windows.whole:
        x, eps = _pool(x, p, windows.whole, eps, backend)
    for dim, size, step in windows.cut:
        x, eps = _pool(_cut_windows(x, dim, size, step), p, (0, ), eps,
                       backend)
        x = x.squeeze(0)
    return x


PLAIN = Form('gem_pool', pool_dim_by_dim)


class _GeMPool(torch.autograd.Function):
    """Small windows at once, by a kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: PowerLike, windows: Windows,
                eps: float | None, form: Form) -> Tensor:
        y, by_p = form.forward(x, p, windows, eps, ctx.needs_input_grad[1])
        ctx.p = None if isinstance(p, Tensor) else p
        ctx.windows, ctx.eps, ctx.form = windows, eps, form
        ctx.save_for_backward(x, None if ctx.p else p, y, by_p)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, p, y, by_p = ctx.saved_tensors
        p = ctx.p or p
        if wants_plain_backward(grad_y):
            grads = plain_gradients(
                lambda x, p: pool_dim_by_dim(x, p, ctx.windows, ctx.eps),
                (x, p), ctx.needs_input_grad, grad_y)
        else:
            grads = ctx.form.backward(grad_y, x, p, ctx.windows, ctx.eps, y,
                                      by_p, *ctx.needs_input_grad[:2])
        return (*grads, None, None, None)


def _pool_adaptively(x: Tensor, p: PowerLike, output_size: IntOrTuple,
                     eps: float | None, backend: str) -> Tensor:
    """Pool dim by dim, and those that are left with one cell at the end."""
    spatial = num_spatial_dims('output_size', output_size, x.shape)
    extent = x.shape[-spatial:]
    counts = read_windows('output_size', output_size, spatial, ())
    check_extent(extent, x.shape)
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
