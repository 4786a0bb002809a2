"""``GeMPillarFeatureNet`` against its own layers and mmdet3d's net."""
import copy
import math

import pytest
import torch
from mmdet3d.models.data_preprocessors.voxelize import VoxelizationByGridShape
from mmdet3d.models.voxel_encoders import PillarFeatureNet

from sigplug.models.voxel_encoders import GeMPillarFeatureNet

PILLARS, POINTS = 9, 6
COUNTS = torch.tensor([6, 1, 3, 2, 6, 5, 4, 1, 2])


def build(cls=GeMPillarFeatureNet, feat_channels=(8, ), **kwargs):
    torch.manual_seed(0)
    net = cls(
        in_channels=5,
        feat_channels=feat_channels,
        voxel_size=(0.5, 0.5, 8),
        point_cloud_range=(-10, -10, -5, 10, 10, 3),
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01),
        legacy=False,
        **kwargs)
    for layer in net.pfn_layers:
        # Statistics and offsets that are not the identity.
        torch.nn.init.uniform_(layer.norm.running_mean, -0.5, 0.5)
        torch.nn.init.uniform_(layer.norm.running_var, 0.5, 2)
        torch.nn.init.uniform_(layer.norm.bias, -0.5, 0.5)
    return net


def pillars(seed=0):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(PILLARS, POINTS, 5, generator=generator)
    mask = torch.arange(POINTS) < COUNTS[:, None]
    coors = torch.randint(0, 40, (PILLARS, 4), generator=generator)
    coors[:, 1] = 0
    return points * mask.unsqueeze(-1), COUNTS, coors, mask


def decorated(net, points, counts, coors):
    """The input that the net gives to its first layer."""
    seen = []
    handle = net.pfn_layers[0].register_forward_pre_hook(
        lambda module, args: seen.append([arg.clone() for arg in args]))
    net(points.clone(), counts, coors)
    handle.remove()
    return seen[0][0]


def activations(layer, rows):
    """Linear, batch norm by its stored statistics and ReLU, in float64."""
    norm = layer.norm
    x = rows.double() @ layer.linear.weight.double().t()
    x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    return (x * norm.weight + norm.bias).relu()


def by_hand(layer, inputs, counts, p):
    """One reduced row for each pillar, over its real points alone."""
    reduced = []
    for rows, count in zip(inputs, counts):
        c = activations(layer, rows[:count]).clamp(min=1e-6)
        reduced.append(c.amax(0) if p == math.inf else
                       c.pow(p).mean(0).pow(1 / p))
    return torch.stack(reduced)


@pytest.mark.parametrize('p', [1.0, 3.0, math.inf])
def test_equals_masked_mean_and_maximum_by_hand(p):
    points, counts, coors, _ = pillars()
    net = build(p=p, p_trainable=False).eval()
    y = net(points.clone(), counts, coors)
    assert y.shape == (PILLARS, 8)
    inputs = decorated(net, points, counts, coors)
    expected = by_hand(net.pfn_layers[0], inputs, counts, p)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)
    assert (y > 0.1).any()


@pytest.mark.parametrize('p', [1.0, math.inf])
def test_two_layers(p):
    points, counts, coors, mask = pillars()
    net = build(p=p, p_trainable=False, feat_channels=(12, 8)).eval()
    y = net(points.clone(), counts, coors)
    first, second = net.pfn_layers
    assert not first.last_vfe and second.last_vfe
    inputs = decorated(net, points, counts, coors)
    reduced = by_hand(first, inputs, counts, p)
    rows = torch.cat([
        activations(first, inputs), reduced.unsqueeze(1).expand(-1, POINTS, -1)
    ], dim=2)
    assert rows.shape[2] == 12
    expected = by_hand(second, rows, counts, p)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('feat_channels', [(8, ), (8, 8)])
def test_padding_has_no_influence(feat_channels):
    """Neither its values nor the number of padded rows."""
    points, counts, coors, mask = pillars()
    net = build(feat_channels=feat_channels).eval()
    expected = net(points.clone(), counts, coors)
    layer = net.pfn_layers[0]
    inputs = decorated(net, points, counts, coors)
    other = torch.where(mask.unsqueeze(-1), inputs, inputs + 7.0)
    real = layer(inputs, counts)
    changed = layer(other, counts)
    rows = mask if len(feat_channels) > 1 else slice(None)
    assert real[rows].equal(changed[rows])
    padded = torch.cat([points, torch.zeros(PILLARS, 3, 5)], dim=1)
    torch.testing.assert_close(net(padded, counts, coors), expected)


