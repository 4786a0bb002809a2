"""Voxels against mmcv's deterministic operator, bit for bit."""
import math
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from mmcv.ops import Voxelization

from sigplug.ops import hard_voxelize

RANGE = (-4.0, -2.0, -1.0, 4.0, 2.0, 1.0)
SIZES = [(0.5, 0.5, 2.0), (0.3, 0.7, 0.4), (8.0, 4.0, 2.0)]
# Of the points of a voxel, and of the voxels.
LIMITS = [(5, 4000), (1, 30), (40, 3)]


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


# NaN features are features.
assert_equal = partial(
    torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


def check(points, size, max_points=5, max_voxels=4000, grid=RANGE):
    expected = Voxelization(size, grid, max_points, max_voxels)(points)
    got = hard_voxelize(points, size, grid, max_points, max_voxels)
    assert_equal(got, expected)
    return got


@pytest.mark.parametrize('seeds', [
    range(4), pytest.param(range(68), marks=pytest.mark.slow)])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_equals_mmcv(size, seeds):
    for seed in seeds:
        torch.manual_seed(seed)
        dtype = (torch.float32, torch.float64, torch.float16)[seed % 3]
        for n in (0, 1, 7, 100, 2000):
            points = cloud(n, channels=3 + seed % 4, dtype=dtype)
            for limits in LIMITS:
                check(points, size, *limits)


ADVERSARIAL = dict(
    nan=torch.full((20, 4), math.nan),
    one_cell=torch.full((300, 4), 0.3),
    outside=torch.full((20, 4), 99.0),
    huge=torch.tensor([[1e30, 0, 0, 1], [0, -3e38, 0, 1], [0, 0, 0, 1]]),
    tiny=torch.tensor([[1e-40, -1e-40, 0, 0], [-1e-40, 0, 0, 0]]),
    borders=torch.cartesian_prod(*(torch.tensor([
        low, low - 1e-6, low + 1e-6, -0.0, high - 1e-6, high])
        for low, high in zip(RANGE[:3], RANGE[3:]))),
    each_cell_once=torch.cartesian_prod(
        *(torch.arange(low + 0.25, high, 0.5)
          for low, high in zip(RANGE[:3], RANGE[3:]))),
    falling=torch.linspace(3.9, -3.9, 50).unsqueeze(1).repeat(1, 3))


@pytest.mark.parametrize('name', ADVERSARIAL)
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_adversarial_clouds_equal_mmcvs(name, size):
    for limits in LIMITS:
        check(ADVERSARIAL[name].clone(), size, *limits)


FRAMES = sorted(Path(
    os.environ.get('SIGPLUG_REAL_FRAMES')
    or REPOSITORY.parent / 'shared/real_frames').glob('kitti/*.bin'))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_equals_the_cpu_and_mmcv_on_cuda(size):
    for seed in range(20):
        torch.manual_seed(seed)
        points = cloud(2000)
        for limits in LIMITS:
            on_cpu = hard_voxelize(points, size, RANGE, *limits)
            # There mmcv takes the cell of a NaN for the first.
            clean = points.nan_to_num(9.0).cuda()
            stock = Voxelization(size, RANGE, *limits)(clean)
            for x, ours, found, theirs in zip(
                    on_cpu, hard_voxelize(points.cuda(), size, RANGE, *limits),
                    hard_voxelize(clean, size, RANGE, *limits), stock,
                    strict=True):
                assert_equal(ours.cpu(), x)
                assert found.equal(theirs)


@pytest.mark.skipif(not FRAMES, reason='no real frames: SIGPLUG_REAL_FRAMES')
@pytest.mark.parametrize('size, max_points, max_voxels', [
    ((0.16, 0.16, 4.0), 32, 16000), ((0.2, 0.2, 8.0), 20, 30000),
    ((0.1, 0.1, 0.4), 10, 90000)], ids=str)
def test_real_frames_equal_mmcvs(size, max_points, max_voxels):
    grid = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    frames = [torch.from_numpy(np.fromfile(path, np.float32).reshape(-1, 4))
              for path in FRAMES]
    each = [check(points, size, max_points, max_voxels, grid)
            for points in frames]
    assert all(len(voxels) > 1000 for voxels, _, _ in each)
    voxels, _, counts = hard_voxelize(
        frames, size, grid, max_points, max_voxels)
    assert voxels.equal(torch.cat([found[0] for found in each]))
    assert counts.equal(torch.cat([found[2] for found in each]))


@pytest.mark.parametrize('channels', [3, 5])
def test_a_batch_is_its_samples(channels):
    batch = [cloud(n, channels) for n in (50, 0, 1, 400)]
    batch.append(torch.full((3, channels), 100.0))
    each = []
    for i, points in enumerate(batch):
        voxels, coordinates, counts = check(points, SIZES[0], 3, 60)
        each.append((voxels, F.pad(coordinates, (1, 0), value=i), counts))
    assert_equal(hard_voxelize(batch, SIZES[0], RANGE, 3, 60),
                 tuple(map(torch.cat, zip(*each))))


@pytest.mark.parametrize('max_voxels', [7, 60])
def test_padded_to_a_known_shape(max_voxels):
    batch = [cloud(n) for n in (50, 0, 400)]
    arguments = SIZES[0], RANGE, 3, max_voxels
    padded = hard_voxelize(batch, *arguments, pad=True)
    sample, counts = padded[1][:, 0], padded[2]
    assert_equal([x[sample >= 0] for x in padded],
                 [*hard_voxelize(batch, *arguments)])
    assert sample.view(3, -1).amax(1).tolist() == [0, -1, 2]
    rest = sample < 0
    assert (padded[1][rest] == -1).all()
    assert not padded[0][rest].any() and not counts[rest].any()
    # Nothing is read, so nothing waits: here there is nothing to read.
    nowhere = hard_voxelize([x.to('meta') for x in batch], *arguments,
                            pad=True)
    assert [x.shape for x in nowhere] == [x.shape for x in padded]


@pytest.mark.parametrize('change, error, match', [
    (dict(points=torch.zeros(3, 2)), ValueError, r'points.*\(3, 2\)'),
    (dict(points=torch.zeros(3, 4).long()), TypeError, 'points.*int64'),
    (dict(points=[]), ValueError, 'points.*empty'),
    (dict(voxel_size=(0.5, 0.5)), ValueError, 'voxel_size must be 3 numbers'),
    (dict(voxel_size=(99.0, 0.5, 0.5)), ValueError, 'voxel_size.*grid'),
    (dict(max_points=0), ValueError, 'max_points.*0'),
    (dict(max_voxels=-1), ValueError, 'max_voxels.*-1'),
    (dict(pad=1), TypeError, 'pad.*1'),
])
def test_bad_arguments(change, error, match):
    good = dict(points=torch.zeros(3, 4), voxel_size=SIZES[0],
                point_cloud_range=RANGE, max_points=5, max_voxels=9)
    with pytest.raises(error, match=match):
        hard_voxelize(**good | change)
