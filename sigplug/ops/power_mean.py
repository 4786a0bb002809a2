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
    \frac{\partial y}{\partial p} = \frac{y}{p} (r - \ln y)
      = \frac{y}{p N} \sum_i u_i^p \ln u_i, \qquad
    r = \frac{\sum_i c_i^p \ln c_i}{\sum_i c_i^p}

which cannot overflow for :math:`p \ge 1`, as :math:`u_i^p \le N`. At
:math:`c_i = 0`, which needs ``eps=None``, the first one is taken as 0 for
every :math:`p \ne 1`.
"""
import functools
import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ._checks import PowerLike, find_range
from ._dtypes import upcast_half
from ._tracing import is_exporting
from .backends import Form, needs_plain, select, wants_plain_backward


@dataclass(frozen=True)
class Dims:
    """Sets along some dims, which stay with size 1.

    Attributes:
        dims (tuple[int, ...]): The dims, in ascending order.
        members (Tensor, optional): Mask of the elements that take part, in
            the shape of the input. None takes all.
    """

    dims: tuple[int, ...]
    members: Tensor | None = None

    def keep(self, c: Tensor) -> Tensor:
        """Return the elements, with 0 for those that take no part."""
        if self.members is None:
            return c
        return torch.where(self.members, c, c.new_zeros(()))

    def mean(self, c: Tensor) -> Tensor:
        """Return the mean of each set of kept elements."""
        if self.members is None:
            return c.mean(self.dims, keepdim=True, dtype=_sum_dtype(c))
        return self.sum(c) / self.count(c)

    def sum(self, c: Tensor) -> Tensor:
        """Return the sum over each set of kept elements."""
        return c.sum(self.dims, keepdim=True, dtype=_sum_dtype(c))

    def count(self, c: Tensor) -> int | Tensor:
        """Return the number of members of each set, at least 1."""
        if self.members is None:
            return math.prod([c.shape[d] for d in self.dims])
        count = self.members.to(c.dtype).sum(self.dims, keepdim=True)
        return count.clamp(min=1)

    def max(self, c: Tensor) -> Tensor:
        """Return the maximum of each set, 0 if it is empty."""
        if self.members is None:
            return c.amax(self.dims, keepdim=True)
        # What is left out takes no share of the gradient of zeros.
        return torch.where(self.members, c, c.new_full((), -1.0)).amax(
            self.dims, keepdim=True).clamp(min=0)

    def expand(self, y: Tensor) -> Tensor:
        """Return a value per set such that it broadcasts to the elements."""
        return y


@dataclass(frozen=True)
class Segments:
    """Ragged sets: the rows that share an index.

    The methods are those of :class:`Dims`.

    Attributes:
        num (int): Number of segments.
        members (Tensor): The segment of each row.
        rows (Tensor, optional): The rows in the order of their segments, for
            the kernels that want it.
        offsets (Tensor, optional): Where each segment begins and ends there.
    """

    num: int
    members: Tensor
    rows: Tensor | None = None
    offsets: Tensor | None = None

    def keep(self, c: Tensor) -> Tensor:
        """Return the elements: all take part."""
        return c

    def mean(self, c: Tensor) -> Tensor:
        """Return the mean of each segment, 0 if it is empty."""
        return self.sum(c) / self.count(c)

    def sum(self, c: Tensor) -> Tensor:
        """Return the sum over each segment."""
        c = c.to(_sum_dtype(c))
        return c.new_zeros(self.num, *c.shape[1:]).index_add(
            0, self.members, c)

    def count(self, c: Tensor) -> Tensor:
        """Return the number of rows of each segment, at least 1."""
        ones = c.new_ones(self.members.shape)
        count = c.new_zeros(self.num).index_add(0, self.members, ones)
        return count.clamp(min=1).view(-1, *[1] * (c.dim() - 1))

    def max(self, c: Tensor) -> Tensor:
        """Return the maximum of each segment, 0 if it is empty."""
        rows = self.members.view(-1, *[1] * (c.dim() - 1)).expand_as(c)
        # Not from 0, which would take its share of the gradient of zeros.
        return c.new_full((self.num, *c.shape[1:]), -1.0).scatter_reduce(
            0, rows, c, 'amax').clamp(min=0)

    def expand(self, y: Tensor) -> Tensor:
        """Return the value of its segment for each row."""
        return y.index_select(0, self.members)


Sets: TypeAlias = Dims | Segments


def power_mean_forward(x: Tensor, p: PowerLike, sets: Sets,
                       eps: float | None) -> Tensor:
    """Compute the power mean in plain PyTorch.

    Sums and roots are in float64, but in float32 for exporters, whose
    runtimes may lack it: by some 1e-6 off in place of 1e-7. The result has
    one value per set, float32 for half-precision dtypes; a tensor ``p``
    broadcasts against it.
    """
    c = sets.keep(clamp(x, eps))
    dtype = c.dtype
    if is_float(p, math.inf):
        return sets.max(c)
    if is_float(p, 1.0):
        mean = sets.mean(c)
        if dtype == torch.float64:
            # The sum may overflow where the mean does not.
            scale = _divisor(sets.max(c.detach()), sets, None)
            mean = torch.where(
                mean.isinf(), scale * sets.mean(c / sets.expand(scale)), mean)
        return mean.to(dtype)
    if not isinstance(p, Tensor) and p < 1 and not is_exporting():
        # The root divides the error of the power by p.
        c = c.double()
    finite = without_inf(p)
    # The maximum cancels out of the formula: it needs no gradient.
    largest = sets.max(c.detach())
    ratio = c / sets.expand(_divisor(largest, sets, eps))
    if _may_be_zero(sets, eps) and (isinstance(p, Tensor) or p < 1):
        # A power may have an infinite slope at 0: stay away from it.
        zero = ratio == 0
        power = torch.where(zero, ratio * _is_one(finite, ratio),
                            ratio.masked_fill(zero, 1.0).pow(finite))
    else:
        power = ratio.pow(finite)
    mean = sets.mean(power)
    if _may_be_zero(sets, eps):
        # So has the root.
        mean = mean.masked_fill(largest == 0, 1.0)
    y = (largest * root(mean, finite)).to(dtype)
    if isinstance(p, Tensor) and finite is not p:
        y = torch.where(p.isinf(), sets.max(c), y)
    return y


def power_mean_backward(
        grad_y: Tensor, x: Tensor, p: PowerLike, sets: Sets,
        eps: float | None, y: Tensor, wants_x: bool,
        wants_p: bool) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of ``x`` and ``p`` by the closed form.

    ``y`` is the result of :func:`power_mean_forward`, and ``grad_y`` its
    gradient.
    """
    c = sets.keep(clamp(x, eps))
    finite = without_inf(p)
    u = c / sets.expand(_divisor(y, sets, None))
    zero = (u == 0) if _may_be_zero(sets, eps) else None
    if zero is not None:
        u = u.masked_fill(zero, 1.0)
    power = u.pow(1.0 if is_float(p, math.inf) else finite - 1)
    grad_x = grad_p = None
    if wants_x:
        slope = power / sets.expand(torch.as_tensor(
            sets.count(c), dtype=c.dtype, device=c.device))
        if zero is not None:
            slope = torch.where(zero, slope * _is_one(finite, slope), slope)
        if has_inf(p):
            slope = torch.where(torch.as_tensor(p).isinf(),
                                _slope_of_max(c, y, sets), slope)
        grad_x = stop_at_clamp(
            sets.keep(sets.expand(grad_y) * slope), x, eps)
    if wants_p and isinstance(p, Tensor):
        dy_dp = y / p * sets.mean(power * u * u.log()).to(y.dtype)
        grad_p = sum_to_power(grad_y * dy_dp, p)
    return grad_x, grad_p


