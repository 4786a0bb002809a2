"""Dynamic encoders against mmdet3d's, the hard form and whole detectors."""
import copy
import math
from pathlib import Path

import pytest
import torch
from mmcv.ops import DynamicScatter
from mmdet3d.models.data_preprocessors.voxelize import VoxelizationByGridShape
from mmdet3d.models.voxel_encoders import DynamicPillarFeatureNet
from mmdet3d.models.voxel_encoders.voxel_encoder import DynamicVFE
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData
from torch import nn

from sigplug.models.voxel_encoders import (
    GeMDynamicPillarFeatureNet,
    GeMDynamicVFE,
    GeMPillarFeatureNet,
)

RANGE = (-4, -4, -5, 4, 4, 3)
SIZES = {'pfn': (0.5, 0.5, 8), 'vfe': (1.0, 1.0, 2)}
NETS = {'pfn': GeMDynamicPillarFeatureNet, 'vfe': GeMDynamicVFE}
STOCK = {'pfn': DynamicPillarFeatureNet, 'vfe': DynamicVFE}
BOTH = pytest.mark.parametrize('kind', ['pfn', 'vfe'])
LAYERS = pytest.mark.parametrize('feat_channels', [(8, ), (8, 6)])
CONFIG = Path(__file__).parents[3] / 'configs/centerpoint' / (
    'centerpoint_dv-pillar04_second_secfpn_gem_1xb4-onecycle-8e_nus-mini-3d.py'
)


def build(kind='pfn', feat_channels=(8, ), cls=None, **kwargs):
    torch.manual_seed(0)
    net = (cls or NETS[kind])(
        in_channels=5,
        feat_channels=feat_channels,
        with_distance=True,
        with_cluster_center=True,
        with_voxel_center=True,
        voxel_size=SIZES[kind],
        point_cloud_range=RANGE,
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01),
        **kwargs)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            # Statistics and offsets that are not the identity.
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net


def clouds(seed=0, outside=True):
    """Points of three samples, most of them in a few pillars each."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for count in 150, 80, 110:
        points = torch.randn(count, 5, generator=generator)
        points[:, :3] *= torch.tensor([1.2, 1.2, 0.8])
        inside = ((points[:, :3] > torch.tensor(RANGE[:3])) &
                  (points[:, :3] < torch.tensor(RANGE[3:]))).all(1)
        points = points[inside]
        if outside:
            points[::7, :3] *= 20
        samples.append(points)
    return samples


def voxelize(samples, kind='pfn', max_points=-1):
    """By mmdet3d's layer: what the data preprocessor gives to the net."""
    layer = VoxelizationByGridShape(
        RANGE, max_points, SIZES[kind], max_voxels=max_points)
    found = [layer(points) for points in samples]
    if max_points == -1:
        found = [(points, coors) for points, coors in zip(samples, found)]
    coors = [nn.functional.pad(sample[1], (1, 0), value=i)
             for i, sample in enumerate(found)]
    columns = [torch.cat(column) for column in zip(*found)]
    columns[1] = torch.cat(coors)
    return columns


def emulate(scatter, points, coors):
    """``DynamicScatter`` of one sample on the CPU, as the CUDA form."""
    kept = (coors >= 0).all(1)
    cells, index = coors[kept].unique(dim=0, return_inverse=True)
    rows = [points[kept][index == i] for i in range(len(cells))]
    reduced = [
        row.mean(0) if scatter.average_points else row.amax(0) for row in rows]
    return torch.stack(reduced), cells


@pytest.fixture
def scatter_on_cpu(monkeypatch):
    monkeypatch.setattr(DynamicScatter, 'forward_single', emulate)


def copy_layers(source, target):
    """Weights by their place: the hard form's names differ."""
    for theirs, mine in zip(source, target):
        mine.linear.load_state_dict(theirs[0].state_dict())
        mine.norm.load_state_dict(theirs[1].state_dict())


