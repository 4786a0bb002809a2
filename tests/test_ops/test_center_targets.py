"""Targets of a batch, against float64 loops and against worked examples.

Against mmdet3d's own loop: test_dense_heads/test_center_targets.py.
"""
import math

import pytest
import torch

from sigplug.ops import center_targets, covered_cells, gaussian_radius

# 20 x 12 cells of 0.5 x 0.5.
GRID = dict(grid_size=(40, 24), voxel_size=(0.25, 0.25, 8),
            point_cloud_range=(-5, -3, -4, 5, 3, 4), out_size_factor=2)
WIDTH, HEIGHT, CELL = 20, 12, 0.5


def boxes(count):
    values = torch.randn(count, 7)
    values[:, 0] *= 2.5
    values[:, 3:6] = values[:, 3:6].exp()
    return values, torch.randint(3, (count, ))


def draw(sample, labels, oriented):
    """The heatmap of the definition, cell by cell in Python's float64.

    No radius is below the default of 2 cells.
    """
    heatmap = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.float64)
    for box, label in zip(sample.double().tolist(), labels.tolist()):
        x, y = (box[0] + 5) / CELL, (box[1] + 3) / CELL
        if not (-1 < x < WIDTH and -1 < y < HEIGHT):
            continue
        x, y, along, across = int(x), int(y), box[3] / CELL, box[4] / CELL
        if oriented:
            sigma_u, sigma_v = (max(side, 5) / 6
                                for side in (along, across))
            radius, yaw = math.ceil(3 * max(sigma_u, sigma_v)), box[6]
        else:
            radius = max(2, int(gaussian_radius(
                torch.tensor([across]), torch.tensor([along]), 0.1)))
            sigma_u = sigma_v = (2 * radius + 1) / 6
            yaw = 0.0
        for row in range(max(0, y - radius), min(HEIGHT, y + radius + 1)):
            for col in range(max(0, x - radius), min(WIDTH, x + radius + 1)):
                dx, dy = col - x, row - y
                u = dx * math.cos(yaw) + dy * math.sin(yaw)
                v = dy * math.cos(yaw) - dx * math.sin(yaw)
                heatmap[label, row, col] = max(
                    math.exp(-((u / sigma_u)**2 + (v / sigma_v)**2) / 2),
                    heatmap[label, row, col])
    return heatmap


@pytest.mark.parametrize('oriented', [False, True])
def test_heatmaps_against_the_definition(oriented):
    batch = [boxes(9), boxes(0), boxes(6)]
    targets = center_targets(*zip(*batch), 3, **GRID, oriented=oriented)
    assert targets.heatmaps.shape == (3, 3, HEIGHT, WIDTH)
    for heatmap, sample in zip(targets.heatmaps, batch):
        torch.testing.assert_close(
            heatmap.double(), draw(*sample, oriented), rtol=0, atol=1e-6)
    assert targets[1:] == (None, ) * 4


def test_objects_by_hand():
    """Two tasks of two classes and one; the objects in order of class."""
    sample = torch.tensor([
        [1.3, 0.2, -1.0, 1, 1, 1, 0.5],   # class 1
        [-4.9, 2.9, 0.0, 2, 1, 1, 0.0],   # class 0
        [0.0, 0.0, 0.0, 1, 1, 1, 0.0],    # class 2
        [9.0, 0.0, 0.0, 1, 1, 1, 0.0],    # class 2, outside
        [0.0, 0.0, 0.0, 0, 1, 1, 0.0],    # class 2, no extent
        [0.0, 1.0, 0.0, 1, 1, 1, 0.0]])   # no class
    labels = torch.tensor([1, 0, 2, 2, 2, -1])
    targets = center_targets(
        [sample], [labels], [2, 1], **GRID, max_objs=3)
    assert targets.masks.tolist() == [[[True, True, False],
                                      [True, False, False]]]
    # x = 12.6, y = 6.4 and x = 0.2, y = 11.8; x = 10, y = 6.
    assert targets.indices.tolist() == [[[11 * 20, 6 * 20 + 12, 0],
                                       [6 * 20 + 10, 0, 0]]]
    torch.testing.assert_close(targets.offsets, torch.tensor(
        [[[[0.2, 0.8], [0.6, 0.4], [0, 0]], [[0.0, 0], [0, 0], [0, 0]]]]),
        rtol=0, atol=1e-5)
    assert targets.boxes.equal(torch.stack((
        sample[[1, 0, 2]], torch.stack((sample[2], *torch.zeros(2, 7))))
    )[None].where(targets.masks[..., None], 0))
    assert targets.heatmaps.eq(1).sum((2, 3)).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize('yaw', [math.nan, math.inf])
