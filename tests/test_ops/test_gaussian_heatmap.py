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
    args = [torch.tensor(value) for value in (centers, radii, labels)]
    actual = gaussian_heatmap(*args, 3, (HEIGHT, WIDTH))
    expected = torch.zeros(3, HEIGHT, WIDTH)
    for center, radius, label in zip(*args):
        draw_heatmap_gaussian(expected[label], center, int(radius))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


def test_radius_of_minus_one_draws_nothing():
    """Wherever the centre lies, also where a cast of NaN puts it."""
    low, high = torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max
    centers = torch.tensor([
        [7, 4], [0, 0], [-1, 20], [low, high], [high, low], [33, -1]])
    assert gaussian_heatmap(
        centers, torch.full((6, ), -1), torch.tensor([1, 0, 2, 0, 1, 2]), 3,
        (HEIGHT, WIDTH)).eq(0).all()


@pytest.mark.parametrize('cells', [1, 10, 49, 50, 64])
def test_drawing_in_pieces(monkeypatch, cells):
    """A piece may end inside a square, at its end, or hold several."""
    args = (torch.tensor([[7, 4], [9, 9], [3, 3], [0, 19], [40, 8], [8, 5]]),
            torch.tensor([3, 0, 1, 2, 4, 3]),
            torch.tensor([1, 0, 1, 2, 0, 1]), 3, (HEIGHT, WIDTH))
    whole = gaussian_heatmap(*args)
    monkeypatch.setattr(MODULE, 'CELLS_AT_ONCE', cells)
    torch.testing.assert_close(
        gaussian_heatmap(*args), whole, rtol=1e-6, atol=0)


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


@pytest.mark.parametrize('kwargs, error, words', [
    (dict(centers=torch.zeros(2, 2)), TypeError, 'centers.*float32'),
    (dict(radii=torch.zeros(2)), TypeError, 'radii.*float32'),
    (dict(labels=torch.zeros(2)), TypeError, 'labels.*float32'),
    (dict(centers=torch.zeros(2, 3).long()), ValueError, r'centers.*\(2, 3'),
    (dict(radii=torch.zeros(3).long()), ValueError, r'radii.*\(3,\)'),
    (dict(labels=torch.zeros(2, 1).long()), ValueError, r'labels.*\(2, 1\)'),
    (dict(num_classes=-1), ValueError, 'num_classes.*-1'),
    (dict(ellipses=torch.ones(2, 2)), ValueError, r'ellipses.*\(2, 2\)'),
    (dict(ellipses=torch.ones(2, 3).long()), TypeError, 'ellipses.*int64'),
])
def test_bad_arguments(kwargs, error, words):
    good = dict(centers=torch.zeros(2, 2).long(),
                radii=torch.zeros(2).long(), labels=torch.zeros(2).long(),
                num_classes=1, size=(4, 4))
    with pytest.raises(error, match=words):
        gaussian_heatmap(**good | kwargs)


@pytest.mark.parametrize('exact, stock, overlaps', [
    (False, stock_radius, (0.1, 0.5, 0.7)), (True, mmdet_radius, (0.3, 0.7))])
def test_radius_equals_mmdets(exact, stock, overlaps):
    """mmdet takes a root in float64; the difference has cancelled digits."""
    height, width = 60 * torch.rand(2, 200)
    height[:3], width[:3] = 0.0, torch.tensor([0.0, 1.0, 5.0])
    for overlap in overlaps:
        expected = torch.stack([
            stock((h, w), overlap) for h, w in zip(height, width)])
        actual = gaussian_radius(height, width, overlap, exact=exact)
        torch.testing.assert_close(
            actual, expected, rtol=2e-6 if exact else 0, atol=0)
        assert actual.int().equal(expected.int())
    assert gaussian_radius(height[:0], width[:0]).shape == (0, )


@pytest.mark.parametrize('min_overlap', [0.0, 1.0, -0.1])
def test_radius_bad_overlap(min_overlap):
    with pytest.raises(ValueError, match=f'min_overlap.*{min_overlap}'):
        gaussian_radius(torch.ones(1), torch.ones(1), min_overlap)
