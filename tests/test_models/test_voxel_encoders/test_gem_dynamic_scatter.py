"""Scatters against a loop over the points in plain Python."""
import math

import pytest
import torch

from sigplug.models.voxel_encoders.gem_dynamic_scatter import (
    Cells,
    CellScatter,
    GeMDynamicScatter,
    GeMLayerScatters,
)

GRID = (0.5, 0.5, 8), (-10, -10, -5, 10, 10, 3)
SCATTERS = {
    'mean': lambda: CellScatter(*GRID, average_points=True),
    'max': lambda: CellScatter(*GRID, average_points=False),
    'gem': lambda: GeMDynamicScatter(*GRID, p=2.5),
    'gem per channel': lambda: GeMDynamicScatter(
        *GRID, p=[1.5, 2.5, 4.0, 8.0], channels=4),
    'gem 1': lambda: GeMDynamicScatter(*GRID, p=1.0, p_trainable=False),
    'gem inf': lambda: GeMDynamicScatter(*GRID, p=math.inf,
                                         p_trainable=False),
}


def cloud(count=200, dims=4, seed=0, dtype=torch.float32):
    """Points of both signs in few cells, in no order, some out of range."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 4, generator=generator, dtype=dtype)
    coors = torch.randint(0, 4, (count, dims), generator=generator)
    coors[:, -3] //= 3
    lost = torch.rand(count, generator=generator) < 0.2
    # Which of its coordinates are negative does not matter.
    marked = torch.rand(count, 3, generator=generator) < 0.5
    marked[:, 2] |= ~marked.any(1)
    coors[:, -3:][lost[:, None] & marked] = -1
    return points, coors.int()


def by_loop(name, points, coors):
    """A dict of lists, in the order of Python's tuples."""
    members = {}
    for row, coor in zip(points.double(), coors.tolist()):
        if min(coor) >= 0:
            members.setdefault(tuple(coor), []).append(row)
    powers = {
        'gem': 2.5, 'gem 1': 1.0,
        'gem per channel': torch.tensor([1.5, 2.5, 4.0, 8.0]).double()}
    reduced = []
    for coor in sorted(members):
        rows = torch.stack(members[coor])
        if name == 'mean':
            reduced.append(rows.sum(0) / len(rows))
        elif name == 'max':
            reduced.append(rows.amax(0))
        elif name == 'gem inf':
            reduced.append(rows.amax(0).clamp(min=1e-6))
        else:
            p = powers[name]
            power = rows.clamp(min=1e-6).pow(p).sum(0) / len(rows)
            reduced.append(power.pow(1 / p))
    return torch.stack(reduced), torch.tensor(sorted(members))


@pytest.mark.parametrize('dims', [3, 4])
@pytest.mark.parametrize('name', SCATTERS)
def test_equals_a_loop(name, dims):
    points, coors = cloud(dims=dims)
    y, cells = SCATTERS[name]()(points, coors)
    expected, expected_cells = by_loop(name, points, coors)
    assert len(cells) > 10 and y.dtype == torch.float32
    assert cells.dtype == coors.dtype and cells.equal(expected_cells.int())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', SCATTERS)
def test_gradients_equal_those_of_a_loop(name):
    """With weights that differ from cell to cell."""
    points, coors = cloud()
    points.requires_grad_()
    y, _ = SCATTERS[name]()(points, coors)
    weight = torch.randn(y.shape)
    got, = torch.autograd.grad((y * weight).sum(), points)
    y, _ = by_loop(name, points, coors)
    expected, = torch.autograd.grad((y * weight).sum(), points)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    lost = (coors < 0).any(1)
    assert lost.any() and (got[lost] == 0).all() and got[~lost].any()


@pytest.mark.parametrize('name', ['gem', 'gem per channel'])
def test_gradcheck(name):
    points, coors = cloud(30, dtype=torch.float64)
    points = points.exp().requires_grad_()
    scatter = SCATTERS[name]().double()

    def function(points, p):
        return torch.func.functional_call(
            scatter, {'gem.p': p}, (points, coors))[0]

    p = scatter.gem.p.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(function, (points, p))


@pytest.mark.parametrize('average_points', [True, False])
def test_gradcheck_of_mean_and_maximum(average_points):
    points, coors = cloud(30, dtype=torch.float64)
    scatter = CellScatter(*GRID, average_points)
    assert torch.autograd.gradcheck(lambda x: scatter(x, coors)[0],
                                    points.requires_grad_())


def test_fixed_powers_of_relu_features_are_mean_and_maximum():
    points, coors = cloud()
    points = points.relu()
    for name, stock in ('gem 1', 'mean'), ('gem inf', 'max'):
        y, cells = SCATTERS[name]()(points, coors)
        expected, expected_cells = SCATTERS[stock]()(points, coors)
        assert cells.equal(expected_cells)
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1.1e-6)