@LAYERS
@BOTH
@pytest.mark.parametrize('mode, p', [('max', math.inf), ('avg', 1.0)])
@pytest.mark.parametrize('training', [False, True])
def test_equals_upstream(scatter_on_cpu, kind, feat_channels, mode, p,
                         training):
    """Its maximum and mean, with no point out of range."""
    points, coors = voxelize(clouds(outside=False), kind)
    assert (coors >= 0).all()
    stock = build(kind, feat_channels, STOCK[kind], mode=mode).train(training)
    ours = build(kind, feat_channels, p=p, p_trainable=False).train(training)
    ours.load_state_dict(stock.state_dict(), strict=True)
    expected, expected_coors = stock(points, coors)
    y, found = ours(points, coors)
    assert found.equal(expected_coors) and found.dtype == expected_coors.dtype
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for name, buffer in stock.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('feat_channels', [(8, ), (6, 8)])
@pytest.mark.parametrize('p', [1.0, 3.0, math.inf])
def test_equals_the_hard_form_with_room_for_all_points(
        p, feat_channels, training):
    """Also in the statistics, although points are padded or out of range."""
    samples = clouds()
    voxels, coors, counts = voxelize(samples, max_points=64)
    assert counts.max() > 5 and counts.max() < 64
    dynamic = build('pfn', feat_channels, p=p, p_trainable=False)
    # Its layers that are not the last have half the channels of their name.
    doubled = [2 * size for size in feat_channels[:-1]]
    hard = build('pfn', (*doubled, feat_channels[-1]), GeMPillarFeatureNet,
                 p=p, p_trainable=False, legacy=False)
    copy_layers(dynamic.pfn_layers, hard.pfn_layers)
    expected = hard.train(training)(voxels, counts, coors)
    y, found = dynamic.train(training)(*voxelize(samples))
    order = sorted(range(len(coors)), key=coors.tolist().__getitem__)
    assert found.tolist() == coors[order].tolist()
    torch.testing.assert_close(y, expected[order], rtol=1e-4, atol=1e-5)
    for theirs, mine in zip(dynamic.pfn_layers, hard.pfn_layers):
        torch.testing.assert_close(theirs[1].running_mean,
                                   mine.norm.running_mean)
        torch.testing.assert_close(theirs[1].running_var,
                                   mine.norm.running_var)


@LAYERS
@BOTH
def test_rises_to_the_maximum_with_p(kind, feat_channels):
    points, coors = voxelize(clouds(), kind)
    net = build(kind, feat_channels, p=math.inf, p_trainable=False).eval()
    largest, _ = net(points, coors)
    before = torch.zeros_like(largest)
    gaps = []
    for p in (1.0, 4.0, 16.0, 64.0, 512.0):
        other = build(kind, feat_channels, p=p, p_trainable=False).eval()
        y, _ = other(points, coors)
        gaps.append((y - largest).abs().max().item())
        if len(feat_channels) == 1:
            assert (y >= before * (1 - 1e-6)).all()
        before = y
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.2 * largest.max() and gaps[-1] < 0.02 * largest.max()


@LAYERS
@BOTH
@pytest.mark.parametrize('training', [False, True])
def test_order_of_the_points_does_not_matter(kind, feat_channels, training):
    samples = clouds()
    net = build(kind, feat_channels).train(training)
    expected, expected_coors = net(*voxelize(samples, kind))
    points, coors = voxelize(samples, kind)
    order = torch.randperm(len(points))
    y, found = net(points[order], coors[order])
    assert found.equal(expected_coors)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@LAYERS
@BOTH
@pytest.mark.parametrize('training', [False, True])
def test_points_out_of_range_have_no_influence(kind, feat_channels, training):
    """Wherever they are, also at the end of the last sample."""
    points, coors = voxelize(clouds(), kind)
    kept = (coors >= 0).all(1)
    assert not kept[0] and not kept.all()
    net = build(kind, feat_channels).train(training)
    other = copy.deepcopy(net)
    expected, expected_coors = net(points[kept], coors[kept])
    points[~kept] = math.nan
    points = torch.cat([points, points[:3] * math.nan])
    coors = torch.cat([coors, torch.tensor([[2, -1, 0, 0]] * 3).int()])
    y, found = other(points, coors)
    assert found.equal(expected_coors) and y.equal(expected)
    for name, buffer in net.named_buffers():
        assert other.get_buffer(name).equal(buffer), name


