"""Targets of a CenterNet-style heatmap: radii and Gaussian peaks."""
import math

import torch
from torch import Tensor

from ._checks import (
    check_between,
    check_device,
    check_flag,
    check_float_tensor,
    check_integer,
    check_integer_tensor,
    check_shape,
    check_tensor,
    find_range,
    is_integer,
)
from .backends import Form, select

# Bounds the memory of the drawing, some 70 bytes a cell, and keeps its
# temporaries in a cache.
CELLS_AT_ONCE = 2**17


def gaussian_radius(height: Tensor,
                    width: Tensor,
                    min_overlap: float = 0.5,
                    *,
                    exact: bool = False) -> Tensor:
    r"""Return the radius within which a shifted box overlaps the true one.

    The smallest of the three radii of CornerNet (`Law and Deng, 2018
    <https://arxiv.org/abs/1808.01244>`_), one for each way in which two
    corners may move, such that the intersection over union with the true box
    stays at ``min_overlap`` or above. Written for whole tensors of boxes,
    with the arithmetic of mmdet3d's ``gaussian_radius``, which takes the
    larger root of each quadratic and divides it by 2, as CenterNet and
    CenterPoint do; or with that of mmdet's, which solves them.

    Args:
        height (Tensor): Extents along y in heatmap cells, shape ``(K, )``.
        width (Tensor): Extents along x in heatmap cells, shape ``(K, )``.
        min_overlap (float): The overlap to keep, in (0, 1). Defaults to 0.5.
        exact (bool): Solve the quadratics, as mmdet does for CornerNet,
            CenterNet and SMOKE. Defaults to False.

    Returns:
        Tensor: Radii in heatmap cells, shape ``(K, )``, not rounded.

    Raises:
        TypeError: An extent is not a real tensor, ``min_overlap`` not a
            number, or ``exact`` not True or False.
        ValueError: ``min_overlap`` is not in (0, 1), or the shapes differ.
    """
    for name, value in (('height', height), ('width', width)):
        check_tensor(name, value)
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f'{name} must hold real numbers, but is of '
                            f'{value.dtype}')
    check_shape('width', width, height.shape)
    check_device('width', width, height)
    check_between('min_overlap', min_overlap, 0.0, 1.0)
    check_flag('exact', exact)
    total, area = height + width, width * height
    sign = -1 if exact else 1

    b1 = total
    c1 = area * (1 - min_overlap) / (1 + min_overlap)
    r1 = (b1 + sign * torch.sqrt(b1**2 - 4 * c1)) / 2

    b2 = 2 * total
    c2 = (1 - min_overlap) * width * height
    r2 = (b2 + sign * torch.sqrt(b2**2 - 16 * c2)) / (8 if exact else 2)

    a3 = 4 * min_overlap
    b3 = -2 * min_overlap * total
    c3 = (min_overlap - 1) * width * height
    r3 = (b3 + torch.sqrt(b3**2 - 4 * a3 * c3)) / (2 * a3 if exact else 2)
    return torch.minimum(torch.minimum(r1, r2), r3)


