"""Points reduced to the cells that they lie in, on every device."""
import math
from collections.abc import Sequence
from itertools import count

import torch
from mmcv.ops import DynamicScatter
from torch import Tensor, nn

from sigplug.models.layers.power import Power
from sigplug.ops import segment_generalized_mean
from sigplug.ops._checks import check_positive, check_tensor

from .encoder_checks import check_numbers


class Cells:
    """The non-empty cells of a grid, and which points lie in them.

    Cells are in lexicographic order, as mmcv has them, and so are the points:
    those of a cell are neighbours. Points with a negative coordinate, which
    is how mmcv marks those that are out of range, belong to no cell.

    It takes the place of the coordinates in upstream's ``forward``, so that
    all that is called there with the same coordinates shares one search.

    Args:
        coors (Tensor): Integer coordinates of each point, ``(z, y, x)`` or
            ``(sample, z, y, x)``, shape ``(M, 3)`` or ``(M, 4)``.

    Attributes:
        rows (Tensor): The points that lie in a cell, by cell, ``(K, )``.
        index (Tensor): The cell of each of them, ``(K, )``, increasing.
        counts (Tensor): The number of points of each cell, ``(N, )``.
        coors (Tensor): Coordinates of each cell, ``(N, 3)`` or ``(N, 4)``,
            in the dtype of ``coors``.
        turn (Iterator): Numbers the calls of :class:`GeMLayerScatters`.

    Raises:
        ValueError: ``coors`` is not as described, or spans more cells than
            an int64 can number.
    """

    def __init__(self, coors: Tensor) -> None:
        if (coors.dim() != 2 or coors.shape[1] not in (3, 4)
                or coors.is_floating_point() or coors.dtype == torch.bool):
            raise ValueError(
                'coors must hold 3 or 4 integers for each point, but got '
                f'shape {tuple(coors.shape)} of {coors.dtype}')
        rows = (coors >= 0).all(1).nonzero().squeeze(1)
        kept = coors.index_select(0, rows).long()
        # One number for each cell: rows of numbers are slow to compare.
        sizes = [int(last) + 1 for last in kept.amax(0)] if len(kept) else []
        if math.prod(sizes) > torch.iinfo(torch.int64).max:
            raise ValueError('coors must span fewer than 2**63 cells, but '
                             f'they span {sizes}')
        key = kept.new_zeros(len(kept))
        for size, column in zip(sizes, kept.unbind(1)):
            key = key * size + column
        key, order = key.sort(stable=True)
        self.rows = rows.index_select(0, order)
        key, self.index, self.counts = torch.unique_consecutive(
            key, return_inverse=True, return_counts=True)
        self._points = coors.index_select(0, self.rows)
        first = self.counts.cumsum(0) - self.counts
        self.coors = self._points.index_select(0, first)
        self.turn = count()

    def __getitem__(self, item: int | slice | tuple) -> Tensor:
        """Part of the coordinates of the points in ``rows``."""
        return self._points[item]


class CellScatter(DynamicScatter):
    """mmcv's ``DynamicScatter`` for every device, with the CPU among them.

    The arguments are upstream's: ``average_points`` chooses the mean, without
    it the points give their maximum. Points that tie for it share its
    gradient.
    """

    def forward(self, points: Tensor,
                coors: Tensor | Cells) -> tuple[Tensor, Tensor]:
        """Reduce the points of each cell.

        Args:
            points (Tensor): Features of each point, shape ``(M, C)``.
            coors (Tensor | Cells): Coordinates of each point, see
                :class:`Cells`; the cells themselves if ``points`` are those
                of their ``rows``.

        Returns:
            tuple[Tensor, Tensor]: Features of each cell, shape ``(N, C)``,
            in the dtype of ``points``, and their coordinates, ``(N, 3)`` or
            ``(N, 4)``.

        Raises:
            ValueError: ``coors`` is not as described, or of another length
                than ``points``.
        """
        check_tensor('points', points)
        if not isinstance(coors, Cells):
            check_tensor('coors', coors)
            if points.dim() != 2 or len(points) != len(coors):
                raise ValueError(
                    'points must hold one row for each row of coors, but got '
                    f'points of shape {tuple(points.shape)} and coors of '
                    f'shape {tuple(coors.shape)}')
            coors = Cells(coors)
            points = points.index_select(0, coors.rows)
        return self.reduce(points, coors), coors.coors

    def reduce(self, points: Tensor, cells: Cells) -> Tensor:
        """The mean or the maximum of each cell; values may be negative."""
        wide = points.to(torch.promote_types(points.dtype, torch.float32))
        return torch.segment_reduce(
            wide.contiguous(),
            'mean' if self.average_points else 'max',
            lengths=cells.counts,
            unsafe=True).to(points.dtype)


class GeMDynamicScatter(CellScatter):
    r"""``DynamicScatter`` that gives the generalised mean of each cell.

    .. math::
        y_c = \Big(\frac{1}{n} \sum_{i=1}^{n}
            \max(x_{i, c}, \epsilon)^p\Big)^{1/p}

    over the :math:`n` points of a cell.

    Args:
        voxel_size (Sequence[float]): As for ``DynamicScatter``.
        point_cloud_range (Sequence[float]): As for ``DynamicScatter``.
        p (float | Sequence[float]): The (initial) power. Defaults to 3.0.
        eps (float): Lower clamp of the point features. Defaults to 1e-6.
        p_trainable (bool): Whether ``p`` is trained. Defaults to True.
        channels (int, optional): Number of channels, for one ``p`` per
            channel; ``None`` shares one. Defaults to None.
        p_range (tuple[float, float]): Smallest and largest value that is used
            of a trained ``p``. Defaults to (1.0, 50.0).

    Raises:
        ValueError: One of the arguments is out of its range.
    """

    def __init__(self,
                 voxel_size: Sequence[float],
                 point_cloud_range: Sequence[float],
                 p: float | Sequence[float] = 3.0,
                 eps: float = 1e-6,
                 p_trainable: bool = True,
                 channels: int | None = None,
                 p_range: tuple[float, float] = (1.0, 50.0)) -> None:
        check_positive('eps', eps)
        check_numbers('voxel_size', voxel_size, 3)
        check_numbers('point_cloud_range', point_cloud_range, 6)
        super().__init__(voxel_size, point_cloud_range, average_points=False)
        self.gem = Power(p, p_trainable, channels, p_range)
        self.eps = eps

    def reduce(self, points: Tensor, cells: Cells) -> Tensor:
        """The generalised mean of each cell."""
        return segment_generalized_mean(
            points, cells.index, len(cells.coors), self.gem.power(),
            eps=self.eps)

    # Upstream's shows neither the power nor any other part.
    __repr__ = nn.Module.__repr__


class GeMLayerScatters(nn.ModuleList):
    """A ``GeMDynamicScatter`` for each layer of a net that calls but one."""

    def forward(self, points: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
        """Reduce by the first one, at the next call by the second one."""
        return self[next(cells.turn)](points, cells)
