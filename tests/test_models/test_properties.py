"""Random modules and heads: against the formulas, and the stock heads.

``make fuzz`` runs these tests with many more examples than ``make test``.
"""
import copy

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from mmdet.models.dense_heads import CenterNetHead as StockNetHead
from mmdet3d.models.dense_heads import CenterHead as StockHead
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from test_ops import references, strategies
from test_ops.conftest import backend  # noqa: F401
from test_ops.references import LD, assert_within, exact
from torch import nn

from sigplug.models import (
    GaussianFocalLossWithLogits,
    GeM,
    GeMContext,
    GeMNeck,
    GeMPyramid,
)
from sigplug.models.dense_heads import CenterHead, CenterNetHead
from sigplug.models.voxel_encoders import (
    GeMDynamicPillarFeatureNet,
    GeMPillarFeatureNet,
)
from sigplug.models.voxel_encoders.gem_dynamic_scatter import (
    Cells,
    CellScatter,
    GeMDynamicScatter,
)

GRID = (0.5, 0.5, 8), (-10, -10, -5, 10, 10, 3)
SEEDS = st.integers(0, 2**31 - 1)
# Formulas in float64 by other operations than the modules': roundings of a
# few hundred terms.
CLOSE = {torch.float32: dict(rtol=2e-5, atol=2e-6),
         torch.float64: dict(rtol=1e-10, atol=1e-12)}


def assert_pooled(y, dx, x, p, sets, eps, upstream=1.0):
    expected = references.pooled(x, p, sets, eps, upstream)
    assert_within(y, expected.y, expected.y_allowed)
    assert_within(dx, expected.dx, expected.dx_allowed)
    return expected


def draw_features(data, eps, shape, dtype):
    return data.draw(strategies.tensors(
        shape, dtype, strategies.features(dtype, eps)))


def draw_powers(data, count):
    return data.draw(st.lists(
        strategies.powers(infinite=False).map(lambda p: min(p, 50.0)),
        min_size=count, max_size=count))


def held_power(module, p):
    """What the module computes with; one fixed value is a float."""
    held = module.p.detach()
    if not module.p_trainable and len(set(held.tolist())) == 1:
        return held if len(p) > 1 else float(held)
    return held


# --- layers and necks -----------------------------------------------------


@given(st.data())
def test_windowed_gem(data):
    dtype = data.draw(strategies.DTYPES)
    clamp = data.draw(st.booleans())
    spatial = data.draw(st.integers(1, 3))
    shape = data.draw(strategies.shapes(spatial + 2, spatial + 2, 1))
    x = draw_features(data, 1e-6 if clamp else None, shape, dtype)
    extent = shape[2:]
    kernel = tuple(data.draw(st.none() | st.integers(1, n)) for n in extent)
    size = tuple(k or n for k, n in zip(kernel, extent))
    stride = data.draw(st.none() | st.tuples(*[
        st.none() | st.integers(1, 4)] * spatial))
    step = tuple(s or k for s, k in zip(stride or size, size))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in size)
    per_channel = data.draw(st.booleans())
    p = draw_powers(data, shape[1] if per_channel else 1)
    module = GeM(
        p, clamp=clamp, p_trainable=data.draw(st.booleans()),
        channels=shape[1] if per_channel else None,
        kernel_size=kernel, stride=stride, padding=padding)
    x.requires_grad_()
    y = module(x)
    dx, = torch.autograd.grad(y, x, torch.ones_like(y))
    sets = references.window_sets(shape, size, step, padding, per_channel)
    assert y.dtype == dtype
    assert_pooled(y, dx, x, held_power(module, p), sets,
                  1e-6 if clamp else None)