@LAYERS
@BOTH
def test_state_dict_keys(kind, feat_channels):
    stock = build(kind, feat_channels, STOCK[kind]).state_dict()
    layers = range(len(feat_channels))
    trained = build(kind, feat_channels).state_dict()
    powers = [f'{kind}_scatter.{i}.gem.p' for i in layers]
    assert set(trained) == set(stock) | set(powers)
    assert all(trained[key].shape == stock[key].shape for key in stock)
    assert all(trained[key].shape == (1, ) for key in powers)
    fixed = build(kind, feat_channels, p_trainable=False)
    assert set(fixed.state_dict()) == set(stock)
    channels = build(kind, feat_channels, per_channel=True).state_dict()
    assert [channels[key].shape for key in powers] == [
        (size, ) for size in feat_channels]


@LAYERS
@BOTH
def test_each_layer_uses_its_own_power(kind, feat_channels):
    """Per channel, in the last layer and, if there is one, the first."""
    points, coors = voxelize(clouds(), kind)
    net = build(kind, feat_channels, per_channel=True).eval()
    expected, _ = net(points, coors)
    scatters = getattr(net, f'{kind}_scatter')
    with torch.no_grad():
        scatters[-1].gem.p[2] = 9.0
    y, _ = net(points, coors)
    changed = (y != expected).any(0)
    assert changed.tolist() == [i == 2 for i in range(feat_channels[-1])]
    if len(scatters) > 1:
        with torch.no_grad():
            scatters[0].gem.p[:] = 9.0
        assert (net(points, coors)[0] != y).any(0).sum() > 1


@LAYERS
@BOTH
def test_trains(kind, feat_channels):
    net = build(kind, feat_channels).train()
    y, _ = net(*voxelize(clouds(), kind))
    y.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@BOTH
@pytest.mark.parametrize('count', [0, 1])
def test_trains_on_hardly_any_points(kind, count):
    """An almost empty frame must not end a training."""
    net = build(kind, (8, 6)).train()
    points = torch.zeros(3, 5)
    coors = torch.tensor([[0, 0, 0, 0]] * count + [[0, -1, -1, -1]] *
                         (3 - count))
    y, found = net(points, coors)
    assert y.shape == (count, 6) and found.tolist() == [[0, 0, 0, 0]] * count
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters()
               if p.grad is not None)
    assert all(b.isfinite().all() for b in net.buffers())


@LAYERS
@BOTH
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(kind, feat_channels, dtype):
    points, coors = voxelize(clouds(), kind)
    net = build(kind, feat_channels).train()
    with torch.autocast('cpu', dtype=dtype):
        y, _ = net(points, coors)
    y.float().square().sum().backward()
    assert y.isfinite().all() and (y > 0.1).any()
    assert all(p.grad.isfinite().all() and p.grad.any()
               for p in net.parameters())
    net.eval()
    expected, _ = net(points, coors)
    with torch.autocast('cpu', dtype=dtype):
        y, _ = net(points, coors)
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


class Fusion(nn.Module):
    """Adds to the feature of each point its own x coordinate."""

    def forward(self, img_feats, points, point_feats, img_metas):
        assert [len(sample) for sample in points] == self.sizes
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
    net.fusion_layer.sizes = [
        int((kept & (coors[:, 0] == i)).sum()) for i in range(3)]
    # As DynamicMVXFasterRCNN calls it.
    y = net(points, coors, samples, 2.0, [{}])
    expected = plain + 2 * points[:, :1]
    assert y[kept].equal(expected[kept]) and (y[~kept] == 0).all()


@BOTH
def test_arguments_are_passed_on(kind):
    net = build(kind, eps=1e-3, p=2.0, p_range=(1.5, 9.0))
    scatter, = getattr(net, f'{kind}_scatter')
    assert (scatter.eps, scatter.gem.p.item(), scatter.gem.p_range) == (
        1e-3, 2.0, (1.5, 9.0))
    assert getattr(net, f'{kind}_layers')[0][1].eps == 1e-3


