"""Points sorted by the cell of a grid that they lie in."""
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PointsByCell:
    """The points that lie in a cell, and the cells that are not empty.

    Cells are in lexicographic order, as mmcv has them.

    Attributes:
        rows (Tensor): Indices of these points, grouped by cell, ``(K, )``.
        index (Tensor): The cell of each of them, ``(K, )``.
        counts (Tensor): The number of points of each cell, ``(N, )``.
        coors (Tensor): The coordinates of each cell, ``(N, 4)``.
    """

    rows: Tensor
    index: Tensor
    counts: Tensor
    coors: Tensor

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of its cell for each point, ``(K, C)``."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        means = torch.segment_reduce(
            wide.contiguous(), 'mean', lengths=self.counts, unsafe=True)
        return means.to(x.dtype).index_select(0, self.index)


def sort_by_cell(coors: Tensor) -> PointsByCell:
    """Find the points of each cell.

    Args:
        coors (Tensor): Integer coordinates ``(sample, z, y, x)`` of each
            point, shape ``(M, 4)``. A negative one is mmcv's mark of a point
            that is out of range; it belongs to no cell.
    """
    rows = (coors >= 0).all(1).nonzero().squeeze(1)
    kept = coors.index_select(0, rows).long()
    # One number for each cell: rows of numbers are slow to compare.
    key = kept.new_zeros(len(kept))
    if len(kept):
        for column, last in zip(kept.unbind(1), kept.amax(0)):
            key = key * (last + 1) + column
    key, order = key.sort(stable=True)
    rows = rows.index_select(0, order)
    _, index, counts = torch.unique_consecutive(
        key, return_inverse=True, return_counts=True)
    first = rows.index_select(0, counts.cumsum(0) - counts)
    return PointsByCell(rows, index, counts, coors.index_select(0, first))
