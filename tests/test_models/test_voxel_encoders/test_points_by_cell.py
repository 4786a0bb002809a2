"""Extremes of the sort by cell; the rest is in test_voxel_encoders.py."""
import pytest
import torch

from sigplug.models.voxel_encoders.points_by_cell import sort_by_cell


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_mean_of_values_whose_sum_overflows(dtype):
    cells = sort_by_cell(torch.zeros(99, 4).long())
    assert cells.mean(torch.full((99, 2), 5000).to(dtype)).unique().tolist() \
        == [torch.tensor(5000).to(dtype).item()]


def test_large_coordinates():
    """Beyond int32 once they are put into one number."""
    coors = torch.tensor([[3, 2000, 60000, 60000], [3, 2000, 60000, 59999],
                          [0, 0, 0, 60000], [3, 2000, 60000, 60000]]).int()
    cells = sort_by_cell(coors)
    assert cells.coors.equal(coors[[2, 1, 0]])
    assert cells.rows.tolist() == [2, 1, 0, 3]
