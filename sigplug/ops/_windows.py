"""The windows of a pooling: their arguments, and where they lie."""
import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .backends import is_traced

IntOrTuple = int | Sequence[int | None] | None


@dataclass(frozen=True)
class Windows:
    """Windows along the spatial dims of an input of some shape.

    Attributes:
        dims (tuple[int, ...]): The spatial dims.
        sizes (tuple[int, ...]): Cells of a window along each of them.
        steps (tuple[int, ...]): Cells from one window to the next.
        padding (tuple[int, ...]): Cells added on both sides.
        sliced (tuple): Dims with windows of one cell, and their steps.
        whole (tuple[int, ...]): Dims of which one window takes in all.
        cut (tuple): The other dims, with the size and the step of windows.
        overlap (bool): Whether a cell is in several windows.
    """

    dims: tuple[int, ...]
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    padding: tuple[int, ...]
    sliced: tuple[tuple[int, int], ...]
    whole: tuple[int, ...]
    cut: tuple[tuple[int, int, int], ...]
    overlap: bool

    def are_small(self, cells: int) -> bool:
        """Return whether they are cuts of at most so many cells."""
        return (bool(self.cut) and not self.whole
                and math.prod(self.sizes) <= cells)


def plan_windows(kernel_size: IntOrTuple, stride: IntOrTuple,
                 padding: int | Sequence[int], shape: torch.Size) -> Windows:
    """Check the windows and plan them, once for each shape."""
    if not is_traced():
        try:
            return _kept_windows(*(tuple(v) if isinstance(v, list) else v
                                   for v in (kernel_size, stride, padding)),
                                 shape)
        except TypeError:
            pass  # What cannot be hashed is refused below.
    return _new_windows(kernel_size, stride, padding, shape)


def _new_windows(kernel_size: IntOrTuple, stride: IntOrTuple,
                 padding: int | Sequence[int], shape: torch.Size) -> Windows:
    spatial = num_spatial_dims('kernel_size', kernel_size, shape)
    extent = shape[-spatial:]
    sizes = read_windows('kernel_size', kernel_size, spatial, extent)
    steps = read_windows('stride', stride, spatial, sizes)
    margins = read_windows('padding', padding, spatial, ())
    check_extent(extent, shape)
    for size, cells, margin in zip(sizes, extent, margins):
        if 2 * margin > size:
            raise ValueError('padding must be at most half of kernel_size, '
                             f'but got padding={margins}, kernel_size={sizes}')
        if size > cells + 2 * margin:
            raise ValueError(f'kernel_size {sizes} must fit into the padded '
                             f'input, but x has the shape {tuple(shape)} '
                             f'and padding={margins}')
    dims = tuple(range(len(shape) - spatial, len(shape)))
    # A window of one cell along a dim takes a slice; of all, one is left.
    pooled = [dim for dim, size in zip(dims, sizes)
              if not (isinstance(size, int) and size == 1)] or dims[-1:]
    whole = tuple(
        dim for dim, size, cells, margin in zip(dims, sizes, extent, margins)
        if dim in pooled and margin == 0 and _is_full(size, cells))
    return Windows(
        dims, sizes, steps, margins,
        tuple((dim, step) for dim, step in zip(dims, steps)
              if dim not in pooled and step != 1), whole,
        tuple((dim, size, step) for dim, size, step in zip(dims, sizes, steps)
              if dim in pooled and dim not in whole),
        any(step < size for size, step in zip(sizes, steps)))


_kept_windows = functools.lru_cache(maxsize=1024, typed=True)(_new_windows)


def check_extent(extent: Sequence[int], shape: torch.Size) -> None:
    """Raise a ``ValueError`` if there is nothing to pool."""
    if min(extent) < 1:
        raise ValueError('x must not be empty along the pooled dims, but has '
                         f'the shape {tuple(shape)}')


def _is_full(size: int, extent: int) -> bool:
    """Return whether a window takes in all, as an open one of None does."""
    if isinstance(size, int) and isinstance(extent, int):
        return size == extent
    return not isinstance(size, int)


def num_spatial_dims(name: str, value: IntOrTuple, shape: torch.Size) -> int:
    """Return how many dims the windows have, which a shape may leave open."""
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
    """Return the entries as a tuple; only windows and steps may have None."""
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


def read_windows(name: str, value: IntOrTuple, spatial: int,
                 default: Sequence[int]) -> tuple[int, ...]:
    """Return one int per spatial dim, with ``default`` in place of None."""
    entries = _entries(name, value)
    if not isinstance(value, (tuple, list)):
        entries *= spatial
    if len(entries) != spatial:
        raise ValueError(f'{name} must be one value or {spatial} values, but '
                         f'got {value}')
    # The extent stays as it is: a program may be exported with it open.
    return tuple(default[i] if entry is None else entry
                 for i, entry in enumerate(entries))