@BOTH
@pytest.mark.parametrize('kwargs, words', [
    (dict(mode='max'), ['mode', 'max', 'GeMDynamic']),
    (dict(p=0.0), ['p', '0.0']),
    (dict(eps=0.0), ['eps', '0.0']),
    (dict(p=60.0), ['p', '60.0', 'p_range']),
])
def test_bad_arguments(kind, kwargs, words):
    with pytest.raises(ValueError) as info:
        build(kind, **kwargs)
    assert all(word in str(info.value) for word in words)


def small_detector():
    """The sample config on a quarter of its range."""
    import mmdet3d.models  # noqa: F401
    cfg = Config.fromfile(CONFIG)
    area = [-12.8, -12.8, -5.0, 12.8, 12.8, 3.0]
    model = cfg.model
    model.data_preprocessor.voxel_layer.point_cloud_range = area
    model.pts_voxel_encoder.point_cloud_range = area
    model.pts_middle_encoder.output_shape = (64, 64)
    model.pts_bbox_head.bbox_coder.pc_range = area[:2]
    model.train_cfg.pts.point_cloud_range = area
    model.train_cfg.pts.grid_size = [64, 64, 1]
    model.test_cfg.pts.pc_range = area[:2]
    return MODELS.build(model), cfg


def scene(seed):
    """Boxes full of points, a ground, and points out of range."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.zeros(4, 9)
    boxes[:, :2] = torch.rand(4, 2, generator=generator) * 20 - 10
    boxes[:, 2] = -1
    boxes[:, 3:6] = torch.tensor([4.0, 2.0, 1.5])
    ground = torch.rand(2000, 4, generator=generator) * 30 - 15
    ground[:, 2:] = -1.5
    filled = torch.rand(4, 300, 4, generator=generator) - 0.5
    filled[..., :3] = (filled[..., :3] * boxes[:, None, 3:6] +
                       boxes[:, None, :3])
    sample = Det3DDataSample(
        metainfo=dict(box_type_3d=LiDARInstance3DBoxes))
    sample.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(
            boxes, box_dim=9, origin=(0.5, 0.5, 0.5)),
        labels_3d=torch.zeros(4).long())
    return torch.cat([ground, filled.flatten(0, 1)]), sample


def test_detector_trains_and_predicts():
    """On the CPU, with points that fall out of the range of pillars."""
    model, cfg = small_detector()
    power = model.pts_voxel_encoder.pfn_scatter[0].gem.p
    initial = power.item()
    points, samples = zip(*(scene(seed) for seed in range(2)))
    batch = dict(
        inputs=dict(points=list(points)), data_samples=list(samples))
    optim = build_optim_wrapper(model, cfg.optim_wrapper)
    model.train()
    losses = []
    for _ in range(25):
        data = model.data_preprocessor(copy.deepcopy(batch), training=True)
        coors = data['inputs']['voxels']['coors']
        assert (coors < 0).any() and 'num_points' not in data['inputs'][
            'voxels']
        found = model(**data, mode='loss')
        loss, values = model.parse_losses(found)
        assert loss.isfinite()
        losses.append(values['loss'].item())
        optim.update_params(loss)
    assert losses[-1] < 0.5 * losses[0]
    assert power.item() != initial
    model.eval()
    with torch.no_grad():
        results = model.test_step(copy.deepcopy(batch))
    assert len(results) == 2
    for result in results:
        boxes = result.pred_instances_3d.bboxes_3d.tensor
        assert boxes.shape[1] == 9 and boxes.isfinite().all()


@BOTH
@pytest.mark.parametrize('count', [4, 6])
def test_one_row_of_features_and_of_coors_for_each_point(kind, count):
    coors = torch.zeros(5, 4, dtype=torch.int32)
    words = f'features and coors .*{count} and 5'
    with pytest.raises(ValueError, match=words):
        build(kind)(torch.rand(count, 5), coors)