def _slope_of_max(c: Tensor, y: Tensor, sets: Sets) -> Tensor:
    """Share the gradient among all elements that attain the maximum."""
    attained = (c == sets.expand(y)).to(c.dtype)
    if isinstance(sets, Dims):
        attained = sets.keep(attained)
    ties = sets.sum(attained).clamp(min=1).to(c.dtype)
    return attained / sets.expand(ties)


PLAIN = Form('power_mean', power_mean_forward, power_mean_backward)


def power_mean(x: Tensor, p: PowerLike, sets: Sets, eps: float | None,
               backend: str = 'auto', keepdim: bool = True) -> Tensor:
    """Compute a power mean by the best form, and make it differentiable.

    ``keepdim=False`` leaves out pooled dims.
    """
    tensors = [t for t in (x, p, sets.members) if isinstance(t, Tensor)]
    form = select(PLAIN, backend, *tensors)
    if not isinstance(p, Tensor) and not 1 <= p < math.inf:
        # Kernels compute in float32, which p < 1 needs more than.
        form = PLAIN
    if form.prepare is not None:
        sets = form.prepare(sets)
    squeezed = () if keepdim or isinstance(sets, Segments) else sets.dims
    if torch.is_grad_enabled() and any([t.requires_grad for t in tensors]):
        # Compilers and transforms derive the backward of the plain form.
        if form is not PLAIN or not needs_plain(*tensors):
            return _PowerMean.apply(x, p, sets, eps, form, squeezed)
    y = form.forward(x, p, sets, eps)
    return y.squeeze(squeezed) if squeezed else y