def test_first_of_two_layers_leaves_padding_at_zero():
    points, counts, coors, mask = pillars()
    net = build(feat_channels=(12, 8)).eval()
    y = net.pfn_layers[0](decorated(net, points, counts, coors), counts)
    assert y.shape == (PILLARS, POINTS, 12)
    assert (y[~mask] == 0).all() and (y[mask] > 0).any()


def test_statistics_are_those_of_real_points():
    points, counts, coors, mask = pillars()
    net = build().train()
    layer = net.pfn_layers[0]
    torch.nn.init.zeros_(layer.norm.running_mean)
    inputs = decorated(build().eval(), points, counts, coors)
    x = inputs[mask].double() @ layer.linear.weight.double().t()
    net(points.clone(), counts, coors)
    momentum = layer.norm.momentum
    torch.testing.assert_close(
        layer.norm.running_mean.double(), momentum * x.mean(0), rtol=1e-4,
        atol=1e-7)


def test_upstream_maximum_differs_only_by_its_padding():
    """With full pillars p = inf is mmdet3d's own net."""
    points, _, coors, _ = pillars()
    points = points + torch.randn(PILLARS, POINTS, 5)
    counts = torch.full((PILLARS, ), POINTS)
    stock = build(PillarFeatureNet, (8, 8)).eval()
    ours = build(p=math.inf, p_trainable=False, feat_channels=(8, 8)).eval()
    ours.load_state_dict(stock.state_dict(), strict=True)
    torch.testing.assert_close(
        ours(points.clone(), counts, coors),
        stock(points.clone(), counts, coors), rtol=1e-5, atol=1.1e-6)


def scan(max_points):
    """A sweep as a LiDAR has it, voxelised as mmdet3d does.

    Rings, dense by the sensor and sparse far away: most pillars hold a few
    points, some are cut off.
    """
    generator = torch.Generator().manual_seed(0)
    count = 20000
    radius = 1 + 13 * torch.rand(count, generator=generator) ** 2
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    points = torch.stack([
        radius * angle.cos(), radius * angle.sin(),
        torch.rand(count, generator=generator) ** 3 * 6 - 2,
        255 * torch.rand(count, generator=generator),
        torch.randint(0, 10, (count, ), generator=generator) / 20
    ], dim=1)
    voxelize = VoxelizationByGridShape((-10, -10, -5, 10, 10, 3), max_points,
                                       (0.5, 0.5, 8), max_voxels=2000)
    voxels, coors, counts = voxelize(points)
    assert len(voxels) > 1000 and counts.min() == 1
    assert (counts == max_points).sum() > 50
    return voxels, counts, torch.nn.functional.pad(coors, (1, 0))


def test_rises_to_the_masked_maximum_of_a_scan_with_p():
    """The stock layer's own parts, with its padding below everything.

    In float64: an intensity of 255 leaves float32 few digits of the rest.
    """
    points, counts, coors = scan(max_points=20)
    points = points.double()
    stock = build(PillarFeatureNet, (64, )).double().eval()
    inputs = decorated(stock, points, counts, coors)
    layer = stock.pfn_layers[0]
    mask = torch.arange(20) < counts[:, None]
    with torch.no_grad():
        x = layer.linear(inputs).transpose(1, 2)
        x = layer.norm(x).transpose(1, 2).relu()
        largest = x.masked_fill(~mask[..., None], -math.inf).amax(1)
        unmasked = stock(points.clone(), counts, coors)
    # Upstream itself takes the maximum over the padding too.
    padded = x.amax(1)
    torch.testing.assert_close(unmasked, padded)
    assert (padded >= largest).all() and (padded > largest + 0.1).any()
    before = torch.zeros_like(largest)
    clamped = largest.clamp(min=1e-6)
    for p in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 512.0, math.inf):
        net = build(p=p, p_trainable=False, feat_channels=(64, ))
        net.double().eval()
        net.load_state_dict(stock.state_dict(), strict=True)
        with torch.no_grad():
            y = net(points.clone(), counts, coors)
        assert (y >= before * (1 - 1e-9)).all()
        # The largest of n points has an n-th of the weight at least.
        floor = clamped * counts[:, None].double() ** (-1 / p)
        torch.testing.assert_close(y, y.clamp(floor, clamped), rtol=1e-9,
                                   atol=1e-12)
        before = y
    torch.testing.assert_close(y, clamped, rtol=1e-9, atol=1e-12)
    # As far as the default range lets a trained power go.
    net = build(p=50.0, feat_channels=(64, )).double().eval()
    found = net.load_state_dict(stock.state_dict(), strict=False)
    assert found.missing_keys == ['pfn_layers.0.gem.p']
    with torch.no_grad():
        y = net(points.clone(), counts, coors)
    assert (y >= clamped * 20 ** (-1 / 50) * (1 - 1e-9)).all()