def test_an_ellipse_without_a_direction_is_left_out(yaw):
    sample, labels = boxes(5)
    sample[2, :2], sample[2, 6] = 0, yaw
    kept = [0, 1, 3, 4]
    got, expected = (center_targets(
        [sample[which]], [labels[which]], 3, **GRID, max_objs=5,
        oriented=True) for which in ([*range(5)], kept))
    assert got.heatmaps.equal(expected.heatmaps)
    assert got.masks.sum() == expected.masks.sum() == 4


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_other_dtypes(dtype):
    sample, labels = boxes(5)
    sample = sample.to(dtype)
    got = center_targets([sample], [labels.int()], 3, **GRID, max_objs=5)
    expected = center_targets([sample.float()], [labels], 3, **GRID,
                              max_objs=5)
    assert all(x.equal(y) for x, y in zip(got, expected))


def test_covered_cells_against_the_definition():
    regions, _ = boxes(4)
    regions[0, :5] = torch.nan
    covered = covered_cells([regions, regions[:0]], **dict(
        GRID, voxel_size=(0.25, 0.5), grid_size=(40, 12)))
    expected = torch.zeros(6, WIDTH, dtype=torch.bool)
    for box in regions[1:].double().tolist():
        for row in range(6):
            for col in range(WIDTH):
                dx = -5 + (col + 0.5) * 0.5 - box[0]
                dy = -3 + (row + 0.5) * 1.0 - box[1]
                u = dx * math.cos(box[6]) + dy * math.sin(box[6])
                v = dy * math.cos(box[6]) - dx * math.sin(box[6])
                expected[row, col] |= (
                    abs(u) <= box[3] / 2 and abs(v) <= box[4] / 2)
    assert 0 < expected.sum() < expected.numel()
    assert covered[0].equal(expected) and not covered[1].any()


@pytest.mark.parametrize('change, error, words', [
    (dict(boxes=[]), ValueError, 'boxes must hold'),
    (dict(boxes=[torch.zeros(2, 5)]), ValueError, r'\(N, 6 or more\).*2, 5'),
    (dict(oriented=True, boxes=[torch.zeros(2, 6)]), ValueError, '7 or more'),
    (dict(boxes=[torch.zeros(2, 7).int()]), TypeError, 'boxes.*int32'),
    (dict(labels=[torch.zeros(3).long()]), ValueError, r'labels.*\(3,\)'),
    (dict(labels=[]), ValueError, 'labels.*1 samples.*0'),
    (dict(labels=[torch.zeros(2)]), TypeError, 'labels.*float32'),
    (dict(num_classes=0), ValueError, 'num_classes.*0'),
    (dict(max_objs=0), ValueError, 'max_objs.*0'),
    (dict(min_radius=-1), ValueError, 'min_radius.*-1'),
    (dict(out_size_factor=0), ValueError, 'out_size_factor.*0'),
    (dict(voxel_size=(0, 1)), ValueError, 'voxel_size.*0'),
    (dict(gaussian_overlap=2), ValueError, 'min_overlap.*2'),
    (dict(oriented='yes'), TypeError, "oriented.*'yes'"),
])
def test_bad_arguments(change, error, words):
    args = dict(GRID, boxes=[torch.zeros(2, 7)],
                labels=[torch.zeros(2).long()], num_classes=3)
    with pytest.raises(error, match=words):
        center_targets(**dict(args, **change))