def test_rises_to_the_maximum_with_p():
    points, coors = cloud()
    largest, _ = SCATTERS['gem inf']()(points, coors)
    counts = Cells(coors).counts[:, None]
    before = torch.zeros_like(largest)
    for p in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 512.0):
        y, _ = GeMDynamicScatter(*GRID, p=p, p_trainable=False)(points, coors)
        assert (y >= before * (1 - 1e-6)).all()
        assert (y <= largest * (1 + 1e-6)).all()
        # A set of n has its mean of powers above its maximum's n-th part.
        assert (y >= largest * counts ** (-1 / p) * (1 - 1e-6)).all()
        before = y
    torch.testing.assert_close(y, largest, rtol=0.01, atol=0)


@pytest.mark.parametrize('name', SCATTERS)
def test_order_of_the_points_does_not_matter(name):
    points, coors = cloud()
    order = torch.randperm(len(points))
    y, cells = SCATTERS[name]()(points, coors)
    other, other_cells = SCATTERS[name]()(points[order], coors[order])
    assert cells.equal(other_cells)
    torch.testing.assert_close(y, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('dims', [3, 4])
@pytest.mark.parametrize('name', SCATTERS)
def test_no_point_and_one_point(name, dims):
    scatter = SCATTERS[name]()
    points = torch.tensor([[0.5, 1, 2, 3]], requires_grad=True)
    coors = torch.tensor([[0, 0, 7, 5][-dims:]])
    for lost in (points[:0], coors[:0]), (points, coors - 1):
        y, cells = scatter(*lost)
        assert y.shape == (0, 4) and cells.shape == (0, dims)
        assert cells.dtype == coors.dtype
        y.sum().backward()
    y, cells = scatter(points, coors)
    assert cells.equal(coors)
    torch.testing.assert_close(y, points)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', SCATTERS)
def test_half_types(name, dtype):
    """Features whose sum a half type could not hold."""
    points, coors = cloud(4000)
    points = (points * 10 + 5000).to(dtype)
    y, cells = SCATTERS[name]()(points, coors)
    expected, _ = by_loop(name, points, coors)
    assert y.dtype == dtype
    torch.testing.assert_close(
        y.double(), expected, rtol=torch.finfo(dtype).eps, atol=0)


def test_large_coordinates():
    """Beyond int32 once they are put into one number."""
    coors = torch.tensor([[3, 2000, 60000, 60000], [3, 2000, 60000, 59999],
                          [0, 0, 0, 60000], [3, 2000, 60000, 60000]]).int()
    y, cells = SCATTERS['mean']()(torch.arange(4.)[:, None], coors)
    assert cells.equal(coors[[2, 1, 0]]) and y.flatten().tolist() == [
        2, 1, 1.5]


def test_cells_are_shared():
    """Given in place of the coordinates they are searched for once."""
    points, coors = cloud()
    cells = Cells(coors)
    assert cells[:, 3].equal(coors[cells.rows][:, 3])
    assert cells.coors[cells.index].equal(coors[cells.rows])
    assert cells.counts.sum() == len(cells.rows) < len(coors)
    for name in SCATTERS:
        scatter = SCATTERS[name]()
        y, found = scatter(points[cells.rows], cells)
        assert y.equal(scatter(points, coors)[0])
        assert found is cells.coors


def test_a_scatter_for_each_layer():
    points, coors = cloud()
    first, second = SCATTERS['gem'](), SCATTERS['gem inf']()
    scatters = GeMLayerScatters([first, second])
    # Each forward pass begins with the first one.
    for _ in range(2):
        cells = Cells(coors)
        rows = points[cells.rows]
        for scatter in first, second:
            assert scatters(rows, cells)[0].equal(scatter(rows, cells)[0])


def test_repr_names_the_power():
    assert 'p=[2.5]' in repr(SCATTERS['gem']())


@pytest.mark.parametrize('points, coors, words', [
    (torch.zeros(3, 4), torch.zeros(2, 4).int(), r'\(3, 4\).*\(2, 4\)'),
    (torch.zeros(3), torch.zeros(3, 4).int(), r'\(3,\).*\(3, 4\)'),
    (torch.zeros(3, 4), torch.zeros(3, 2).int(), r'coors.*\(3, 2\)'),
    (torch.zeros(3, 4), torch.zeros(3, 4), 'coors.*float32'),
    (torch.zeros(1, 4), torch.full((1, 3), 2**31), r'2\*\*63.*2147483649'),
])
def test_bad_points(points, coors, words):
    with pytest.raises(ValueError, match=words):
        SCATTERS['gem']()(points, coors)


@pytest.mark.parametrize('kwargs, words', [
    (dict(eps=0.0), 'eps must be above 0 and finite, but got 0.0'),
    (dict(p=0.0), 'p must be above 0'),
    (dict(p=60.0), 'p_range'),
])
def test_bad_arguments(kwargs, words):
    with pytest.raises(ValueError, match=words):
        GeMDynamicScatter(*GRID, **kwargs)
