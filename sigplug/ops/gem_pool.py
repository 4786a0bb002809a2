"""Generalised-mean pooling over windows.

Windows are pooled by PyTorch's own pools of powers: see
:func:`windowed_mean`. One window that takes in all is a set of
:mod:`sigplug.ops.power_mean`.
"""
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import PowerLike, check_input, find_range
from ._tracing import is_compiling
from .backends import Form, check_backend
from .generalized_mean import check_power
from .power_mean import (
    Dims,
    clamp,
    has_inf,
    power_mean,
    power_mean_forward,
    root,
    stop_at_clamp,
)

IntOrTuple = int | Sequence[int | None] | None


def gem_pool(x: Tensor,
             p: PowerLike = 3.0,
             kernel_size: IntOrTuple = None,
             stride: IntOrTuple = None,
             padding: int | Sequence[int] = 0,
             *,
             eps: float | None = 1e-6,
             backend: str = 'auto') -> Tensor:
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
        backend (str): ``'auto'``, ``'eager'``, ``'cpp'`` or ``'triton'``, see
            :mod:`sigplug.ops.backends`. Defaults to ``'auto'``.

    Returns:
        Tensor: The pooled windows, in the dtype of ``x``; the pooled dims
        stay, with size 1 where a window takes in the full extent.

    Raises:
        TypeError: ``x`` is not a floating point tensor.
        ValueError: ``x`` has another number of dims, or a window, a stride,
            a padding, ``p`` or ``eps`` is out of its range.
        BackendError: The backend that is asked for cannot be used.

    Examples:
        >>> x = torch.ones(10, 3, 4, 4)
        >>> gem_pool(x, p=1.0, kernel_size=(4, 4)).shape
        torch.Size([10, 3, 1, 1])
    """
    check_input(x, eps)
    spatial = _num_spatial_dims(x, kernel_size)
    extent = x.shape[-spatial:]
    kernel = _window('kernel_size', kernel_size, spatial, extent)
    step = _window('stride', stride, spatial, kernel)
    pad = _window('padding', padding, spatial, ())
    if min(kernel) < 1:
        raise ValueError('x must not be empty along the pooled dims, but has '
                         f'the shape {tuple(x.shape)}')
    for k, size, margin in zip(kernel, extent, pad):
        if 2 * margin > k:
            raise ValueError('padding must be at most half of kernel_size, '
                             f'but got padding={pad}, kernel_size={kernel}')
        if k > size + 2 * margin:
            raise ValueError(f'kernel_size {kernel} must fit into the padded '
                             f'input, but x has the shape {tuple(x.shape)} '
                             f'and padding={pad}')
    dims = tuple(range(x.dim() - spatial, x.dim()))
    p = check_power(p, x, dims)
    full = [margin == 0 and _is_full(k, size)
            for k, size, margin in zip(kernel, extent, pad)]
    y = x
    if any(full):
        # A mean of means of equal sets is that of all: full dims go first.
        pooled = tuple(d for d, is_full in zip(dims, full) if is_full)
        y, eps = power_mean(y, p, Dims(pooled), eps, backend), None
        kernel, step = (
            tuple(1 if is_full else k for k, is_full in zip(sizes, full))
            for sizes in (kernel, step))
    check_backend(backend)
    if not any(full) or any(k != 1 for k in (*kernel, *step)):
        y = _pool_windows(y, p, Windows(kernel, step, pad), eps)
    return y.to(x.dtype)


@dataclass(frozen=True)
class Windows:
    """Windows over the last dims, with the arguments of PyTorch's pools."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    members: None = None

    @property
    def count(self) -> int:
        """Return the number of cells of a window."""
        return math.prod(self.kernel)

    def mean(self, c: Tensor) -> Tensor:
        """Return the mean of each window; padded cells count as 0."""
        pool = F.avg_pool2d if len(self.kernel) == 2 else F.avg_pool3d
        return pool(c, self.kernel, self.stride, self.padding)

    def cut(self, c: Tensor) -> Tensor:
        """Return the cells of each window along new dims in front."""
        sides = [margin for margin in reversed(self.padding) for _ in range(2)]
        c = F.pad(c, sides) if any(sides) else c
        for i, (size, step) in enumerate(zip(self.kernel, self.stride)):
            before = (slice(None), ) * (c.dim() - len(self.kernel) + i)
            c = torch.stack([
                c[before + (slice(k, k + 1 - size or None, step), )]
                for k in range(size)])
        return c

    def spread(self, g: Tensor, c: Tensor) -> Tensor:
        """Return the gradient of ``c`` for that of its ``mean``."""
        backward = (torch.ops.aten.avg_pool2d_backward
                    if len(self.kernel) == 2 else
                    torch.ops.aten.avg_pool3d_backward)
        return backward(g, c, self.kernel, self.stride, self.padding, False,
                        True, None)


def _pool_windows(x: Tensor, p: PowerLike, windows: Windows,
                  eps: float | None) -> Tensor:
    if len(windows.kernel) == 1:
        flat = Windows((1, *windows.kernel), (1, *windows.stride),
                       (0, *windows.padding))
        if isinstance(p, Tensor) and p.dim():
            p = p.unsqueeze(-2)
        return _pool_windows(x.unsqueeze(-2), p, flat, eps).squeeze(-2)
    return power_mean(x, p, windows, eps, 'eager', WINDOWED)


