"""The scatter of pillars against mmdet3d's."""
import pytest
import torch
from mmdet3d.models.middle_encoders import PointPillarsScatter as Stock

from sigplug.models.voxel_encoders import PointPillarsScatter

from ..test_dense_heads.center_heads import NoReading

NY, NX, CHANNELS = 5, 7, 3


def pillars(*counts, dtype=torch.float32):
    """Features and cells of random pillars, of each sample some."""
    coors = []
    for sample, count in enumerate(counts):
        cell = torch.randperm(NY * NX)[:count]
        coors.append(torch.stack((
            torch.full_like(cell, sample), torch.zeros_like(cell),
            cell // NX, cell % NX), dim=1))
    coors = torch.cat(coors).int()
    return torch.randn(len(coors), CHANNELS, dtype=dtype), coors


@pytest.mark.parametrize('counts', [(9, 35, 1), (0, 4), (6, )])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('channels_last', [False, True])
def test_equals_mmdet3ds(counts, dtype, channels_last):
    features, coors = pillars(*counts, dtype=dtype)
    size = coors[-1, 0] + 1
    found = []
    for scatter in (Stock(CHANNELS, (NY, NX)), PointPillarsScatter(
            CHANNELS, (NY, NX), channels_last=channels_last)):
        x = features.clone().requires_grad_()
        canvas = scatter(x, coors, size)
        weight = torch.arange(canvas.numel()).view_as(canvas) % 64
        (canvas * weight).sum().backward()
        found.append((canvas, x.grad))
    (canvas, grad), (ours, our_grad) = found
    assert ours.shape == (len(counts), CHANNELS, NY, NX)
    assert ours.equal(canvas) and ours.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last if
                              channels_last else torch.contiguous_format)
    assert our_grad.equal(grad)


def test_does_not_wait():
    features, coors = pillars(4, 8)
    with NoReading():
        PointPillarsScatter(CHANNELS, (NY, NX))(features, coors, 2)
