"""What the property tests draw: tensors with their strides, and arguments."""
import math

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

DTYPES = st.sampled_from(
    (torch.float32, torch.float16, torch.bfloat16, torch.float64))
# The clamp of the generalised mean, or none.
EPSILONS = st.sampled_from((1e-6, None, 1e-3, 2.0))
# Small enough for a reference that loops over sets in Python; the larger ones
# hold several vectors of a kernel.
MOST_ELEMENTS = st.sampled_from((48, 48, 48, 300))


@st.composite
def shapes(draw, min_dims=0, max_dims=4, min_side=0) -> tuple[int, ...]:
    """Of few elements, from a scalar and empty ones upwards."""
    shape = draw(st.lists(
        st.integers(min_side, 6), min_size=min_dims, max_size=max_dims))
    most = draw(MOST_ELEMENTS)
    if shape and most > 48:
        shape[draw(st.integers(0, len(shape) - 1))] = draw(
            st.integers(7, 70))
    while math.prod(shape) > most:
        shape[shape.index(max(shape))] -= 1
    return tuple(shape)


@st.composite
def tensors(draw, shape, dtype, values) -> Tensor:
    """Of ``values`` rounded to ``dtype``, in one of several layouts."""
    array = draw(hnp.arrays(np.float64, shape, elements=values))
    x = to_dtype(array, dtype)
    layout = draw(st.sampled_from(
        ('contiguous', 'transposed', 'gaps', 'channels_last', 'offset',
         'expanded')))
    if layout in ('transposed', 'gaps'):
        order = draw(st.permutations(range(x.dim())))
        # A NaN in the gaps shows whoever reads past the strides.
        step = 1 if layout == 'transposed' else draw(st.integers(2, 3))
        room = torch.full((*(x.shape[d] for d in order), step), math.nan,
                          dtype=dtype)
        view = room.select(-1, draw(st.integers(0, step - 1)))
        x = view.permute([order.index(d) for d in range(x.dim())]).copy_(x)
    elif layout == 'channels_last' and x.dim() in (4, 5):
        x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4
                         else torch.channels_last_3d)
    elif layout == 'offset':
        # Not at a multiple of a vector's size.
        room = torch.full((x.numel() + 5, ), math.nan, dtype=dtype)
        first = draw(st.integers(1, 5))
        x = room[first:first + x.numel()].view(x.shape).copy_(x)
    elif layout == 'expanded' and x.numel() and x.dim():
        x = x.narrow(draw(st.integers(0, x.dim() - 1)), 0, 1).expand(x.shape)
    return x


def to_dtype(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Rounded; finite numbers stay finite."""
    largest = torch.finfo(dtype).max
    x = torch.from_numpy(np.array(array, dtype=np.float64))
    return torch.where(x.isinf(), x, x.clamp(-largest, largest)).to(dtype)


def neighbours(values, dtype) -> list[float]:
    """Each value as ``dtype`` holds it, and two steps to either side."""
    found = []
    for value in values:
        for end in (-math.inf, math.inf):
            x = to_dtype(np.array(value), dtype)
            for _ in range(3):
                found.append(x.item())
                x = torch.nextafter(x, torch.tensor(end, dtype=dtype))
    return sorted({v for v in found if math.isfinite(v)}, key=abs)


def logits(dtype, bounds=(), infinite=False):
    """Ordinary, saturated and extreme ones, and those next to ``bounds``."""
    info = torch.finfo(dtype)
    special = [0.0, -0.0, 1e-30, 8.5, 15.0, 88.8, 104.0, 709.8, 745.2, 1e4,
               info.max, info.smallest_normal,
               info.smallest_normal * info.eps]
    special += [-v for v in special]
    special += neighbours(
        [math.log(b) - math.log1p(-b) for b in bounds], dtype)
    if infinite:
        special += [math.inf, -math.inf]
    return st.one_of(
        st.floats(-12, 12), st.sampled_from(special), st.floats(-1e4, 1e4),
        st.floats(-info.max, info.max))


def clip_bounds():
    """Pairs 0 < low < high < 1 that no dtype makes cross."""
    low = st.sampled_from((1e-4, 1e-2, 0.011, 0.3)) | st.floats(1e-30, 0.4)
    high = st.sampled_from((1 - 1e-4, 0.99, 0.989, 0.7, 1 - 2**-53)) | (
        st.floats(0.6, 1 - 1e-9))
    return st.tuples(low, high) | st.just((1e-4, 1 - 1e-4))


def targets(dtype):
    """Gaussian targets in [0, 1], with peaks and the closest below one."""
    below = 1 - torch.finfo(dtype).eps / 2
    return st.sampled_from(
        (0.0, 1.0, 0.5, below, 1 - 1e-4, 1e-30)) | st.floats(0, 1)


def exponents():
    """Of the focal loss; torch rounds an exponent to the type of the base."""
    return st.sampled_from((0.0, 1.0, 2.0, 4.0)) | st.floats(
        0, 8, width=32, allow_subnormal=False)


def features(dtype, eps):
    """What is pooled: of all magnitudes, and around the clamp.

    Without a clamp nothing is negative.
    """
    info = torch.finfo(dtype)
    special = [0.0, 1.0, 41.0, 100.0, info.max, info.max / 2,
               info.smallest_normal, info.smallest_normal * info.eps]
    special += neighbours([eps or info.smallest_normal], dtype)
    special = [v for v in special if v >= 0]
    orders = st.floats(math.log(info.smallest_normal), math.log(info.max))
    positive = st.one_of(
        st.floats(0.01, 10), st.sampled_from(special),
        orders.map(math.exp), st.floats(0, info.max))
    return positive if eps is None else positive | st.floats(-100, 0)


def powers(lowest=1.0, infinite=True):
    """Below 1 only where that is asked for."""
    special = [p for p in (3.0, 1.0, 1.0001, 1.5, 2.0, 6.5, 20.0, 50.0, 100.0,
                           0.5, 0.1) if p >= lowest]
    if infinite:
        special.append(math.inf)
    return st.sampled_from(special) | st.floats(lowest, 100)


@st.composite
def tensor_powers(draw, size, dtype, lowest=1.0) -> Tensor:
    """Trainable ones: finite, of float32 or of the input's dtype."""
    p = draw(st.lists(powers(lowest, infinite=False), min_size=size,
                      max_size=size))
    return torch.tensor(p, dtype=draw(st.sampled_from(
        (dtype, torch.promote_types(dtype, torch.float32)))))


def masks(shape):
    """Of random sets, some of them without any element."""
    return hnp.arrays(np.bool_, shape, elements=st.booleans())


@st.composite
def upstreams(draw, shape, dtype):
    """Gradients of the outputs; powers of two, which round nothing."""
    factor = st.sampled_from((1.0, -2.0, 0.5))
    if draw(st.booleans()):
        return draw(tensors(shape, dtype, factor))
    return torch.full(shape, draw(factor), dtype=dtype)
