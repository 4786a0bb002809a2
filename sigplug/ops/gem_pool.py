"""Generalised-mean pooling over windows.

Windows are pooled by PyTorch's own pools, of powers: see
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

from ._checks import find_range
from ._tracing import is_exporting
from .backends import Form, check_backend
from .generalized_mean import check_power
from .power_mean import (
    Dims,
    PowerLike,
    check_input,
    clamp,
    has_inf,
    is_float,
    power_mean,
    root,
    stop_at_clamp,
    without_inf,
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
    if any(k != 1 for k in (*kernel, *step)):
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

    def max(self, c: Tensor) -> Tensor:
        """Return the maximum of each window."""
        pool = F.max_pool2d if len(self.kernel) == 2 else F.max_pool3d
        return pool(c, self.kernel, self.stride, self.padding)

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
    if is_float(p, math.inf):
        return windows.max(clamp(x, eps))
    y = power_mean(x, without_inf(p), windows, eps, 'eager', WINDOWED)
    if isinstance(p, Tensor) and has_inf(p):
        y = torch.where(p.isinf(), windows.max(clamp(x, eps)), y)
    return y


def windowed_mean(x: Tensor, p: PowerLike, windows: Windows,
                  eps: float | None) -> Tensor:
    r"""Compute the power mean of windows by PyTorch's pools.

    .. math::
        y = s \, \mathrm{avgpool}((c / s)^p)^{1/p}

    with the unit :math:`s` and the dtype of :func:`_choose_unit`. Powers of a
    window that is so far below the unit that they vanish, which is possible
    for large powers, give its maximum, without a gradient.
    """
    c = clamp(x, eps)
    if is_float(p, 1.0) and not is_exporting():
        # In float64 the sum cannot overflow.
        return windows.mean(c.double()).to(c.dtype)
    unit, all_fit = _choose_unit(c, p, windows)
    mean = windows.mean(_power(_in_units(c, unit), p, x))
    gone = None if all_fit else mean < torch.finfo(mean.dtype).tiny
    if gone is not None:
        mean = mean.masked_fill(gone, 1.0)
    y = root(mean, p)
    y = (y if unit is None else y * unit.to(y.dtype)).to(c.dtype)
    return y if gone is None else torch.where(gone, windows.max(c), y)


def windowed_mean_backward(
        grad_y: Tensor, x: Tensor, p: PowerLike, windows: Windows,
        eps: float | None, y: Tensor, wants_x: bool,
        wants_p: bool) -> tuple[Tensor | None, Tensor | None]:
    r"""Compute the gradients that are wanted by the closed form.

    With :math:`v = y / s` a cell has the slope :math:`(c / s)^{p-1} v^{1-p}
    / N` in each of its windows.
    """
    # The results have the range of the elements, but for what is too small
    # to have a slope.
    unit, all_fit = _choose_unit(y, p, windows)
    c, v = _in_units(clamp(x, eps), unit), _in_units(y, unit)
    if not all_fit:
        gone = v.pow(p) < torch.finfo(v.dtype).tiny
        v, grad_y = v.masked_fill(gone, 1.0), grad_y.masked_fill(gone, 0.0)
    grad_c = windows.spread(grad_y * v.pow(1 - p), c)
    grad_c.mul_(_power(c, p - 1, x))
    grad_p = None
    if wants_p and isinstance(p, Tensor):
        # dy/dp = (y/p) (r - ln y): r is summed over cells, not windows. Of
        # logarithms to a common unit little cancels in the large results.
        top = v.detach().amax()
        r = (grad_c * torch.xlogy(c, c / top)).sum_to_size(p.shape)
        log_y = (grad_y * torch.xlogy(v, v / top)).sum_to_size(p.shape)
        grad_p = (r.double() - log_y.double()) / p
        grad_p = (grad_p if unit is None else grad_p * unit).to(p.dtype)
    return stop_at_clamp(grad_c, x, eps) if wants_x else None, grad_p


WINDOWED = Form('windowed_mean', windowed_mean, windowed_mean_backward)


def _choose_unit(c: Tensor, p: PowerLike,
                 windows: Windows) -> tuple[Tensor | None, bool]:
    """Choose the unit and the dtype in which powers are taken.

    They are taken of the elements as they are, in float32, where that is
    known to be within 4 ulp and to leave float32 room for gradients. Else the
    largest element is put at the upper end of the range, in float64 unless
    the exponent is small.

    Returns:
        tuple[Tensor | None, bool]: The unit, of the dtype to compute in, or
        None; and whether no power can vanish.
    """
    if c.numel() == 0:
        return None, True
    powers = find_range(p.detach()) if isinstance(p, Tensor) else (p, p)
    values = None if torch.jit.is_tracing() else find_range(c.detach())
    # Of the N + 2 roundings of powers and their mean the root takes 1/p, and
    # adds two: 8 are 4 ulp.
    exact = powers is not None and windows.count + 2 <= 6 * powers[0]
    spread = math.inf
    if powers and values and 0 < values[0] and values[1] < math.inf:
        low, high = (powers[1] * math.log2(value) for value in values)
        spread = high - low
        if exact and c.dtype == torch.float32 and spread < 200:
            if -100 < low and high < 100:
                return None, True
            middle = round((low + high) / 2 / powers[1])
            return c.new_tensor(2.0**middle), True
    narrow = is_exporting() or (
        exact and powers is not None and powers[1] <= 4)
    dtype = c.dtype if narrow else torch.float64
    half = 100 if dtype == torch.float32 else 850
    exponent = -torch.as_tensor(
        half / p, dtype=dtype, device=c.device).clamp(max=0.6 * half)
    largest = c.detach().amax() if values is None else c.new_tensor(values[1])
    largest = largest.clamp(max=torch.finfo(c.dtype).max).to(dtype)
    unit = largest * exponent.exp2()
    return unit.clamp(min=torch.finfo(dtype).tiny), spread < 1.6 * half


def _in_units(c: Tensor, unit: Tensor | None) -> Tensor:
    return c if unit is None else c.to(unit.dtype) / unit


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
