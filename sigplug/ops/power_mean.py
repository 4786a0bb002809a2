r"""The power mean of sets, behind all forms of generalised-mean pooling.

.. math::
    y = \Big(\frac{1}{N} \sum_i c_i^p\Big)^{1/p}
      = m \Big(\frac{1}{N} \sum_i (c_i / m)^p\Big)^{1/p}, \qquad
    c_i = \max(x_i, \epsilon), \quad m = \max_i c_i

is computed in the second form: every ratio is at most 1, so that no power
overflows, and one of them is 1, so that the mean does not vanish. With
:math:`u_i = c_i / y` the derivatives are

.. math::
    \frac{\partial y}{\partial x_i} = \frac{u_i^{p-1}}{N} [x_i \ge \epsilon],
    \qquad
    \frac{\partial y}{\partial p} = \frac{y}{p N} \sum_i u_i^p \ln u_i

which cannot overflow for :math:`p \ge 1`, as :math:`u_i^p \le N`. At
:math:`c_i = 0`, which needs ``eps=None``, the first one is taken as 0 for
every :math:`p \ne 1`.
"""
import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_device, check_number, find_range, is_number
from ._dtypes import upcast_half
from ._tracing import is_compiling, is_exporting
from .backends import Form, select, select_backward

PowerLike = float | Tensor


