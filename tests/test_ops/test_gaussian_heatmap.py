"""Vectorised heatmap targets against mmdet3d's functions in a loop."""
import importlib

import pytest
import torch
from mmdet.models.utils import gaussian_radius as mmdet_radius
from mmdet3d.models.utils import draw_heatmap_gaussian
from mmdet3d.models.utils import gaussian_radius as stock_radius

from sigplug.ops import gaussian_heatmap, gaussian_radius

# The function of the same name hides the module.
MODULE = importlib.import_module('sigplug.ops.gaussian_heatmap')

HEIGHT, WIDTH = 20, 33


def loop(centers, radii, labels, num_classes, size=(HEIGHT, WIDTH)):
    heatmap = torch.zeros(num_classes, *size)
    for center, radius, label in zip(centers, radii, labels):
        draw_heatmap_gaussian(heatmap[label], center, int(radius))
    return heatmap


def compare(centers, radii, labels, num_classes=3):
    args = [torch.tensor(value, dtype=torch.long)
            for value in (centers, radii, labels)]
    actual = gaussian_heatmap(*args, num_classes, (HEIGHT, WIDTH))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(
        actual, loop(*args, num_classes), rtol=1e-6, atol=1e-9)
    return actual


@pytest.mark.parametrize('centers, radii, labels', [
    ([[0, 0], [WIDTH - 1, 0], [0, HEIGHT - 1], [WIDTH - 1, HEIGHT - 1],
      [1, 10], [WIDTH - 2, 3]], [2, 5, 3, 40, 4, 6], [0, 1, 2, 0, 1, 2]),
    # One cell each; several objects in one; more than the map.
    ([[3, 4], [32, 19]], [0, 0], [0, 2]),
    ([[5, 6]] * 4 + [[6, 6]], [2, 4, 0, 2, 3], [0, 0, 0, 1, 0]),
    ([[5, 5]], [300], [0]),
    ([[7 * i % WIDTH, 11 * i % HEIGHT] for i in range(80)],
     [i % 9 for i in range(80)], [i // 2 % 3 for i in range(80)]),
], ids=['border', 'radius 0', 'one cell', 'huge', 'many'])
def test_equals_mmdet3ds_loop(centers, radii, labels):
    compare(centers, radii, labels)


def test_radius_of_minus_one_draws_nothing():
    """Wherever the centre lies, also where a cast of NaN puts it."""
    drawn = [[7, 4], [32, 19]], [3, 2], [1, 0]
    expected = compare(*drawn)
    ends = [torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max]
    skipped = [[7, 4], [0, 0], [-1, 20], ends, ends[::-1], [33, -1]]
    centers, radii, labels = (torch.tensor(value) for value in drawn)
    actual = gaussian_heatmap(
        torch.cat((torch.tensor(skipped), centers)),
        torch.cat((torch.full((6, ), -1), radii)),
        torch.cat((torch.tensor([1, 0, 2, 0, 1, 2]), labels)), 3,
        (HEIGHT, WIDTH))
    assert actual.equal(expected)


@pytest.mark.parametrize('cells', [1, 10, 49, 50, 64])
def test_drawing_in_pieces(monkeypatch, cells):
    """A piece may end inside a square, at its end, or hold several."""
    monkeypatch.setattr(MODULE, 'CELLS_AT_ONCE', cells)
    compare([[7, 4], [9, 9], [3, 3], [0, 19], [40, 8], [8, 5]],
            [3, 0, 1, 2, 4, 3], [1, 0, 1, 2, 0, 1])


def test_giant_boxes_need_bounded_memory(monkeypatch):
    """400 squares that fill a map of 128 x 128 are 6.6 million cells."""
    sizes, exp = [], torch.exp

    def note(cells, *args, **kwargs):
        sizes.append(cells.numel())
        return exp(cells, *args, **kwargs)

    monkeypatch.setattr(torch, 'exp', note)
    radii = torch.full((400, ), 200)
    radii[0] = 2**31 - 1
    heatmap = gaussian_heatmap(
        torch.randint(0, 128, (400, 2)), radii, torch.randint(0, 10, (400, )),
        10, (128, 128), backend='eager')
    assert heatmap.ne(0).all() and max(sizes) <= MODULE.CELLS_AT_ONCE


@pytest.mark.parametrize('name, value, error', [
    ('centers', torch.zeros(2, 2), TypeError),
    ('radii', torch.zeros(2), TypeError),
    ('labels', torch.zeros(2), TypeError),
    ('centers', torch.zeros(2, 3).long(), ValueError),
    ('radii', torch.zeros(3).long(), ValueError),
    ('labels', torch.zeros(2, 1).long(), ValueError),
    ('num_classes', -1, ValueError),
    ('ellipses', torch.ones(2, 2), ValueError),
    ('ellipses', torch.ones(2, 3).long(), TypeError),
])
def test_bad_arguments(name, value, error):
    good = dict(centers=torch.zeros(2, 2).long(),
                radii=torch.zeros(2).long(), labels=torch.zeros(2).long(),
                num_classes=1, size=(4, 4))
    got = str(value if name == 'num_classes' else value.dtype
              if error is TypeError else tuple(value.shape))
    with pytest.raises(error) as info:
        gaussian_heatmap(**dict(good, **{name: value}))
    assert name in str(info.value) and got in str(info.value)


@pytest.mark.parametrize('min_overlap', [0.1, 0.5, 0.7])
def test_radius_equals_mmdet3d(min_overlap):
    height, width = 60 * torch.rand(
        2, 200, generator=torch.Generator().manual_seed(0))
    height[:3], width[:3] = 0.0, torch.tensor([0.0, 1.0, 5.0])
    expected = torch.stack([
        stock_radius((h, w), min_overlap) for h, w in zip(height, width)])
    assert gaussian_radius(height, width, min_overlap).equal(expected)
    assert gaussian_radius(height[:0], width[:0]).shape == (0, )


@pytest.mark.parametrize('min_overlap', [0.0, 1.0, -0.1])
def test_radius_bad_overlap(min_overlap):
    with pytest.raises(ValueError, match=f'min_overlap.*{min_overlap}'):
        gaussian_radius(torch.ones(1), torch.ones(1), min_overlap)


@pytest.mark.parametrize('min_overlap', [0.3, 0.7])
def test_exact_radius_equals_mmdet(min_overlap):
    height, width = 60 * torch.rand(
        2, 200, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([
        mmdet_radius((h, w), min_overlap) for h, w in zip(height, width)])
    actual = gaussian_radius(height, width, min_overlap, exact=True)
    # mmdet takes the root in float64; the difference has cancelled digits.
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=0)
    assert actual.int().equal(expected.int())


def test_ellipses_against_the_formula():
    centers = torch.tensor([[12, 9], [1, 18], [30, 2]])
    radii, labels = torch.tensor([9, 5, 40]), torch.tensor([0, 0, 1])
    ellipses = torch.tensor(
        [[3.0, 1.0, 0.7], [0.8, 2.5, -2.0], [9.0, 4.0, 1.5]])
    got = gaussian_heatmap(
        centers, radii, labels, 2, (HEIGHT, WIDTH), ellipses=ellipses)
    expected = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.float64)
    rows, columns = torch.meshgrid(
        torch.arange(HEIGHT), torch.arange(WIDTH), indexing='ij')
    for (x, y), radius, label, (along, across, angle) in zip(
            centers, radii, labels, ellipses.double()):
        dx, dy = (columns - x).double(), (rows - y).double()
        u = dx * angle.cos() + dy * angle.sin()
        v = dy * angle.cos() - dx * angle.sin()
        value = (-(u / along)**2 / 2 - (v / across)**2 / 2).exp()
        value[(dx.abs() > radius) | (dy.abs() > radius)] = 0
        expected[label] = expected[label].maximum(value)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-9)