@given(st.data())
def test_neck_of_levels_and_strips(data):
    dtype = data.draw(strategies.DTYPES)
    channels = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    spatial = data.draw(st.integers(1, 3))
    bins = tuple(data.draw(st.lists(
        st.integers(1, 5), min_size=1, max_size=2)))
    kind = data.draw(st.sampled_from(('shared', 'level', 'channel')))
    count = dict(shared=1, level=len(channels), channel=sum(channels))[kind]
    p = draw_powers(data, count)
    neck = GeMNeck(
        p, channels=channels if kind == 'channel' else None,
        num_levels=len(channels) if kind == 'level' else None,
        p_trainable=data.draw(st.booleans()), bins=bins)
    batch = data.draw(st.integers(0, 2))
    levels = [
        draw_features(data, 1e-6, (batch, c, *data.draw(
            st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial))),
            dtype).requires_grad_() for c in channels]
    outs = neck(levels)
    grads = torch.autograd.grad(
        outs, levels, [torch.ones_like(y) for y in outs])
    powers = dict(
        shared=[p] * len(levels), level=[[v] for v in p],
        channel=np.split(np.array(p), np.cumsum(channels)[:-1]))[kind]
    for x, y, dx, power in zip(levels, outs, grads, powers, strict=True):
        places = np.arange(x.numel()).reshape(x.shape)
        rows = x.shape[2]
        sets = references.Sets((batch, sum(bins) * x.shape[1]))
        for n in range(batch):
            for b in bins:
                for i in range(b):
                    for c in range(x.shape[1]):
                        first, last = i * rows // b, -(-(i + 1) * rows // b)
                        members = places[n, c, first:last].reshape(-1)
                        sets.members.append(members)
                        sets.counts.append(len(members))
                        sets.powers.append(c if len(power) > 1 else 0)
        held = torch.tensor(list(power), dtype=torch.float32)
        if neck._shared_p is not None:
            held = neck._shared_p
            sets.powers = [0] * len(sets.powers)
        expected = references.pooled(x, held, sets, 1e-6, 1.0)
        assert_within(y, expected.y, expected.y_allowed)
        # Autograd adds up what is rounded: a cell lies in one or two strips
        # of each bin.
        rounded = 2 * len(bins) * references.ulp(expected.dx, dtype)
        assert_within(dx, expected.dx, expected.dx_allowed + rounded)