def test_trains_on_a_scan():
    points, counts, coors = scan(max_points=20)
    net = build(feat_channels=(64, )).train()
    net(points, counts, coors).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize('feat_channels', [(8, ), (12, 8)])
def test_state_dict_keys(feat_channels):
    stock = build(PillarFeatureNet, feat_channels).state_dict()
    layers = range(len(feat_channels))
    trained = build(feat_channels=feat_channels).state_dict()
    assert set(trained) == set(stock) | {
        f'pfn_layers.{i}.gem.p' for i in layers}
    assert all(trained[key].shape == stock[key].shape for key in stock)
    assert all(trained[f'pfn_layers.{i}.gem.p'].shape == (1, )
               for i in layers)
    fixed = build(feat_channels=feat_channels, p_trainable=False)
    assert set(fixed.state_dict()) == set(stock)


def test_one_power_per_channel():
    net = build(feat_channels=(12, 8), per_channel=True).eval()
    assert [layer.gem.p.shape for layer in net.pfn_layers] == [(6, ), (8, )]
    points, counts, coors, _ = pillars()
    net = build(per_channel=True).eval()
    layer = net.pfn_layers[0]
    with torch.no_grad():
        layer.gem.p.copy_(torch.linspace(1, 8, 8))
    y = net(points.clone(), counts, coors)
    inputs = decorated(net, points, counts, coors)
    for channel, p in enumerate(layer.gem.p.tolist()):
        torch.testing.assert_close(
            y[:, channel].double(),
            by_hand(layer, inputs, counts, p)[:, channel], rtol=1e-5,
            atol=1e-6)


def test_trains():
    points, counts, coors, _ = pillars()
    net = build(feat_channels=(8, 8)).train()
    net(points.clone(), counts, coors).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize('cls', [PillarFeatureNet, GeMPillarFeatureNet])
@pytest.mark.parametrize('count', [0, 1])
def test_trains_on_hardly_any_points(cls, count):
    """An almost empty frame must not end a training, as upstream."""
    net = build(cls).train()
    points = torch.zeros(count, POINTS, 5)
    points[:, 0] = torch.randn(5)
    y = net(points, torch.ones(count).long(), torch.zeros(count, 4).long())
    assert y.shape == (count, 8)
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters()
               if p.grad is not None)
    assert all(b.isfinite().all() for b in net.buffers())


@pytest.mark.parametrize('feat_channels', [(8, ), (8, 8)])
def test_autocast(feat_channels):
    points, counts, coors, _ = pillars()
    net = build(feat_channels=feat_channels).eval()
    expected = net(points.clone(), counts, coors)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = net(points.clone(), counts, coors)
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


def test_no_pillars():
    net = build(feat_channels=(8, 8)).eval()
    y = net(torch.zeros(0, POINTS, 5), torch.zeros(0).long(),
            torch.zeros(0, 4).long())
    assert y.shape == (0, 8)


def test_arguments_are_passed_on():
    net = build(eps=1e-3, p=2.0, p_range=(1.5, 9.0))
    layer = net.pfn_layers[0]
    assert (layer.eps, layer.gem.p.item(), layer.gem.p_range) == (
        1e-3, 2.0, (1.5, 9.0))
    assert layer.norm.eps == 1e-3
    default = GeMPillarFeatureNet()
    assert default.pfn_layers[0].norm.eps == 1e-3
    assert default.pfn_layers[0].norm.momentum == 0.01
    copied = copy.deepcopy(net)
    assert copied.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize('kwargs, words', [
    (dict(mode='max'), ['mode', 'max']),
    (dict(mode='avg'), ['mode', 'avg']),
    (dict(p=0.0), ['p', '0.0']),
    (dict(eps=0.0), ['eps', '0.0']),
    (dict(p=60.0), ['p', '60.0', 'p_range']),
])
def test_bad_arguments(kwargs, words):
    with pytest.raises(ValueError) as info:
        build(**kwargs)
    assert all(word in str(info.value) for word in words)
