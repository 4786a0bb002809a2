"""Voxels against mmcv's deterministic operator, bit for bit."""
import math

import pytest
import torch
from mmcv.ops import Voxelization

from sigplug.ops import hard_voxelize

RANGE = (-4.0, -2.0, -1.0, 4.0, 2.0, 1.0)
SIZES = [(0.5, 0.5, 2.0), (0.3, 0.7, 0.4), (8.0, 4.0, 2.0)]


@pytest.fixture(scope='module', autouse=True)
def backend():
    """There is one form."""


def stock(points, size, max_points, max_voxels):
    return Voxelization(size, RANGE, max_points, max_voxels)(points)


def cloud(n, channels=4, dtype=torch.float32):
    """Inside and outside, many on the borders of cells."""
    x = 1.3 * (2 * torch.rand(n, channels) - 1) * torch.tensor(
        [4.0, 2.0, 1.0] + [1.0] * (channels - 3))
    on_grid = torch.rand(n, 1) < 0.3
    x = torch.where(on_grid, (x / 0.5).round() * 0.5, x)
    special = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 4.0, -4.0])
    odd = torch.rand(n, channels) < 0.02
    x[odd] = special[torch.randint(0, 6, (int(odd.sum()), ))]
    return x.to(dtype)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_equals_mmcv(seed, size):
    torch.manual_seed(seed)
    for n in (0, 1, 7, 100, 1500):
        points = cloud(n, channels=3 + seed % 4,
                       dtype=torch.float64 if seed % 5 == 4 else
                       torch.float32)
        for max_points, max_voxels in ((5, 4000), (1, 30), (40, 3)):
            expected = stock(points, size, max_points, max_voxels)
            got = hard_voxelize(points, size, RANGE, max_points, max_voxels)
            for ours, theirs in zip(got, expected):
                assert ours.dtype == theirs.dtype
                assert ours.shape == theirs.shape
                # NaN features are features.
                assert ours.equal(theirs) or torch.equal(
                    ours.nan_to_num(7.5), theirs.nan_to_num(7.5))


@pytest.mark.parametrize('channels', [3, 5])
def test_a_batch_is_its_samples(channels):
    batch = [cloud(n, channels) for n in (50, 0, 1, 400)]
    batch.append(torch.full((3, channels), 100.0))
    voxels, coordinates, counts = hard_voxelize(batch, SIZES[0], RANGE, 3, 60)
    each = [stock(points, SIZES[0], 3, 60) for points in batch]
    assert voxels.nan_to_num(7.5).equal(
        torch.cat([v for v, _, _ in each]).nan_to_num(7.5))
    assert counts.equal(torch.cat([n for _, _, n in each]))
    assert coordinates.equal(torch.cat([
        torch.nn.functional.pad(c, (1, 0), value=i)
        for i, (_, c, _) in enumerate(each)]))


def test_float16_points():
    """Their cells are computed in float32, as mmcv does."""
    points = cloud(500, dtype=torch.float16)
    got = hard_voxelize(points, SIZES[1], RANGE, 5, 100)
    expected = hard_voxelize(points.float(), SIZES[1], RANGE, 5, 100)
    assert got[0].dtype == torch.float16
    assert got[0].float().nan_to_num(7.5).equal(expected[0].nan_to_num(7.5))
    assert got[1].equal(expected[1]) and got[2].equal(expected[2])


@pytest.mark.parametrize('change, error, match', [
    (dict(points=torch.zeros(3, 2)), ValueError, r'points.*\(3, 2\)'),
    (dict(points=torch.zeros(3, 4).long()), TypeError, 'points.*int64'),
    (dict(points=[]), ValueError, 'points.*empty'),
    (dict(voxel_size=(0.5, 0.5)), ValueError, 'voxel_size must be 3 numbers'),
    (dict(voxel_size=(99.0, 0.5, 0.5)), ValueError, 'voxel_size.*grid'),
    (dict(max_points=0), ValueError, 'max_points.*0'),
    (dict(max_voxels=-1), ValueError, 'max_voxels.*-1'),
])
def test_bad_arguments(change, error, match):
    good = dict(points=torch.zeros(3, 4), voxel_size=SIZES[0],
                point_cloud_range=RANGE, max_points=5, max_voxels=9)
    with pytest.raises(error, match=match):
        hard_voxelize(**good | change)