@given(st.data())
def test_pyramid(data):
    """Each level from the one before, which is exact."""
    dtype = data.draw(strategies.DTYPES)
    shape = data.draw(strategies.shapes(4, 4, 1))
    x = draw_features(data, 1e-6, shape, dtype)
    p = draw_powers(data, 1)
    trained = data.draw(st.booleans())
    outs = GeMPyramid(
        data.draw(st.integers(2, 4)), p[0], p_trainable=trained)((x, ))
    assert outs[0] is x
    for below, y in zip(outs, outs[1:]):
        below = below.detach().clone().requires_grad_()
        again = GeMPyramid(2, p[0], p_trainable=trained)([below])[1]
        dx, = torch.autograd.grad(again, below, torch.ones_like(again))
        assert again.equal(y)
        n, c, height, width = below.shape
        places = np.arange(below.numel()).reshape(below.shape)
        sets = references.Sets((n, c, -(-height // 2), -(-width // 2)))
        for a, b, i, j in np.ndindex(sets.shape):
            # The last row and column of an odd map count twice.
            rows = [min(2 * i + k, height - 1) for k in range(2)]
            columns = [min(2 * j + k, width - 1) for k in range(2)]
            members = places[a, b][np.ix_(rows, columns)].reshape(-1)
            sets.members.append(members)
            sets.counts.append(4)
            sets.powers.append(0)
        power = torch.tensor(p) if trained else float(torch.tensor(p[0]))
        # Members may be equal: their slopes add up.
        expected = references.pooled(below, power, sets, 1e-6, 1.0)
        assert_within(y, expected.y, expected.y_allowed)
        slopes, allowed = np.zeros(below.numel(), LD), np.zeros(
            below.numel(), LD)
        flat = exact(below).reshape(-1)
        limit = exact(torch.tensor(1e-6, dtype=references.wide(dtype)))
        power = float(exact(power).reshape(-1)[0])
        for members in sets.members:
            (_, _), (slope, error), _ = references.mean_of_set(
                np.maximum(flat[members], limit), 4, power, dtype)
            passes = flat[members] >= limit
            np.add.at(slopes, members, np.where(passes, slope, 0))
            # Twice the same cell is a sum of rounded values.
            np.add.at(allowed, members, np.where(
                passes, error + references.ulp(slope, dtype) + 4 *
                references.rounding(dtype) * slope, 0))
        allowed += references.ulp(slopes, dtype)
        assert_within(dx, slopes.reshape(below.shape),
                      allowed.reshape(below.shape))


@given(st.data())
def test_context(data):
    """Random weights, as its first values make it the identity."""
    dtype = data.draw(st.sampled_from((torch.float32, torch.float64)))
    torch.manual_seed(data.draw(SEEDS))
    channels = data.draw(st.integers(1, 6))
    fusion = data.draw(st.sampled_from(('channel_mul', 'channel_add')))
    p = data.draw(st.floats(1, 10, width=32))
    module = GeMContext(
        channels, data.draw(st.floats(0.05, 2)), fusion, p).to(dtype)
    for param in module.contexts[0].conv2.parameters():
        nn.init.normal_(param)
    x = torch.randn(data.draw(st.integers(1, 2)), channels,
                    data.draw(st.integers(1, 5)), data.draw(
                        st.integers(1, 5)), dtype=dtype)
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn_like(x)
    x.requires_grad_()
    context = copy.deepcopy(module).double().contexts[0]

    def formula(x):
        pooled = x.clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p)
        w1, w2 = (conv.weight.flatten(1) for conv in (
            context.conv1, context.conv2))
        hidden = (pooled @ w1.t() + context.conv1.bias).relu()
        t = (hidden @ w2.t() + context.conv2.bias)[..., None, None]
        return 2 * t.sigmoid() * x if fusion == 'channel_mul' else x + t

    other = x.detach().double().requires_grad_()
    got, expected = module(x), formula(other)
    torch.testing.assert_close(got.double(), expected, **CLOSE[dtype])
    (got * weight).sum().backward()
    (expected * weight.double()).sum().backward()
    scale = max(1.0, other.grad.abs().max().item())
    torch.testing.assert_close(
        x.grad.double() / scale, other.grad / scale, **CLOSE[dtype])


@given(st.data())
def test_loss_of_listed_peaks(data):
    """One cell may be several peaks, as in CenterNetUpdateHead."""
    dtype = data.draw(st.sampled_from((torch.float32, torch.float64)))
    rows, classes = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    clip = data.draw(st.sampled_from((None, 1e-4, 1e-2)))
    x = data.draw(strategies.tensors(
        (rows, classes), dtype, st.floats(-30, 30)))
    t = data.draw(strategies.tensors(
        (rows, classes), torch.float32, strategies.targets(torch.float32)))
    count = data.draw(st.integers(1, 5))
    cells = [torch.tensor(data.draw(st.lists(
        st.integers(0, n - 1), min_size=count, max_size=count)))
        for n in (rows, classes)]
    weights = dict(pos_weight=data.draw(st.sampled_from((1.0, 0.25))),
                   neg_weight=data.draw(st.sampled_from((1.0, 0.75))))
    reduction = data.draw(st.sampled_from(('none', 'sum', 'mean')))
    avg_factor = data.draw(
        st.none() | st.floats(0.5, 9)) if reduction == 'mean' else None
    module = GaussianFocalLossWithLogits(
        clip=clip, reduction=reduction, **weights)
    x.requires_grad_()
    loss = module(x, t, *cells, avg_factor=avg_factor)
    grad, = torch.autograd.grad(loss, x, torch.ones_like(loss))

    (neg, neg_error), (neg_slope, neg_slope_error) = references.focal_loss(
        x, t, clip=clip, **dict(weights, pos_weight=0.0))
    (pos, pos_error), (slope, slope_error) = references.focal_loss(
        x, torch.ones_like(t), clip=clip, **dict(weights, neg_weight=0.0))
    times = np.zeros((rows, classes), LD)
    np.add.at(times, tuple(cell.numpy() for cell in cells), 1)
    neg_factor = pos_factor = LD(1)
    if reduction == 'mean':
        neg_factor, pos_factor = (1 / LD(rows * classes), 1 / LD(count))
        if avg_factor is not None:
            neg_factor = pos_factor = 1 / (LD(avg_factor) + LD(
                torch.finfo(torch.float32).eps))
    u = references.rounding(dtype) * (8 + rows * classes + count)
    value = neg * neg_factor + times * pos * pos_factor
    allowed = (neg_error + u * abs(neg)) * neg_factor + times * (
        pos_error + u * abs(pos)) * pos_factor
    slopes = neg_slope * neg_factor + times * slope * pos_factor
    slopes_allowed = (neg_slope_error + u * abs(neg_slope)) * neg_factor + (
        times * (slope_error + u * abs(slope)) * pos_factor)
    if reduction != 'none':
        value, allowed = np.asarray(value.sum()), np.asarray(allowed.sum())
    tiny = references.smallest_normal(torch.float32)
    assert_within(loss, value, allowed + tiny)
    assert_within(grad, slopes, slopes_allowed + tiny)


# --- the reductions of points ---------------------------------------------


def draw_coors(data, count, dims=None):
    """Few cells, some points out of range."""
    dims = dims or data.draw(st.sampled_from((3, 4)))
    coors = data.draw(st.lists(
        st.lists(st.integers(-1, 2), min_size=dims, max_size=dims),
        min_size=count, max_size=count))
    kind = data.draw(st.sampled_from((torch.int32, torch.int64)))
    return torch.tensor(coors, dtype=kind).reshape(count, dims)


def cells_by_loop(coors):
    """The sorted cells, and the cell of each point, -1 out of range."""
    inside = [tuple(c) for c in coors.tolist() if min(c) >= 0]
    cells = sorted(set(inside))
    index = [cells.index(tuple(c)) if min(c) >= 0 else -1
             for c in coors.tolist()]
    return cells, np.array(index, dtype=np.int64)


@given(st.data())
def test_scatters(data):
    dtype = data.draw(strategies.DTYPES)
    count, channels = data.draw(st.integers(0, 12)), data.draw(
        st.integers(1, 4))
    points = draw_features(data, 1e-6, (count, channels), dtype)
    coors = draw_coors(data, count)
    cells, index = cells_by_loop(coors)
    per_channel = data.draw(st.booleans())
    p = draw_powers(data, channels if per_channel else 1)
    scatter = GeMDynamicScatter(
        *GRID, p, p_trainable=data.draw(st.booleans()),
        channels=channels if per_channel else None)
    points.requires_grad_()
    y, found = scatter(points, coors)
    dx, = torch.autograd.grad(y, points, torch.ones_like(y))
    assert [tuple(c) for c in found.tolist()] == cells
    assert found.dtype == coors.dtype and y.dtype == dtype
    sets = references.segment_sets(
        (count, channels), index, len(cells), per_channel)
    assert_pooled(y, dx, points, held_power(scatter.gem, p), sets, 1e-6)
    assert (dx[torch.from_numpy(index < 0)] == 0).all()

    largest, _ = CellScatter(*GRID, average_points=False)(points, coors)
    for row, cell in zip(largest, range(len(cells))):
        members = points[torch.from_numpy(index == cell)]
        assert row.equal(members.amax(0))


def draw_encoder(data, cls):
    torch.manual_seed(data.draw(SEEDS))
    dtype = data.draw(st.sampled_from((torch.float32, torch.float64)))
    layers = tuple(data.draw(st.lists(
        st.sampled_from((2, 4, 6)), min_size=1, max_size=2)))
    p = data.draw(st.sampled_from((1.0, 2.5, 4.0)))
    net = cls(
        in_channels=4, feat_channels=layers, voxel_size=GRID[0],
        point_cloud_range=GRID[1], p=p, per_channel=data.draw(st.booleans()),
        p_trainable=data.draw(st.booleans()),
        with_distance=data.draw(st.booleans()),
        with_cluster_center=data.draw(st.booleans()),
        with_voxel_center=data.draw(st.booleans()))
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm1d):
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.bias, 0, 0.5)
    return net.to(dtype).train(data.draw(st.booleans())), p