@dataclass(frozen=True)
class Dims:
    """Sets along some dims, which stay with size 1.

    The members of the sets are given by a mask, or by None if all are.
    """

    dims: tuple[int, ...]

    def arrange(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The elements as the other methods take them; 0 adds nothing."""
        return x if mask is None else torch.where(mask, x, x.new_zeros(()))

    def adds_zeros(self, mask: Tensor | None) -> bool:
        """Whether ``arrange`` puts zeros among the elements."""
        return mask is not None

    def put_back(self, g: Tensor, mask: Tensor | None,
                 shape: torch.Size) -> Tensor:
        """The adjoint of ``arrange``, for an input of this shape."""
        return self.arrange(g, mask)

    def members_only(self, c: Tensor, mask: Tensor | None) -> Tensor:
        """Arranged values, 0 in place of those that were left out."""
        return Dims.arrange(self, c, mask)

    def sum(self, c: Tensor, mask: Tensor | None) -> Tensor:
        """Sum over each set, in float64.

        In float32, small elements would be lost beside a large one.
        """
        return c.sum(self.dims, keepdim=True, dtype=torch.float64)

    def mean(self, c: Tensor, mask: Tensor | None) -> Tensor:
        """Mean of each set, in the dtype of the elements."""
        if mask is None:
            return c.mean(self.dims, keepdim=True)
        count = mask.to(c.dtype).sum(self.dims, keepdim=True).clamp(min=1)
        return c.sum(self.dims, keepdim=True) / count

    def count(self, c: Tensor, mask: Tensor | None) -> int | Tensor:
        """Number of elements of each set, at least 1."""
        if mask is None:
            return math.prod([c.shape[d] for d in self.dims])
        return mask.sum(self.dims, keepdim=True).clamp(min=1).to(c.dtype)

    def max(self, c: Tensor, mask: Tensor | None) -> Tensor:
        """Maximum of each set of non-negative elements."""
        if mask is None:
            return c.amax(self.dims, keepdim=True)
        # What is left out takes no share of the gradient of zeros.
        return torch.where(mask, c, c.new_full((), -1.0)).amax(
            self.dims, keepdim=True).clamp(min=0)

    def spread(self, y: Tensor, mask: Tensor | None) -> Tensor:
        """A value per set, such that it broadcasts against the elements."""
        return y


@dataclass(frozen=True)
class Windows(Dims):
    """Sliding windows over the last dims; ``dims`` are those they add."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    def arrange(self, x: Tensor, _: Tensor | None) -> Tensor:
        """Shape ``(..., *windows, *kernel)``; padded cells are 0."""
        if any(self.padding):
            x = F.pad(x, self._sides(self.padding))
        unfold = _unfold_by_slices if is_exporting() else Tensor.unfold
        first = x.dim() - len(self.kernel)
        for i, (size, step) in enumerate(zip(self.kernel, self.stride)):
            x = unfold(x, first + i, size, step)
        return x

    def adds_zeros(self, _: Tensor | None) -> bool:
        """Whether there is padding."""
        return any(self.padding)

    def put_back(self, g: Tensor, _: Tensor | None,
                 shape: torch.Size) -> Tensor:
        """Add up what the windows hold of each element."""
        first = len(shape) - len(self.kernel)
        for i in reversed(range(len(self.kernel))):
            sizes = list(g.shape[:-1])
            sizes[first + i] = shape[first + i] + 2 * self.padding[i]
            g = torch.ops.aten.unfold_backward(
                g, sizes, first + i, self.kernel[i], self.stride[i])
        return F.pad(g, self._sides(-margin for margin in self.padding))

    @staticmethod
    def _sides(margins) -> list[int]:
        """The argument of ``F.pad``: both sides, from the last dim on."""
        return [side for m in reversed(tuple(margins)) for side in (m, m)]


@dataclass(frozen=True)
class Segments:
    """Ragged sets: the rows that share an index.

    The methods are those of :class:`Dims`.
    """

    num: int

    def arrange(self, x: Tensor, index: Tensor) -> Tensor:
        """The elements as they are."""
        return x

    def adds_zeros(self, index: Tensor) -> bool:
        """Nothing is added."""
        return False

    def members_only(self, c: Tensor, index: Tensor) -> Tensor:
        """The elements as they are."""
        return c

    def put_back(self, g: Tensor, index: Tensor,
                 shape: torch.Size) -> Tensor:
        """The elements as they are."""
        return g

    def sum(self, c: Tensor, index: Tensor) -> Tensor:
        """Sum over each segment, in float64."""
        c = c.double()
        return c.new_zeros(self.num, *c.shape[1:]).index_add(0, index, c)

    def mean(self, c: Tensor, index: Tensor) -> Tensor:
        """Mean of each segment, in the dtype of the elements."""
        total = c.new_zeros(self.num, *c.shape[1:]).index_add(0, index, c)
        return total / self.count(c, index)

    def count(self, c: Tensor, index: Tensor) -> Tensor:
        """Number of rows of each segment, at least 1."""
        ones = c.new_ones(index.shape)
        count = c.new_zeros(self.num).index_add(0, index, ones).clamp(min=1)
        return count.view(-1, *[1] * (c.dim() - 1))

    def max(self, c: Tensor, index: Tensor) -> Tensor:
        """Maximum of each segment, 0 if it is empty."""
        rows = index.view(-1, *[1] * (c.dim() - 1)).expand_as(c)
        # Not from 0, which would take its share of the gradient of zeros.
        return c.new_full((self.num, *c.shape[1:]), -1.0).scatter_reduce(
            0, rows, c, 'amax').clamp(min=0)

    def spread(self, y: Tensor, index: Tensor) -> Tensor:
        """The value of its segment for each row."""
        return y.index_select(0, index)


Sets: TypeAlias = Dims | Windows | Segments
# What says which elements belong to them: the mask of ``Dims``, or None; None
# for ``Windows``; the index of ``Segments``.
Members: TypeAlias = Any


def power_mean(x: Tensor, p: PowerLike, sets: Sets, members: Members,
               eps: float | None, backend: str = 'auto') -> Tensor:
    """Power mean of each set, in float32 for half types.

    Args:
        x (Tensor): Floating point input.
        p (float | Tensor): The power; a tensor broadcasts against the
            result.
        sets (Dims | Windows | Segments): What is pooled together.
        members (Tensor, optional): The mask of ``Dims``, the index of
            ``Segments``.
        eps (float, optional): Lower clamp of the input.
        backend (str): See :mod:`sigplug.ops.backends`. Defaults to
            ``'auto'``.

    Returns:
        Tensor: One value per set.
    """
    others = [t for t in (p, members) if isinstance(t, Tensor)]
    form = select(PLAIN, backend, x, *others)
    # Compilers and tracers derive and fuse the backward themselves.
    if (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *others))
            and not is_compiling() and not torch.jit.is_tracing()):
        return _PowerMean.apply(x, p, sets, members, eps, form)
    return form.forward(x, p, sets, members, eps)


