"""The three encoders against float64 loops and mmdet3d's own encoders."""
import math

import pytest
import torch
from mmcv.ops import DynamicScatter
from mmdet3d.models.data_preprocessors.voxelize import VoxelizationByGridShape
from mmdet3d.models.voxel_encoders import (
    DynamicPillarFeatureNet,
    PillarFeatureNet,
)
from mmdet3d.models.voxel_encoders.voxel_encoder import DynamicVFE
from test_ops.pooling import reference
from torch import nn

from sigplug.models import SegmentGeM
from sigplug.models.voxel_encoders import (
    GeMDynamicPillarFeatureNet,
    GeMDynamicVFE,
    GeMPillarFeatureNet,
)

LOW, HIGH = (-4.0, -4.0, -5.0), (4.0, 4.0, 3.0)
SIZES = dict(hard=(0.5, 0.5, 8), pfn=(0.5, 0.5, 8), vfe=(1.0, 1.0, 2))
NETS = dict(hard=(GeMPillarFeatureNet, PillarFeatureNet),
            pfn=(GeMDynamicPillarFeatureNet, DynamicPillarFeatureNet),
            vfe=(GeMDynamicVFE, DynamicVFE))
ALL = pytest.mark.parametrize('kind', NETS)
LAYERS = pytest.mark.parametrize('feat_channels', [(8, ), (8, 6)])
TRAINING = pytest.mark.parametrize('training', [False, True])


def build(kind, feat_channels=(8, ), stock=False, **kwargs):
    torch.manual_seed(0)
    if kind == 'hard':
        kwargs = dict(legacy=False, **kwargs)
    net = NETS[kind][stock](
        in_channels=5,
        feat_channels=feat_channels,
        with_distance=True,
        with_cluster_center=True,
        with_voxel_center=True,
        voxel_size=SIZES[kind],
        point_cloud_range=(*LOW, *HIGH),
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.1),
        **kwargs)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            # Statistics and offsets that are not the identity.
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net


def layers_of(net):
    """Linear layer and norm of each layer."""
    layers = getattr(net, 'vfe_layers', None) or net.pfn_layers
    return [layer[:2] if isinstance(layer, nn.Sequential) else
            (layer.linear, layer.norm) for layer in layers]