def activations(linear, norm, rows, training):
    """Linear, batch norm and ReLU by their formulas."""
    x = rows @ linear.weight.double().t()
    if training:
        mean, var = x.mean(0), x.var(0, unbiased=False)
    else:
        mean, var = norm.running_mean.double(), norm.running_var.double()
    x = (x - mean) / (var + norm.eps).sqrt()
    return (x * norm.weight.double() + norm.bias.double()).relu()


def decorate(net, points, counts, centers):
    """Offsets from the mean of each cell and from its centre, distance."""
    cell = torch.arange(len(counts)).repeat_interleave(counts)
    total = points.new_zeros(len(counts), 3).index_add(
        0, cell, points[:, :3])
    parts = [points]
    if net._with_cluster_center:
        parts.append(points[:, :3] - (total / counts[:, None])[cell])
    if net._with_voxel_center:
        parts.append(points[:, :3] - centers[cell])
    if net._with_distance:
        parts.append(points[:, :3].norm(2, 1, keepdim=True))
    return torch.cat(parts, 1), cell


def encode(layers, rows, cell, num, p, training):
    """All layers of an encoder in float64."""
    with torch.no_grad():
        for linear, norm in layers:
            x = activations(linear, norm, rows, training)
            c = x.clamp(min=1e-6).pow(p)
            y = torch.stack([c[cell == i].mean(0) for i in range(num)]).pow(
                1 / p)
            rows = torch.cat((x, y[cell]), 1)
    return y