def windowed_mean(x: Tensor, p: PowerLike, windows: Windows,
                  eps: float | None) -> Tensor:
    r"""Compute the power mean of windows.

    .. math::
        y = s \, \mathrm{avgpool}((c / s)^p)^{1/p}

    by PyTorch's pools where all powers are known to fit into a dtype, with
    the unit :math:`s` of :func:`_choose_unit`; else each window relative to
    its own maximum.
    """
    c = clamp(x, eps)
    units = _choose_unit(c, p, windows)
    if units is None:
        dims = tuple(range(len(windows.kernel)))
        return power_mean_forward(
            windows.cut(c), p, Dims(dims), None).squeeze(dims)
    mean = windows.mean(_power(_in_units(c, units), p, x))
    return (root(mean, p) * units[1]).to(c.dtype)


def windowed_mean_backward(
        grad_y: Tensor, x: Tensor, p: PowerLike, windows: Windows,
        eps: float | None, y: Tensor, wants_x: bool,
        wants_p: bool) -> tuple[Tensor | None, Tensor | None]:
    r"""Compute the gradients that are wanted by the closed form.

    With :math:`v = y / s` a cell has the slope :math:`(c / s)^{p-1} v^{1-p}
    / N` in each of its windows.
    """
    units = _choose_unit(clamp(x, eps), p, windows)
    if units is None:
        return _differentiate(grad_y, x, p, windows, eps, wants_x, wants_p)
    c, v = _in_units(clamp(x, eps), units), _in_units(y, units)
    grad_c = windows.spread(grad_y * v.pow(1 - p), c)
    grad_c.mul_(_power(c, p - 1, x))
    grad_p = None
    if wants_p and isinstance(p, Tensor):
        # dy/dp = (y/p) (r - ln y): r is summed over cells, not windows. Of
        # logarithms to a common unit little cancels in the large results.
        top = v.detach().amax()
        r = (grad_c * torch.xlogy(c, c / top)).sum_to_size(p.shape)
        log_y = (grad_y * torch.xlogy(v, v / top)).sum_to_size(p.shape)
        grad_p = (r.double() - log_y.double()) / p * units[1]
        grad_p = grad_p.to(p.dtype)
    return stop_at_clamp(grad_c, x, eps) if wants_x else None, grad_p


def _differentiate(grad_y: Tensor, x: Tensor, p: PowerLike, windows: Windows,
                   eps: float | None, wants_x: bool, wants_p: bool
                   ) -> tuple[Tensor | None, Tensor | None]:
    """Differentiate the plain form of windows that are cut out."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not create_graph:
            x = x.detach().requires_grad_(wants_x)
            p = p.detach().requires_grad_(wants_p) if isinstance(
                p, Tensor) else p
        y = windowed_mean(x, p, windows, eps)
        wanted = [t for t, wants in ((x, wants_x), (p, wants_p))
                  if wants and isinstance(t, Tensor)]
        grads = iter(torch.autograd.grad(y, wanted, grad_y,
                                         create_graph=create_graph))
    return next(grads) if wants_x else None, next(grads) if wants_p else None


WINDOWED = Form('windowed_mean', windowed_mean, windowed_mean_backward)


def _choose_unit(c: Tensor, p: PowerLike,
                 windows: Windows) -> tuple[torch.dtype, float] | None:
    """Choose the dtype and the unit in which powers are taken.

    float32 where results are within 4 ulp and gradients have room, float64
    where they need more; None if neither is known to hold all powers, as on
    a GPU, whose values would have to be waited for, and under compilers.
    """
    if is_compiling() or torch.jit.is_tracing() or has_inf(p):
        return None
    powers = find_range(p.detach()) if isinstance(p, Tensor) else (p, p)
    values = find_range(c.detach())
    if not powers or not values or not 0 < values[0] <= values[1] < math.inf:
        return None
    low, high = (powers[1] * math.log2(value) for value in values)
    # Of the N + 2 roundings of powers and their mean the root takes 1/p, and
    # adds two: 8 are 4 ulp.
    exact = windows.count + 2 <= 6 * powers[0]
    if exact and c.dtype == torch.float32 and high - low < 200:
        dtype = torch.float32
    elif high - low < 1600:
        dtype = torch.float64
    else:
        return None
    if -100 < low and high < 100:
        return dtype, 1.0
    return dtype, 2.0**round((low + high) / 2 / powers[1])


def _in_units(c: Tensor, units: tuple[torch.dtype, float]) -> Tensor:
    dtype, unit = units
    return c.to(dtype) if unit == 1.0 else c.to(dtype) / unit


def _power(c: Tensor, p: PowerLike, x: Tensor) -> Tensor:
    """Raise ``c``, in its place where nothing else needs it or ``x``."""
    if isinstance(p, Tensor) or torch.is_grad_enabled() or c is x:
        return c.pow(p)
    return c.pow_(p)


def _is_full(size: int, extent: int) -> bool:
    """Return whether a window takes in all; an open extent is not asked."""
    if isinstance(size, int) and isinstance(extent, int):
        return size == extent
    return not isinstance(size, int)


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


def check_windows(kernel_size: IntOrTuple, stride: IntOrTuple,
                  padding: int | Sequence[int]) -> None:
    """Raise a ``ValueError`` if no input has such windows."""
    for name, value in (('kernel_size', kernel_size), ('stride', stride),
                        ('padding', padding)):
        if len(_entries(name, value)) > 3:
            raise ValueError(f'{name} must have at most three entries, but '
                             f'got {value}')


def _entries(name: str, value: IntOrTuple) -> tuple[int | None, ...]:
    """One entry, or those of a sequence; padding has no None."""
    least = 0 if name == 'padding' else 1
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value, )
    try:
        read = tuple(
            entry if entry is None and least else operator.index(entry)
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
