"""Points sorted by cell against a loop over the points in plain Python."""
import pytest
import torch

from sigplug.models.voxel_encoders.points_by_cell import sort_by_cell


@pytest.mark.parametrize('dtype', [torch.int32, torch.int64])
def test_cells_and_means(dtype):
    # Few cells in no order, a fifth of the points out of range.
    coors = torch.randint(0, 4, (200, 4)).to(dtype)
    coors[torch.rand(200) < 0.2, 2] = -1
    cells = sort_by_cell(coors)
    assert cells.coors.dtype == dtype
    inside = sorted((coor, i) for i, coor in enumerate(coors.tolist())
                    if min(coor) >= 0)
    assert cells.rows.tolist() == [i for _, i in inside]
    assert cells.coors[cells.index].tolist() == [coor for coor, _ in inside]
    assert cells.counts.equal(cells.index.bincount())
    x = torch.randn(len(cells.rows), 3, dtype=torch.float64)
    expected = torch.cat([group.mean(0).expand(len(group), -1)
                          for group in x.split(cells.counts.tolist())])
    torch.testing.assert_close(cells.mean(x), expected)
    assert torch.autograd.gradcheck(cells.mean, x.requires_grad_())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_mean_of_values_whose_sum_overflows(dtype):
    cells = sort_by_cell(torch.zeros(99, 4).long())
    assert cells.mean(torch.full((99, 2), 5000).to(dtype)).unique().tolist() \
        == [torch.tensor(5000).to(dtype).item()]


def test_no_points():
    for coors in torch.zeros(0, 4).int(), torch.full((3, 4), -1):
        cells = sort_by_cell(coors)
        assert cells.coors.shape == (0, 4) and len(cells.rows) == 0
        assert cells.mean(torch.zeros(0, 3)).shape == (0, 3)


def test_large_coordinates():
    """Beyond int32 once they are put into one number."""
    coors = torch.tensor([[3, 2000, 60000, 60000], [3, 2000, 60000, 59999],
                          [0, 0, 0, 60000], [3, 2000, 60000, 60000]]).int()
    cells = sort_by_cell(coors)
    assert cells.coors.equal(coors[[2, 1, 0]])
    assert cells.rows.tolist() == [2, 1, 0, 3]