def check_encoded(net, got, expected, training):
    # A batch norm over few points divides by a small deviation.
    rtol = {torch.float32: 1e-3 if training else 1e-4,
            torch.float64: 1e-9}[got.dtype]
    torch.testing.assert_close(
        got.double(), expected, rtol=rtol, atol=rtol)


@given(st.data())
def test_pillars(data):
    net, p = draw_encoder(data, GeMPillarFeatureNet)
    net.legacy = False
    dtype = net.pfn_layers[0].linear.weight.dtype
    counts = torch.tensor(data.draw(st.lists(
        st.integers(1, 5), min_size=1, max_size=5)))
    assume(not net.training or counts.sum() > 3)
    num, most = len(counts), 5
    mask = torch.arange(most) < counts[:, None]
    points = torch.randn(num, most, 4, dtype=dtype)
    points = points * mask[..., None]
    coors = torch.randint(0, 30, (num, 4))
    centers = torch.stack([
        coors[:, 3 - d] * GRID[0][d] + GRID[0][d] / 2 + GRID[1][d]
        for d in range(3)], 1).double()
    layers = [(copy.deepcopy(layer.linear), copy.deepcopy(layer.norm))
              for layer in net.pfn_layers]
    got = net(points.clone(), counts, coors)
    rows, cell = decorate(net, points[mask].double(), counts, centers)
    expected = encode(layers, rows, cell, num, p, net.training)
    check_encoded(net, got.view(num, -1), expected, net.training)


@given(st.data())
def test_dynamic_pillars(data):
    net, p = draw_encoder(data, GeMDynamicPillarFeatureNet)
    dtype = net.pfn_layers[0][0].weight.dtype
    count = data.draw(st.integers(4, 12))
    coors = draw_coors(data, count, 4)
    # Pillars have one layer.
    coors[:, 1] = coors[:, 1].clamp(max=0)
    cells, index = cells_by_loop(coors)
    assume((index >= 0).sum() >= (4 if net.training else 1))
    points = torch.randn(count, 4, dtype=dtype)
    layers = copy.deepcopy([(layer[0], layer[1])
                            for layer in net.pfn_layers])
    got, found = net(points.clone(), coors)
    assert [tuple(c) for c in found.tolist()] == cells
    order = torch.from_numpy(np.argsort(
        np.where(index < 0, len(cells), index), kind='stable'))
    order = order[:(index >= 0).sum()]
    counts = torch.from_numpy(np.bincount(
        index[index >= 0], minlength=len(cells)))
    centers = torch.tensor(cells, dtype=torch.float64)[:, [3, 2, 1]]
    size, low = torch.tensor(GRID[0]).double(), torch.tensor(GRID[1]).double()
    centers = centers * size + size / 2 + low[:3]
    rows, cell = decorate(net, points[order].double(), counts, centers)
    assert Cells(coors).counts.equal(counts)
    expected = encode(layers, rows, cell, len(cells), p, net.training)
    check_encoded(net, got, expected, net.training)


# --- CenterHead -----------------------------------------------------------


