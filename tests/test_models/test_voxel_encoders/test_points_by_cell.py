"""Points sorted by cell against a loop over the points in plain Python."""
import pytest
import torch

from sigplug.models.voxel_encoders.points_by_cell import sort_by_cell


def draw_coors(count=200, dtype=torch.int32):
    """Few cells in no order, a fifth of the points out of range."""
    generator = torch.Generator().manual_seed(0)
    coors = torch.randint(0, 4, (count, 4), generator=generator)
    lost = torch.rand(count, generator=generator) < 0.2
    # Which of its coordinates is negative does not matter.
    coors[lost, torch.randint(1, 4, (int(lost.sum()), ),
                              generator=generator)] = -1
    return coors.to(dtype)


def members_by_loop(coors):
    """The points of each cell, in the order of Python's tuples."""
    members = {}
    for i, coor in enumerate(coors.tolist()):
        if min(coor) >= 0:
            members.setdefault(tuple(coor), []).append(i)
    return dict(sorted(members.items()))


@pytest.mark.parametrize('dtype', [torch.int32, torch.int64])
def test_cells_and_means(dtype):
    coors = draw_coors(dtype=dtype)
    members = members_by_loop(coors)
    cells = sort_by_cell(coors)
    assert cells.coors.dtype == dtype
    assert [tuple(c) for c in cells.coors.tolist()] == list(members)
    assert cells.counts.tolist() == [len(m) for m in members.values()]
    assert cells.rows.tolist() == sum(members.values(), [])
    assert cells.coors[cells.index].equal(coors[cells.rows])
    x = torch.randn(len(cells.rows), 3, dtype=torch.float64)
    groups = x.split([len(m) for m in members.values()])
    expected = torch.cat([g.mean(0).expand(len(g), -1) for g in groups])
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


@pytest.mark.parametrize('coors', [
    torch.zeros(3, 3).int(), torch.zeros(3).int(), torch.zeros(3, 4)])
def test_bad_coordinates(coors):
    with pytest.raises(ValueError, match='coors must hold 4 integers') as e:
        sort_by_cell(coors)
    assert str(tuple(coors.shape)) in str(e.value)