def power_mean_forward(x: Tensor, p: PowerLike, sets: Sets, members: Members,
                       eps: float | None) -> Tensor:
    """The plain form, whose gradient autograd derives."""
    c = sets.arrange(_clamp(x, eps), members)
    if _is_float(p, math.inf):
        return sets.max(c, members)
    if is_exporting():
        return _exported_power_mean(c, p, sets, members, eps)
    count = sets.count(c, members)
    if _is_float(p, 1.0):
        mean = sets.sum(c, members) / count
        if c.dtype == torch.float64:
            # The sum may overflow where the mean does not.
            scale = _divisor(sets.max(c, members))
            parts = c / sets.spread(scale, members)
            mean = torch.where(
                mean.isinf(), scale * (sets.sum(parts, members) / count), mean)
        return mean.to(c.dtype)

    finite = _replace_inf(p)
    # The maximum cancels out of the formula: it needs no gradient.
    largest = sets.max(c.detach(), members)
    scale = _divisor(largest)
    # A power may have an infinite slope at 0: stay away from it.
    ratio = c / sets.spread(scale, members)
    zero = _zeros(ratio, sets, members, eps)
    base = _replace(ratio, zero, 1.0)
    if isinstance(p, float) and p < 1:
        # The root divides the error of the power by p.
        base = base.double()
    power = _replace(base.pow(finite), zero, ratio * _is_one(finite))
    mean = sets.sum(power, members) / count
    # So does the root: a set of zeros gives 0, with a gradient of 0.
    mean = torch.where(largest == 0, mean.new_ones(()), mean)
    # In float64, as ln(mean) multiplies the rounding error of 1 / p.
    root = mean.pow(1 / _double(finite))
    y = (scale.double() * root).to(c.dtype)
    y = torch.where(largest == 0, largest, y)
    if isinstance(p, Tensor) and finite is not p:
        y = torch.where(p.isinf(), sets.max(c, members), y)
    return y


def _exported_power_mean(c: Tensor, p: PowerLike, sets: Sets, members: Members,
                         eps: float | None) -> Tensor:
    """The plain form of arranged elements, without float64 and in few nodes.

    Its sums and roots round more: by some 1e-6 in place of 1e-7, relatively,
    and by ``1 / p`` times as much for ``p`` below 1.
    """
    if _is_float(p, 1.0):
        return sets.mean(c, members)
    finite = _replace_inf(p)
    largest = sets.max(c.detach(), members)
    scale = largest.clamp(max=torch.finfo(c.dtype).max)
    # Where nothing is clamped, or a set is empty.
    may_be_zero = (members is not None or eps is None
                   or eps < torch.finfo(c.dtype).smallest_normal)
    if may_be_zero:
        zero = largest == 0
        scale = scale.masked_fill(zero, 1.0)
    ratio = c / sets.spread(scale, members)
    mean = sets.mean(ratio.pow(finite), members)
    if may_be_zero:
        # The root has no slope there.
        mean = mean.masked_fill(zero, 1.0)
    y = largest * mean.pow(1 / finite)
    if isinstance(p, Tensor) and finite is not p:
        y = torch.where(p.isinf(), largest, y)
    return y


def power_mean_slopes(x: Tensor, p: PowerLike, sets: Sets, members: Members,
                      eps: float | None, y: Tensor,
                      wants_p: bool) -> tuple[Tensor, Tensor | None]:
    r"""The closed form of the derivatives.

    Returns:
        tuple[Tensor, Tensor | None]: :math:`\partial y / \partial c`, for
        each arranged element, and, if it is wanted,
        :math:`\partial y / \partial p` for each set.
    """
    c = sets.arrange(_clamp(x, eps), members)
    if _is_float(p, math.inf):
        return _slope_of_max(c, sets, members, y), None
    count = sets.count(c, members)
    weight = sets.spread(1 / torch.as_tensor(
        count, dtype=c.dtype, device=c.device), members)
    if _is_float(p, 1.0):
        return weight * torch.ones_like(c), None

    finite = _replace_inf(p)
    u = c / sets.spread(_divisor(y), members)
    zero = _zeros(u, sets, members, eps)
    u = _replace(u, zero, 1.0)
    power = _replace(u.pow(finite - 1), zero, _is_one(finite))
    by_element, by_power = power * weight, None
    if wants_p:
        total = sets.sum(power * u * u.log(), members)
        by_power = y * (total / count / finite).to(y.dtype)
    if isinstance(p, Tensor) and finite is not p:
        by_element = torch.where(
            p.isinf(), _slope_of_max(c, sets, members, y), by_element)
    return by_element, by_power