class Setup:
    """A random config of both heads, features, and what they look for."""

    def __init__(self, data):
        draw = data.draw
        self.velocity = draw(st.booleans())
        sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        self.num_classes = sum(sizes)
        factor = draw(st.sampled_from((1, 2, 4)))
        self.width, self.height = draw(st.integers(3, 12)), draw(
            st.integers(3, 12))
        voxel = [draw(st.sampled_from((0.25, 0.1, 0.075))) for _ in range(2)]
        origin = [draw(st.sampled_from((-16.0, 0.0, -3.7))) for _ in range(2)]
        grid = [n * factor + draw(st.integers(0, factor - 1))
                for n in (self.width, self.height)]
        self.cell = [v * factor for v in voxel]
        self.low = origin
        high = [o + g * v for o, g, v in zip(origin, grid, voxel)]
        weights = draw(st.lists(st.sampled_from((1.0, 0.2, 0.0, 3.0)),
                                min_size=10, max_size=10))
        if not self.velocity:
            # The stock head always has a velocity: it counts for nothing.
            weights[8:] = [0.0, 0.0]
        share = draw(st.sampled_from((2, 4)))
        heads = dict(
            reg=(2, draw(st.integers(1, 2))), height=(1, 2), dim=(3, 1),
            rot=(2, 2), vel=(2, 1))
        self.weights, self.heads = weights, heads
        self.nms_type = draw(st.sampled_from(('circle', 'rotate')))
        limits = [-40.0, -40.0, -10.0, 40.0, 40.0, 10.0]
        self.focal = dict(
            alpha=draw(st.sampled_from((2.0, 1.0))),
            gamma=draw(st.sampled_from((4.0, 2.0))),
            loss_weight=draw(st.sampled_from((1.0, 0.25))))
        self.cfg = dict(
            in_channels=4,
            tasks=[dict(num_class=n, class_names=[
                f'task{i}_{j}' for j in range(n)])
                for i, n in enumerate(sizes)],
            share_conv_channel=share,
            num_heatmap_convs=draw(st.integers(1, 2)),
            bbox_coder=dict(
                type='CenterPointBBoxCoder', pc_range=origin,
                post_center_range=limits, max_num=9, score_threshold=0.1,
                out_size_factor=factor, voxel_size=voxel),
            separate_head=dict(
                type='SeparateHead', init_bias=-2.19,
                final_kernel=draw(st.sampled_from((1, 3))),
                # One convolution takes what is shared.
                head_conv=share),
            loss_bbox=dict(type='mmdet.L1Loss', reduction='mean',
                           loss_weight=draw(st.sampled_from((0.25, 2.0)))),
            norm_bbox=draw(st.booleans()),
            train_cfg=dict(
                grid_size=[*grid, 40], voxel_size=[*voxel, 0.2],
                out_size_factor=factor, dense_reg=draw(st.integers(1, 2)),
                gaussian_overlap=draw(st.sampled_from((0.1, 0.5, 0.7))),
                # Often fewer than there are.
                max_objs=draw(st.sampled_from((1, 1, 2, 6))),
                min_radius=draw(st.integers(0, 3)),
                point_cloud_range=[*origin, -5.0, *high, 3.0]),
            test_cfg=dict(
                post_center_limit_range=limits, max_per_img=20,
                max_pool_nms=False, min_radius=[1.0] * len(sizes),
                score_threshold=0.1, out_size_factor=factor,
                voxel_size=voxel, nms_type=self.nms_type, pre_max_size=20,
                post_max_size=10, nms_thr=0.2))
        self.batch_size = draw(st.integers(1, 2))
        self.seed = draw(SEEDS)
        self.scale = draw(st.sampled_from((2.0, 4.0)))
        self.samples = [self.draw_boxes(draw) for _ in range(self.batch_size)]

    def draw_boxes(self, draw):
        """Inside, outside and on the edges of the map, also too many."""
        rows = []
        for _ in range(draw(st.integers(0, 9))):
            places = [
                draw(st.floats(-1.5, n + 1.5, width=32) | st.sampled_from(
                    (0.0, 1.0, n - 0.5, float(n), -0.99, -1.0)))
                for n in (self.width, self.height)]
            center = [low + at * size for low, at, size in zip(
                self.low, places, self.cell)]
            flat = [draw(st.sampled_from((0.0, -1.0, 1e-4, 0.5, 2.0, 60.0)) |
                         st.floats(0.1, 6)) for _ in range(2)]
            rows.append([
                *center, draw(st.floats(-3, 3)), *flat,
                draw(st.floats(0.1, 5)), draw(st.floats(-7, 7)),
                draw(st.floats(-9, 9)), draw(st.floats(-9, 9))])
        labels = [draw(st.integers(-1, self.num_classes)) for _ in rows]
        return torch.tensor(rows).reshape(-1, 9), torch.tensor(
            labels, dtype=torch.long)

    def instances(self, size=9):
        batch = []
        for boxes, labels in self.samples:
            gt = InstanceData()
            gt.bboxes_3d = LiDARInstance3DBoxes(
                boxes[:, :size].clone(), box_dim=size)
            gt.labels_3d = labels.clone()
            batch.append(gt)
        return batch

    def build(self, cls, velocity=True, loss=None):
        cfg = copy.deepcopy(self.cfg)
        heads = dict(self.heads)
        size = 10
        if not velocity:
            heads.pop('vel')
            size = 8
        cfg['bbox_coder']['code_size'] = size - 1
        cfg['train_cfg']['code_weights'] = self.weights[:size]
        loss = loss or dict(type='mmdet.GaussianFocalLoss', reduction='mean')
        return cls(common_heads=heads,
                   loss_cls=dict(loss, **self.focal), **cfg)

    def both(self, loss=None):
        """The stock head, and ours, with the same weights."""
        torch.manual_seed(self.seed)
        with DefaultScope.overwrite_default_scope('mmdet3d'):
            stock = self.build(StockHead)
            ours = self.build(CenterHead, self.velocity, loss)
        # Scores all over (0, 1), apart from each other and beyond the clip.
        for param in stock.parameters():
            if param.dim() > 1:
                param.data.mul_(self.scale)
        state = stock.state_dict()
        ours.load_state_dict(
            {key: state[key] for key in ours.state_dict()}, strict=True)
        return stock, ours

    def features(self):
        return [torch.randn(
            self.batch_size, 4, self.height, self.width,
            generator=torch.Generator().manual_seed(self.seed))]


