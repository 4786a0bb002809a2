"""Voxels and features, against sigplug.ops and mmdet3d's encoder."""
import numpy as np
import pytest
import torch
from mmdet3d.models import PillarFeatureNet

from sigplug.deploy import pillars
from sigplug.ops import hard_voxelize

RANGE = [-8.0, -6.0, -2.0, 8.0, 6.0, 2.0]


def cloud(n=2000):
    """Points beyond the range as well, many in the cells near the middle."""
    x = np.random.default_rng(0).normal(size=(n, 5)) * [4, 3, 1, 9, 0.1]
    return x.astype(np.float32)


def voxels_of(size, max_points, max_voxels):
    return dict(voxel_size=size, point_cloud_range=RANGE,
                max_points=max_points, max_voxels=max_voxels)


@pytest.mark.parametrize('size, limits', [
    # All points and voxels fit; both are cut; cells along z, as well.
    ([0.5, 0.5, 4], (100, 10000)), ([0.5, 0.5, 4], (3, 200)),
    ([0.4, 0.3, 0.5], (2, 500))])
def test_voxels_are_those_of_the_operation(size, limits):
    points = cloud()
    found = pillars.voxelize(points, voxels_of(size, *limits))
    wanted = hard_voxelize(torch.from_numpy(points), size, RANGE, *limits)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


@pytest.mark.parametrize('legacy', [True, False])
@pytest.mark.parametrize('parts', [
    (True, True, True), (True, False, False), (False, True, True)])
def test_features_are_those_of_mmdet3d(legacy, parts):
    names = ('with_cluster_center', 'with_voxel_center', 'with_distance')
    options = dict(zip(names, parts), legacy=legacy)
    size = [0.5, 0.5, 4]
    net = PillarFeatureNet(5, [8], voxel_size=size, point_cloud_range=RANGE,
                           **options)
    seen = []
    net.pfn_layers[0].register_forward_pre_hook(
        lambda module, args: seen.append(args[0]))
    voxels, cells, counts = pillars.voxelize(
        cloud(), voxels_of(size, 4, 1000))
    net(torch.from_numpy(voxels.copy()), torch.from_numpy(counts),
        torch.from_numpy(np.pad(cells, ((0, 0), (1, 0)))))
    found = pillars.decorate(voxels, cells, counts, dict(
        options, voxel_size=size, offset=[-7.75, -5.75, 0.0]))
    assert found.dtype == np.float32
    # Coordinates of up to 8 m in float32.
    np.testing.assert_allclose(found, seen[0].numpy(), rtol=0, atol=4e-6)