def power_mean_backward(
        grad_y: Tensor, x: Tensor, p: PowerLike, sets: Sets, members: Members,
        eps: float | None, y: Tensor, wants_x: bool,
        wants_p: bool) -> tuple[Tensor | None, Tensor | None]:
    """The gradients with respect to ``x`` and ``p`` that are wanted."""
    by_element, by_power = power_mean_slopes(x, p, sets, members, eps, y,
                                             wants_p)
    grad_x = grad_p = None
    if wants_x:
        grad_x = sets.put_back(
            sets.spread(grad_y, members) * by_element, members, x.shape)
        grad_x = _where_kept(x, grad_x, eps).to(x.dtype)
    if by_power is not None and isinstance(p, Tensor):
        grad_p = sum_to_power(grad_y * by_power, p)
    return grad_x, grad_p


def sum_to_power(g: Tensor, p: Tensor) -> Tensor:
    """Sum to the shape of ``p``; of both signs, part of it may overflow."""
    return g.double().sum_to_size(p.shape).to(g.dtype)


PLAIN = Form('power_mean', power_mean_forward, power_mean_backward)


class _PowerMean(torch.autograd.Function):
    """Saves the input and tensors of the size of the result."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, p: PowerLike, sets: Sets, members: Members,
                eps: float | None, form: Form) -> Tensor:
        return form.forward(x, p, sets, members, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, p, ctx.sets, members, ctx.eps, ctx.form = inputs
        ctx.float_p = None if isinstance(p, Tensor) else p
        tensors = x, None if ctx.float_p else p, members, output
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, grad_y):
        x, p, members, y = ctx.saved_tensors
        tensors = [t for t in (p, members) if t is not None]
        form = select_backward(ctx.form, PLAIN, grad_y, x, y, *tensors)
        assert form.backward is not None
        wants_x, wants_p, *_ = ctx.needs_input_grad
        return *form.backward(
            grad_y, x, ctx.float_p or p, ctx.sets, members, ctx.eps, y,
            wants_x, wants_p), None, None, None, None

    @staticmethod
    def jvp(ctx, tangent_x, tangent_p, *_):
        x, p, members, y = ctx.saved_tensors
        by_element, by_power = power_mean_slopes(
            x, ctx.float_p or p, ctx.sets, members, ctx.eps, y,
            tangent_p is not None)
        tangent = 0
        if tangent_x is not None:
            kept = _where_kept(x, tangent_x.to(by_element.dtype), ctx.eps)
            tangent = ctx.sets.sum(
                ctx.sets.arrange(kept, members) * by_element,
                members).to(by_element.dtype)
        if tangent_p is not None:
            tangent = tangent + tangent_p * by_power
        return tangent


def is_full(size: int, extent: int) -> bool:
    """Whether a window takes in all, without asking for an open extent.

    Only the extent itself may be open: a window is given in numbers.
    """
    if isinstance(size, int) and isinstance(extent, int):
        return size == extent
    return not isinstance(size, int)


def _unfold_by_slices(x: Tensor, dim: int, size: int, step: int) -> Tensor:
    """``Tensor.unfold`` of operations that every runtime has."""
    if is_full(size, x.shape[dim]):
        return x.unsqueeze(dim).movedim(dim + 1, -1)
    before = (slice(None), ) * dim
    return torch.stack([
        x[before + (slice(i, i + 1 - size or None, step), )]
        for i in range(size)
    ], -1)


def _slope_of_max(c: Tensor, sets: Sets, members: Members,
                  y: Tensor) -> Tensor:
    """All elements that attain the maximum share its gradient."""
    attained = sets.members_only(
        (c == sets.spread(y, members)).to(c.dtype), members)
    ties = sets.sum(attained, members).clamp(min=1).to(c.dtype)
    return attained / sets.spread(ties, members)


def _is_float(p: PowerLike, value: float) -> bool:
    return not isinstance(p, Tensor) and p == value


def _replace_inf(p: PowerLike) -> PowerLike:
    """1 in the places where a tensor that is not trained is ``inf``."""
    if not isinstance(p, Tensor) or p.requires_grad:
        return p
    return torch.where(p.isinf(), torch.ones_like(p), p)


def _double(p: PowerLike) -> PowerLike:
    return p.double() if isinstance(p, Tensor) else p


def _clamp(x: Tensor, eps: float | None) -> Tensor:
    x = upcast_half(x)
    return x if eps is None else x.clamp(min=eps)


def _where_kept(x: Tensor, g: Tensor, eps: float | None) -> Tensor:
    """``g`` where the clamp lets the input pass."""
    if eps is None:
        return g
    return torch.where(upcast_half(x) >= eps, g, g.new_zeros(()))


def _zeros(ratio: Tensor, sets: Sets, members: Members,
           eps: float | None) -> Tensor | None:
    """Where ratios are 0; None if the clamp keeps all of them above."""
    info = torch.finfo(ratio.dtype)
    if (eps is not None and eps >= info.max * info.smallest_normal * info.eps
            and not sets.adds_zeros(members)):
        return None
    return ratio == 0


def _replace(c: Tensor, where: Tensor | None,
             value: float | Tensor) -> Tensor:
    if where is None:
        return c
    return torch.where(where, torch.as_tensor(value, dtype=c.dtype,
                                              device=c.device), c)


def _is_one(p: PowerLike) -> float | Tensor:
    """0 to the power ``p - 1``, were it not for ``p`` below 1."""
    return p.eq(1).float() if isinstance(p, Tensor) else 0.0


def _divisor(y: Tensor) -> Tensor:
    """``y`` where it can be divided by, being neither 0 nor infinite."""
    y = y.clamp(max=torch.finfo(y.dtype).max)
    return torch.where(y == 0, y.new_ones(()), y)


def check_input(x: Tensor, eps: float | None) -> None:
    """Raise an error unless ``x`` and ``eps`` can be pooled."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f'x must be a floating point tensor, but got {got}: '
                        'convert it, e.g. x.float()')
    if eps is None:
        return
    check_number('eps', eps)
    if not 0.0 < eps < math.inf:
        raise ValueError('eps must be above 0 and finite, or None for inputs '
                         f'that are not negative, but got {eps}')
    if eps > torch.finfo(x.dtype).max:
        raise ValueError(f'eps must not be above the largest {x.dtype}, but '
                         f'got {eps}')


def prepare_power(p: PowerLike, x: Tensor) -> PowerLike:
    """A float, or a tensor as precise as the sums; of one element, 0-d."""
    if not isinstance(p, Tensor):
        return _check_float_power(p)
    _check_tensor_power(p)
    p = p.to(torch.promote_types(x.dtype, torch.float32))
    p = p.reshape(()) if p.numel() == 1 else p
    check_device('p', p, x)
    return p


def _check_tensor_power(p: Tensor) -> None:
    """Raise an error if a power that can be looked at is not above 0."""
    if p.is_complex() or p.dtype == torch.bool:
        raise TypeError(f'p must hold real numbers, but is of {p.dtype}')
    values = find_range(p.detach())
    if values and not values[0] > 0:
        raise ValueError(f'p must be above 0, but got {p.tolist()}')


def _check_float_power(p: float) -> float:
    if not is_number(p) or not p > 0:
        raise ValueError('p must be a number above 0 (inf gives the maximum) '
                         f'or a tensor of such numbers, but got {p!r}')
    return float(p)