@given(st.data())
def test_targets_of_center_head(data):
    setup = Setup(data)
    stock, ours = setup.both()
    size = 9 if setup.velocity else 7
    actual = ours.get_targets(setup.instances(size))
    expected = stock.get_targets(setup.instances())
    for heatmap, other in zip(actual[0], expected[0], strict=True):
        torch.testing.assert_close(heatmap, other, rtol=0, atol=1e-6)
        assert heatmap.eq(1).equal(other.eq(1))
    for boxes, other in zip(actual[1], expected[1], strict=True):
        assert boxes[..., :3].equal(other[..., :3])
        torch.testing.assert_close(
            boxes, other[..., :boxes.shape[2]], rtol=1e-6, atol=1e-6)
    for part in (2, 3):
        for value, other in zip(actual[part], expected[part], strict=True):
            assert value.dtype == other.dtype and value.equal(other)


@given(st.data())
def test_losses_of_center_head(data):
    """With the clip in the activation, or in a loss of logits."""
    setup = Setup(data)
    clip = data.draw(st.sampled_from((None, 1e-4)))
    stock, ours = setup.both(clip and dict(
        type='GaussianFocalLossWithLogits', clip=clip))
    x = setup.features()
    size = 9 if setup.velocity else 7
    got = ours.loss_by_feat(ours(x), setup.instances(size))
    expected = stock.loss_by_feat(stock(x), setup.instances())
    compare(ours, stock, got, expected)


def compare(ours, stock, got, expected):
    """Losses to 1e-6, and their gradients to 1e-6 of the largest."""
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert value.isfinite()
        torch.testing.assert_close(
            got[key], value, rtol=1e-6, atol=1e-9, msg=lambda m, k=key:
            f'{k}: {m}')
    sum(got.values()).backward()
    sum(expected.values()).backward()
    params = dict(stock.named_parameters())
    largest = max(param.grad.abs().max().item() for param in params.values()
                  if param.grad is not None)
    for key, param in ours.named_parameters():
        torch.testing.assert_close(
            param.grad, params[key].grad, rtol=1e-6, atol=1e-6 * largest,
            msg=lambda m, k=key: f'{k}: {m}')