def gaussian_heatmap(centers: Tensor,
                     radii: Tensor,
                     labels: Tensor,
                     num_classes: int,
                     size: tuple[int, int],
                     *,
                     ellipses: Tensor | None = None,
                     backend: str = 'auto') -> Tensor:
    r"""Draw one Gaussian peak per object, the maximum where they overlap.

    .. math::
        h_{c, y, x} = \max_{k: \mathrm{label}_k = c}
            \exp\left(-\frac{(x - x_k)^2 + (y - y_k)^2}{2 \sigma_k^2}\right),
        \qquad \sigma_k = \frac{2 r_k + 1}{6}

    within the square of :math:`2 r_k + 1` cells around each centre, 0
    elsewhere. With ``ellipses`` the exponent is :math:`-\frac{1}{2}
    \left(u^2 / \sigma_u^2 + v^2 / \sigma_v^2\right)`, where :math:`u` and
    :math:`v` are the distances along and across the axis of the object.

    Args:
        centers (Tensor): Integer cells (x, y) of the peaks, shape
            ``(K, 2)``. A centre outside the map draws the part of its square
            that lies inside.
        radii (Tensor): Integer radii in cells, shape ``(K, )``. A radius of
            -1 draws nothing, so that an object can be left out without a
            change of shapes; its centre may then be any number.
        labels (Tensor): Integer channel of each object, in
            ``[0, num_classes)``, shape ``(K, )``.
        num_classes (int): Number of channels.
        size (tuple[int, int]): Height and width of the map, in cells.
        ellipses (Tensor, optional): Sigmas in cells along and across the axis
            of each object, and the angle of the axis from x to y in radians,
            shape ``(K, 3)``; drawn by the plain form whatever the backend.
            Defaults to None, round peaks.
        backend (str): ``'auto'``, ``'eager'``, ``'cpp'`` or ``'triton'``, see
            :mod:`sigplug.ops.backends`. Defaults to ``'auto'``.

    Returns:
        Tensor: float32 heatmap of shape ``(num_classes, height, width)`` with
        a value of exactly 1 at each centre inside the map.

    Raises:
        TypeError: An input is not an integer tensor.
        ValueError: The shapes or devices do not fit together, or a radius, a
            label, ``num_classes`` or ``size`` is out of its range.
        BackendError: The requested backend cannot be used.
    """
    for name, value, shape in (('centers', centers, (2, )),
                               ('radii', radii, ()), ('labels', labels, ())):
        check_integer_tensor(name, value)
        check_device(name, value, centers)
        check_shape(name, value, (*centers.shape[:1], *shape))
    check_integer('num_classes', num_classes, 0)
    if (not isinstance(size, (tuple, list)) or len(size) != 2
            or not all(is_integer(side, 0) for side in size)):
        raise ValueError('size must be (height, width), two integers of at '
                         f'least 0, but got {size!r}')
    for name, value, least, most in (('radii', radii, -1, math.inf),
                                     ('labels', labels, 0, num_classes - 1)):
        values = find_range(value)
        if values and not least <= values[0] <= values[1] <= most:
            raise ValueError(f'{name} must lie in [{least}, {most}], but has '
                             f'values from {values[0]} to {values[1]}')
    form = select(PLAIN, backend, centers, radii, labels)
    if ellipses is None:
        return form.forward(centers, radii, labels, num_classes, size)
    check_float_tensor('ellipses', ellipses)
    check_device('ellipses', ellipses, centers)
    check_shape('ellipses', ellipses, (len(centers), 3))
    return draw_heatmap(centers, radii, labels, num_classes, size, ellipses)


def draw_heatmap(centers: Tensor, radii: Tensor, labels: Tensor,
                 num_classes: int, size: tuple[int, int],
                 ellipses: Tensor | None = None) -> Tensor:
    """Draw in plain PyTorch, without a loop over the objects.

    Its memory besides the heatmap is bounded for all radii: the cells of all
    squares are numbered and drawn ``CELLS_AT_ONCE`` at a time. It waits once
    for a GPU, for their number.
    """
    height, width = size
    x, y = centers.long().unbind(1)
    radii, labels = radii.long(), labels.long()
    left, right = (x - radii).clamp(min=0), (x + radii + 1).clamp(max=width)
    top, bottom = (y - radii).clamp(min=0), (y + radii + 1).clamp(max=height)
    columns = (right - left).clamp(min=0)
    rows = (bottom - top).clamp(min=0)
    sigma = (2 * radii + 1).double() / 6
    if ellipses is not None:
        sigma_u, sigma_v, angle = ellipses.double().unbind(1)
        cos_u, sin_u = angle.cos() / sigma_u, angle.sin() / sigma_u
        cos_v, sin_v = angle.cos() / sigma_v, angle.sin() / sigma_v
    corner = (labels * height + top) * width + left

    # The cells of all clipped squares, numbered through row by row.
    end = (columns * rows).cumsum(0)
    start = end - columns * rows
    objects = torch.arange(len(x), device=x.device)
    heatmap = torch.zeros(
        num_classes * height * width, dtype=torch.float32, device=x.device)
    total = int(end[-1]) if len(x) else 0
    for first in range(0, total, CELLS_AT_ONCE):
        last = min(first + CELLS_AT_ONCE, total)
        owner = objects.repeat_interleave(
            end.clamp(first, last) - start.clamp(first, last),
            output_size=last - first)
        cell = torch.arange(first, last, device=x.device) - start[owner]
        row = cell.div(columns[owner], rounding_mode='floor')
        column = cell - row * columns[owner]
        dx, dy = column + (left - x)[owner], row + (top - y)[owner]
        if ellipses is None:
            squared = (dx**2 + dy**2) / (sigma**2)[owner]
        else:
            squared = ((dx * cos_u[owner] + dy * sin_u[owner])**2 +
                       (dy * cos_v[owner] - dx * sin_v[owner])**2)
        value = torch.exp(squared / -2).float()
        heatmap.scatter_reduce_(
            0, corner[owner] + row * width + column, value, 'amax')
    return heatmap.view(num_classes, height, width)


PLAIN = Form('gaussian_heatmap', draw_heatmap)