class _PowerMean(torch.autograd.Function):
    """Saves the input, and tensors of the size of the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: PowerLike, sets: Any,
                eps: float | None, form: Form,
                squeezed: tuple[int, ...]) -> Tensor:
        y = form.forward(x, p, sets, eps)
        ctx.shape = y.shape
        if squeezed:
            # Here, it is no step of its own in the backward pass.
            y.squeeze_(squeezed)
        # All but the first field of sets are tensors, or None.
        first, *members = vars(sets).values()
        ctx.make_sets = functools.partial(sets.__class__, first)
        ctx.p = None if isinstance(p, Tensor) else p
        ctx.eps, ctx.form = eps, form
        ctx.save_for_backward(x, None if ctx.p else p, y, *members)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, p, y, *members = ctx.saved_tensors
        p = ctx.p or p
        form = ctx.form
        if has_inf(p) or wants_plain_backward(grad_y):
            form = PLAIN
        assert form.backward is not None
        grad_x, grad_p = form.backward(
            grad_y.reshape(ctx.shape), x, p, ctx.make_sets(*members), ctx.eps,
            y.reshape(ctx.shape), *ctx.needs_input_grad[:2])
        return grad_x, grad_p, None, None, None, None


def is_float(p: PowerLike, value: float) -> bool:
    """Return whether a power is a number, and this one."""
    return not isinstance(p, Tensor) and p == value


def has_inf(p: PowerLike) -> bool:
    """Return whether a power is infinite, True if it cannot be read."""
    if not isinstance(p, Tensor):
        return p == math.inf
    if p.requires_grad:
        return False
    values = find_range(p)
    return values is None or values[1] == math.inf


def without_inf(p: PowerLike) -> PowerLike:
    """Return a power with 1 in the places of a fixed tensor that are inf."""
    if not isinstance(p, Tensor) or p.requires_grad:
        return p
    return torch.where(p.isinf(), torch.ones_like(p), p)


def clamp(x: Tensor, eps: float | None) -> Tensor:
    """Return the input in the dtype to compute in, clamped."""
    x = upcast_half(x)
    return x if eps is None else x.clamp(min=eps)


def stop_at_clamp(grad: Tensor, x: Tensor, eps: float | None) -> Tensor:
    """Return the gradient of the input from that of its clamped values."""
    if eps is not None:
        below = torch.nextafter(*torch.tensor(
            [eps, 0.0], dtype=grad.dtype, device='cpu'))
        grad = torch.ops.aten.threshold_backward(
            grad, x.to(grad.dtype), below.item())
    return grad.to(x.dtype)


def root(mean: Tensor, p: PowerLike) -> Tensor:
    """Return the p-th root, in float64: ln(mean) multiplies errors of 1/p."""
    if is_exporting():
        return mean.pow(1 / p)
    return mean.double().pow(1 / (p.double() if isinstance(p, Tensor) else p))


def sum_to_power(grad: Tensor, p: Tensor) -> Tensor:
    """Sum to the shape of ``p``; of both signs, part of it may overflow."""
    if p.numel() == 1:
        return grad.sum(dtype=torch.float64).to(p.dtype).view(p.shape)
    return grad.double().sum_to_size(p.shape).to(p.dtype)


def _sum_dtype(c: Tensor) -> torch.dtype:
    """Return float64: small elements would be lost beside a large one."""
    return c.dtype if is_exporting() else torch.float64


def _may_be_zero(sets: Sets, eps: float | None) -> bool:
    """Return whether elements or results may be 0."""
    return (sets.members is not None or eps is None
            or eps < torch.finfo(torch.float32).smallest_normal)


def _is_one(p: PowerLike, like: Tensor) -> float | Tensor:
    """Return 0**(p - 1): 1 where p is 1, else 0, by convention."""
    return p.eq(1).to(like.dtype) if isinstance(p, Tensor) else float(p == 1)


def _divisor(y: Tensor, sets: Sets, eps: float | None) -> Tensor:
    """Return ``y``, finite, and 1 where it is 0."""
    y = y.clamp(max=torch.finfo(y.dtype).max)
    return y.masked_fill(y == 0, 1.0) if _may_be_zero(sets, eps) else y