@given(st.data())
def test_exact_loss_of_center_head(data):
    """The loss of logits without a clip against its formula in float64."""
    setup = Setup(data)
    _, ours = setup.both(dict(type='GaussianFocalLossWithLogits'))
    preds = ours(setup.features())
    instances = setup.instances(9 if setup.velocity else 7)
    losses = ours.loss_by_feat(preds, instances)
    heatmaps, *_ = ours.get_targets(instances)
    for i, target in enumerate(heatmaps):
        x, t = preds[i][0]['heatmap'].detach().double(), target.double()
        q, alpha = x.sigmoid(), setup.focal['alpha']
        cells = t.eq(1) * (1 - q)**alpha * nn.functional.softplus(-x) + (
            1 - t)**setup.focal['gamma'] * q**alpha * nn.functional.softplus(
                x)
        expected = setup.focal['loss_weight'] * cells.sum() / max(
            1, t.eq(1).sum())
        torch.testing.assert_close(
            losses[f'task{i}.loss_heatmap'].double(), expected, rtol=1e-6,
            atol=0)


@given(st.data())
def test_predictions_of_center_head(data):
    setup = Setup(data)
    stock, ours = setup.both()
    if not setup.velocity:
        with DefaultScope.overwrite_default_scope('mmdet3d'):
            stock = setup.build(StockHead, False)
        stock.load_state_dict(ours.state_dict(), strict=True)
    metas = [dict(box_type_3d=LiDARInstance3DBoxes)] * setup.batch_size
    x = setup.features()
    with torch.no_grad():
        expected = stock.eval().predict_by_feat(stock(x), metas)
        actual = ours.eval().predict_by_feat(ours(x), metas)
    for result, other in zip(actual, expected, strict=True):
        assert result.bboxes_3d.tensor.equal(other.bboxes_3d.tensor)
        assert result.scores_3d.equal(other.scores_3d)
        assert result.labels_3d.equal(other.labels_3d)


# --- CenterNetHead --------------------------------------------------------


@given(st.data())
def test_center_net_head(data):
    """Losses, gradients and predictions."""
    draw = data.draw
    classes = draw(st.integers(1, 4))
    cfg = dict(
        in_channels=4, feat_channels=draw(st.sampled_from((2, 4))),
        num_classes=classes,
        loss_center_heatmap=dict(
            type='GaussianFocalLoss', alpha=draw(st.sampled_from((2.0, 1.0))),
            loss_weight=draw(st.sampled_from((1.0, 0.5)))),
        test_cfg=dict(topk=draw(st.integers(1, 9)), max_per_img=9,
                      local_maximum_kernel=draw(st.sampled_from((1, 3)))))
    torch.manual_seed(draw(SEEDS))
    with DefaultScope.overwrite_default_scope('mmdet'):
        cfg = ConfigDict(cfg)
        stock, ours = StockNetHead(**cfg), CenterNetHead(**cfg)
    ours.load_state_dict(stock.state_dict(), strict=True)
    rows, columns = draw(st.integers(3, 12)), draw(st.integers(3, 12))
    height, width = 4 * rows, 4 * columns
    batch_size = draw(st.integers(1, 2))
    batch = []
    for _ in range(batch_size):
        boxes = []
        for _ in range(draw(st.integers(0, 6))):
            x1, x2 = sorted(draw(st.floats(0, width - 0.125))
                            for _ in range(2))
            y1, y2 = sorted(draw(st.floats(0, height - 0.125))
                            for _ in range(2))
            boxes.append([x1, y1, x2 + 0.05, y2 + 0.05])
        batch.append(InstanceData(
            bboxes=torch.tensor(boxes).reshape(-1, 4),
            labels=torch.randint(classes, (len(boxes), ))))
    metas = [dict(batch_input_shape=(height, width), img_shape=(height, width),
                  border=[0, height, 0, width],
                  scale_factor=(0.5, 2.0))] * batch_size
    x = (torch.randn(batch_size, 4, rows, columns), )
    compare(ours, stock, ours.loss_by_feat(*ours(x), batch, metas),
            stock.loss_by_feat(*stock(x), batch, metas))
    # No more cells than there are.
    assume(cfg.test_cfg.topk <= rows * columns)
    with torch.no_grad():
        for result, other in zip(
                ours.predict_by_feat(*ours(x), metas, with_nms=False),
                stock.predict_by_feat(*stock(x), metas, with_nms=False),
                strict=True):
            for key in ('bboxes', 'scores', 'labels'):
                assert result[key].equal(other[key])