def clouds(outside=True):
    """Points of three samples, most of them in a few pillars each."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for count in 150, 80, 110:
        points = torch.randn(count, 5, generator=generator)
        points[:, :3] *= torch.tensor([1.2, 1.2, 0.8])
        inside = ((points[:, :3] > torch.tensor(LOW)) &
                  (points[:, :3] < torch.tensor(HIGH))).all(1)
        points = points[inside]
        if outside:
            points[::7, :3] *= 20
        samples.append(points)
    return samples


def voxelize(samples, kind, max_points=64):
    """Return what the data preprocessor gives to the encoder."""
    most = max_points if kind == 'hard' else -1
    layer = VoxelizationByGridShape(
        (*LOW, *HIGH), most, SIZES[kind], max_voxels=most)
    inputs = []
    for i, points in enumerate(samples):
        found = layer(points)
        points, coors, *counts = (
            found if kind == 'hard' else (points, found))
        coors = nn.functional.pad(coors, (1, 0), value=i)
        inputs.append((points, *counts, coors))
    return [torch.cat(column) for column in zip(*inputs)]


def encode(kind, net, inputs):
    """Features and coordinates of the cells in lexicographic order."""
    if kind != 'hard':
        y, coors = net(*inputs)
        return y, coors.tolist()
    points, counts, coors = inputs
    coors = coors.tolist()
    order = sorted(range(len(coors)), key=coors.__getitem__)
    # Upstream writes into its input.
    y = net(points.clone(), counts, inputs[2])
    return y[order], sorted(coors)


def by_loops(net, points, coors, size, p, training):
    """Encode in float64, cell by cell.

    Returns the features, the cells, and the statistics of each batch norm.
    """
    cells = sorted({tuple(c) for c in coors.tolist() if min(c) >= 0})
    parts, statistics = [], []
    for cell in cells:
        own = points[(coors == torch.tensor(cell)).all(1)].double()
        centre = [low + (at + 0.5) * width for low, at, width in zip(
            LOW, cell[:0:-1], size)]
        xyz = own[:, :3]
        parts.append(torch.cat([
            own, xyz - xyz.mean(0), xyz - torch.tensor(centre),
            xyz.norm(dim=1, keepdim=True)], 1))
    counts = [len(part) for part in parts]
    for linear, norm in layers_of(net):
        x = torch.cat(parts) @ linear.weight.detach().double().t()
        mean, var = norm.running_mean.double(), norm.running_var.double()
        if training:
            mean, var = x.mean(0), x.var(0, unbiased=False)
        statistics.append((x.mean(0), x.var(0)))
        x = (x - mean) / (var + norm.eps).sqrt()
        x = (x * norm.weight.detach() + norm.bias.detach()).relu()
        parts = x.split(counts)
        y = torch.stack([reference(part, p, 0) for part in parts])
        parts = [torch.cat([part, row.expand(len(part), -1)], 1)
                 for part, row in zip(parts, y)]
    return y, [list(cell) for cell in cells], statistics


@TRAINING
@pytest.mark.parametrize('p', [1.0, 3.0, math.inf])
@LAYERS
@ALL
def test_equals_loops_over_the_points(kind, feat_channels, p, training):
    """Dynamic and hard alike, with points out of range."""
    samples = clouds()
    net = build(kind, feat_channels, p=p, p_trainable=False).train(training)
    before = [(norm.running_mean.double(), norm.running_var.double())
              for _, norm in layers_of(net)]
    expected, cells, statistics = by_loops(
        net, *voxelize(samples, 'vfe' if kind == 'vfe' else 'pfn'),
        SIZES[kind], p, training)
    y, coors = encode(kind, net, voxelize(samples, kind))
    assert coors == cells and y.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    for (_, norm), old, new in zip(layers_of(net), before, statistics):
        for name, a, b in zip(('running_mean', 'running_var'), old, new):
            torch.testing.assert_close(
                getattr(norm, name).double(),
                0.9 * a + 0.1 * b if training else a, rtol=1e-5, atol=1e-6)


def scatter_one_sample(scatter, points, coors):
    """``DynamicScatter`` on the CPU, as the form for CUDA."""
    cells, index = coors.unique(dim=0, return_inverse=True)
    rows = [points[index == i] for i in range(len(cells))]
    return torch.stack([
        row.mean(0) if scatter.average_points else row.amax(0)
        for row in rows]), cells


@TRAINING
@pytest.mark.parametrize('mode, p', [('max', math.inf), ('avg', 1.0)])
@LAYERS
@ALL
def test_equals_upstream(monkeypatch, kind, feat_channels, mode, p, training):
    """Its maximum and mean, where no point is out of range or padded."""
    monkeypatch.setattr(DynamicScatter, 'forward_single', scatter_one_sample)
    inputs = voxelize(clouds(outside=False), kind)
    if kind == 'hard':
        full = torch.randn(9, 6, 5), torch.full((9, ), 6)
        inputs = *full, torch.arange(36).view(9, 4)
    stock = build(kind, feat_channels, True, mode=mode).train(training)
    ours = build(kind, feat_channels, p=p, p_trainable=False).train(training)
    ours.load_state_dict(stock.state_dict(), strict=True)
    expected, cells = encode(kind, stock, inputs)
    y, coors = encode(kind, ours, inputs)
    assert coors == cells
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for name, buffer in stock.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer)


@LAYERS
@ALL
def test_state_dict(kind, feat_channels):
    names = [f'pfn_layers.{i}.gem.p' if kind == 'hard' else
             f'{kind}_scatter.{i}.gem.p' for i in range(len(feat_channels))]
    stock = build(kind, feat_channels, True).state_dict()
    trained = build(kind, feat_channels)
    found = trained.load_state_dict(stock, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (names, [])
    assert [trained.state_dict()[name].shape for name in names] == [
        (1, )] * len(names)
    fixed = build(kind, feat_channels, p_trainable=False)
    fixed.load_state_dict(stock, strict=True)
    channels = build(kind, feat_channels, per_channel=True).state_dict()
    assert [channels[name].shape for name in names] == [
        linear.weight.shape[:1] for linear, _ in layers_of(trained)]


@pytest.mark.parametrize('dtype', [None, torch.bfloat16, torch.float16])
@LAYERS
@ALL
def test_trains_also_under_autocast(kind, feat_channels, dtype):
    inputs = voxelize(clouds(), kind)
    net = build(kind, feat_channels).train()
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
        y, _ = encode(kind, net, inputs)
    y.float().square().sum().backward()
    for name, param in net.named_parameters():
        assert param.grad.isfinite().all() and param.grad.any(), name
    if dtype:
        expected, _ = encode(kind, net.eval(), inputs)
        with torch.autocast('cpu', dtype=dtype):
            y, _ = encode(kind, net, inputs)
        torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize('count', [0, 1])
@ALL
def test_trains_on_hardly_any_points(kind, count):
    """An almost empty frame must not end a training."""
    net = build(kind, (8, 6)).train()
    coors = torch.zeros(count, 4, dtype=torch.long)
    points = torch.rand(count, 5)
    inputs = (points, coors) if kind != 'hard' else (
        nn.functional.pad(points[:, None], (0, 0, 0, 2)),
        torch.ones(count).long(), coors)
    y, found = encode(kind, net, inputs)
    assert y.shape == (count, 6) and found == [[0, 0, 0, 0]] * count
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters()
               if p.grad is not None)
    assert all(b.isfinite().all() for b in net.buffers())


def test_a_pillar_without_points_gives_zeros():
    """As ``Det3DDataPreprocessor`` makes them for an empty sample."""
    y = build('hard').eval()(
        torch.zeros(2, 3, 5), torch.tensor([2, 0]), torch.zeros(2, 4).long())
    assert y[0].any() and not y[1].any()


class Fusion(nn.Module):
    """Add to the feature of each point its own x coordinate."""

    def forward(self, img_feats, points, point_feats, img_metas):
        self.sizes = [len(sample) for sample in points]
        return point_feats + torch.cat(list(points))[:, :1] * img_feats


def test_fusion_layer_meets_the_points_of_its_features():
    samples = clouds()
    points, coors = voxelize(samples, 'vfe')
    kept = (coors >= 0).all(1)
    net = build('vfe', p=1.0, return_point_feats=True).eval()
    plain = net(points, coors)
    assert plain.shape == (len(points), 8)
    assert (plain[~kept] == 0).all() and plain[kept].any(1).all()
    net.fusion_layer = Fusion()
    # As DynamicMVXFasterRCNN calls it.
    y = net(points, coors, samples, 2.0, [{}])
    expected = plain + 2 * points[:, :1]
    assert y[kept].equal(expected[kept]) and (y[~kept] == 0).all()
    assert net.fusion_layer.sizes == [
        int((kept & (coors[:, 0] == i)).sum()) for i in range(3)]


@ALL
def test_arguments(kind):
    net = build(kind, eps=1e-3, p=2.0, p_range=(1.5, 9.0))
    gem, = (x for x in net.modules() if isinstance(x, SegmentGeM))
    assert (gem.eps, gem.p.item(), gem.p_range) == (1e-3, 2.0, (1.5, 9.0))
    assert layers_of(net)[0][1].momentum == 0.1 and 'p=[2.0]' in repr(net)
    with pytest.raises(ValueError, match="mode='max' .*GeM.*p=1 is the mean"):
        build(kind, mode='max')
    inputs = voxelize([points[:, :4] for points in clouds()], kind)
    with pytest.raises(ValueError, match='in_channels .*11, .*takes 12'):
        net(*inputs)
