"""A bad argument is named, with its value and what is accepted."""
import math
import re

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from sigplug.datasets import GeneratorConfig, generate_synthetic_nuscenes
from sigplug.engine.hooks import (
    BEVImageHook,
    GeMPowerHook,
    HeatmapImageHook,
    HeatmapSaturationHook,
)
from sigplug.engine.optim_wrapper import CPUAmpOptimWrapper
from sigplug.models import (
    ClipSigmoid,
    GaussianFocalLossWithLogits,
    GeM,
    GeMContext,
    GeMNeck,
    GeMPyramid,
)
from sigplug.models.dense_heads import (
    CenterHead,
    CenterNetHead,
    CenterNetUpdateHead,
    CentripetalHead,
    CornerHead,
)
from sigplug.models.layers.inner_neck import InnerNeck
from sigplug.models.voxel_encoders import (
    GeMDynamicPillarFeatureNet,
    GeMDynamicVFE,
    GeMPillarFeatureNet,
)
from sigplug.ops import (
    clip_sigmoid,
    gaussian_focal_loss_with_logits,
    gaussian_heatmap,
    gaussian_radius,
    gem_pool,
    generalized_mean,
    segment_generalized_mean,
)
from sigplug.visualization import (
    TrainingLog,
    bev_corners,
    draw_bev,
    draw_training,
    read_training_log,
    save_png,
)

T, V = TypeError, ValueError
nan, inf = math.nan, math.inf
X = torch.rand(2, 3, 4, 4)
EMPTY = torch.rand(2, 3, 0, 4)
ROWS = torch.rand(4, 2)
ONE = torch.tensor([0])
INDEX = torch.tensor([0, 1, 1, 1])
GRID = dict(voxel_size=(0.2, 0.2, 4),
            point_cloud_range=(0, -40, -3, 70.4, 40, 1))
POINTS, COORS = torch.rand(5, 4), torch.zeros(5, 4, dtype=torch.int)
PILLARS, COUNTS = torch.rand(2, 5, 4), torch.tensor([5, 3])
CLOUD = np.random.default_rng(0).random((10, 3))
BOX = np.array([[0, 0, 0, 2, 2, 2, 0.0]])
HEADS = dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2))
TRAIN = dict(
    grid_size=[32, 32, 40], voxel_size=[0.25, 0.25, 0.2], out_size_factor=4,
    dense_reg=1, gaussian_overlap=0.1, max_objs=9, min_radius=2,
    point_cloud_range=[-4.0, -4.0, -5.0, 4.0, 4.0, 3.0])

Act, Loss, Pillar, Dynamic = (
    ClipSigmoid, GaussianFocalLossWithLogits, GeMPillarFeatureNet,
    GeMDynamicPillarFeatureNet)
loss = gaussian_focal_loss_with_logits
mean, segment = generalized_mean, segment_generalized_mean


@pytest.fixture(autouse=True)
def default_scope():
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        yield


def heatmap(centers=((1, 1), ), radii=(1, ), labels=(0, ), num_classes=3,
            size=(4, 4), **kwargs):
    inputs = [torch.tensor(v) if isinstance(v, tuple) else v
              for v in (centers, radii, labels)]
    return gaussian_heatmap(*inputs, num_classes, size, **kwargs)


def center(train=None, **kwargs):
    cfg = dict(
        in_channels=4, tasks=[dict(num_class=1, class_names=['car'])],
        common_heads=HEADS, share_conv_channel=4,
        bbox_coder=dict(
            type='CenterPointBBoxCoder', pc_range=[-4, -4], max_num=9,
            out_size_factor=4, voxel_size=[0.25, 0.25], code_size=7),
        separate_head=dict(type='SeparateHead', head_conv=4),
        train_cfg=dict(TRAIN, **(train or {})))
    return CenterHead(**dict(cfg, **kwargs))


def mmdet(cls, **kwargs):
    cfg = dict(num_classes=3, in_channels=8)
    if cls in (CenterNetHead, CenterNetUpdateHead):
        cfg['feat_channels'] = 8
    if cls is CenterNetUpdateHead:
        cfg.update(stacked_convs=1, strides=[8],
                   norm_cfg=dict(type='GN', num_groups=2))
    with DefaultScope.overwrite_default_scope('mmdet'):
        return cls(**dict(cfg, **kwargs))


def without(cfg, name):
    return {key: value for key, value in cfg.items() if key != name}


# The error holds these words in this order, whatever is between them.
CASES = [
    # --- operations
    (lambda: clip_sigmoid(None), T, 'x', 'float32', 'NoneType'),
    (lambda: clip_sigmoid(X.int()), T, 'x', 'torch.int32', 'x.float()'),
    (lambda: clip_sigmoid(X, 'a'), T, 'min_val', 'number', "'a'"),
    (lambda: clip_sigmoid(X, True), T, 'min_val', 'number', 'True'),
    (lambda: clip_sigmoid(X, 0.1, None), T, 'max_val', 'number', 'None'),
    (lambda: clip_sigmoid(X, nan), V, 'min_val', '0 and 1', 'nan'),
    (lambda: clip_sigmoid(X, 0.5, inf), V, 'max_val', '0 and 1', 'inf'),
    (lambda: clip_sigmoid(X, 0.5, 0.5), V, 'min_val', 'smaller', '0.5'),
    (lambda: clip_sigmoid(X, grad='on'), V, 'grad', "'zero'", "'on'"),
    (lambda: clip_sigmoid(X, inplace='no'), T, 'inplace', 'False', "'no'"),
    (lambda: clip_sigmoid(X, backend='c'), V, 'backend', "'cpp'", "'c'"),
    (lambda: mean([1.0]), T, 'x', 'floating point', 'list'),
    (lambda: mean(X, '3'), V, 'p', 'above 0', "'3'"),
    (lambda: mean(X, True), V, 'p', 'above 0', 'True'),
    (lambda: mean(X, nan), V, 'p', 'above 0', 'nan'),
    (lambda: mean(X, [3.0]), V, 'p', 'above 0', '[3.0]'),
    (lambda: mean(X, torch.tensor([nan])), V, 'p', 'above 0', 'nan'),
    (lambda: mean(X, torch.ones(5)), V, 'p of shape (5,)', '(2, 3, 1, 1)'),
    (lambda: mean(X, torch.ones(1) * 1j), T, 'p', 'real', 'complex64'),
    (lambda: mean(X, torch.ones(1) > 0), T, 'p', 'real', 'torch.bool'),
    (lambda: mean(X, torch.ones(3, device='meta')), V, 'p', 'cpu', 'meta'),
    (lambda: mean(X, dim=None), V, 'dim', 'integer', 'None'),
    (lambda: mean(X, dim=1.5), V, 'dim', 'integer', '1.5'),
    (lambda: mean(X, dim=True), V, 'dim', 'integer', 'True'),
    (lambda: mean(X, dim=(1, -3)), V, 'dim', 'distinct', '(1, -3)'),
    (lambda: mean(X, dim=4), V, 'dim', 'dims of x', '4'),
    (lambda: mean(EMPTY), V, 'x', 'not be empty', '(2, 3, 0, 4)'),
    (lambda: mean(X, eps='a'), T, 'eps', 'number', "'a'"),
    (lambda: mean(X, eps=True), T, 'eps', 'number', 'True'),
    (lambda: mean(X, eps=0), V, 'eps', 'above 0', '0'),
    (lambda: mean(X.half(), eps=1e6), V, 'eps', 'float16', '1000000.0'),
    (lambda: mean(X, mask=[True]), T, 'mask', 'tensor', 'list'),
    (lambda: mean(X, mask=X), T, 'mask', 'boolean', 'float32'),
    (lambda: mean(X, mask=ONE.bool().expand(5)), V, 'mask of shape (5,)'),
    (lambda: mean(X, mask=X.to('meta') > 0), V, 'mask', 'cpu', 'meta'),
    (lambda: mean(X, keepdim=None), T, 'keepdim', 'False', 'None'),
    (lambda: gem_pool(ROWS), V, 'x', '3, 4 or 5 dims', '(4, 2)'),
    (lambda: gem_pool(X, kernel_size=0), V, 'kernel_size', 'least 1', '0'),
    (lambda: gem_pool(X, kernel_size='3'), V, 'kernel_size', "'3'"),
    (lambda: gem_pool(X, kernel_size=2.5), V, 'kernel_size', '2.5'),
    (lambda: gem_pool(X, kernel_size=True), V, 'kernel_size', 'True'),
    (lambda: gem_pool(X, kernel_size=5), V, 'kernel_size (5, 5)', 'fit'),
    (lambda: gem_pool(X, 3, (2, 2, 2)), V, 'kernel_size (2, 2, 2)', '3'),
    (lambda: gem_pool(X, 3, 2, 0), V, 'stride', 'at least 1', '0'),
    (lambda: gem_pool(X, 3, 2, (1, 2, 3)), V, 'stride', '2', '(1, 2, 3)'),
    (lambda: gem_pool(X, 3, 2, 2, 2), V, 'padding', 'half', '(2, 2)'),
    (lambda: gem_pool(X, 3, 2, 2, None), V, 'padding', 'least 0', 'None'),
    (lambda: gem_pool(X, 3, 2, 2, 'same'), V, 'padding', "'same'"),
    (lambda: gem_pool(EMPTY), V, 'x', 'not be empty', '(2, 3, 0, 4)'),
    (lambda: segment(ROWS, [0] * 4, 2), T, 'index', 'tensor', 'list'),
    (lambda: segment(ROWS, INDEX.float(), 2), T, 'index', 'float32'),
    (lambda: segment(ROWS, INDEX > 0, 2), T, 'index', 'torch.bool'),
    (lambda: segment(ROWS, INDEX[:3], 2), V, 'index', '(3,)', '(4, 2)'),
    (lambda: segment(ROWS, INDEX, 1), V, 'index', 'num_segments=1', '1'),
    (lambda: segment(ROWS, INDEX - 1, 2), V, 'index', '-1'),
    (lambda: segment(ROWS, INDEX, 2.0), V, 'num_segments', '2.0'),
    (lambda: segment(ROWS, INDEX, True), V, 'num_segments', 'True'),
    (lambda: segment(ROWS, INDEX.to('meta'), 2), V, 'index', 'meta'),
    (lambda: segment(ROWS, INDEX, 2, torch.ones(3)), V, 'p', '(3,)', '(2,)'),
    (lambda: loss([1], X), T, 'logits', 'floating point', 'list'),
    (lambda: loss(X, [1]), T, 'target', 'tensor', 'list'),
    (lambda: loss(X, X[0]), V, 'target', '(2, 3, 4, 4)', '(3, 4, 4)'),
    (lambda: loss(X, X * 1j), T, 'target', 'real', 'complex64'),
    (lambda: loss(X, X.to('meta')), V, 'target', 'cpu', 'meta'),
    (lambda: loss(X, X, alpha='2'), T, 'alpha', 'number', "'2'"),
    (lambda: loss(X, X, alpha=True), T, 'alpha', 'number', 'True'),
    (lambda: loss(X, X, gamma=inf), V, 'gamma', 'finite', 'inf'),
    (lambda: loss(X, X, neg_weight=None), T, 'neg_weight', 'None'),
    (lambda: loss(X, X, clip=0.5), V, 'clip', '0 and 0.5', '0.5'),
    (lambda: loss(X, X, clip=(0.1, 0.9)), T, 'clip', '(0.1, 0.9)'),
    (lambda: loss(X, X, weight=[1.0]), T, 'weight', 'tensor', 'list'),
    (lambda: loss(X, X, weight=X[None]), V, 'weight', '(1, 2, 3, 4, 4)'),
    (lambda: loss(X, X, weight=X.to('meta')), V, 'weight', 'meta'),
    (lambda: loss(X, X, reduction='avg'), V, 'reduction', "'avg'"),
    (lambda: loss(X, X, avg_factor='a'), V, 'avg_factor', 'number', "'a'"),
    (lambda: loss(X, X, avg_factor=-1), V, 'avg_factor', 'least 0', '-1'),
    (lambda: loss(X, X, avg_factor=nan), V, 'avg_factor', 'nan'),
    (lambda: loss(X, X, avg_factor=ROWS), V, 'avg_factor', 'of one'),
    (lambda: loss(X, X, reduction='sum', avg_factor=2), V, 'avg_factor'),
    (lambda: heatmap(centers=[[1, 1]]), T, 'centers', 'tensor', 'list'),
    (lambda: heatmap(radii=1), T, 'radii', 'tensor', 'int'),
    (lambda: heatmap(centers=ROWS), T, 'centers', 'integer', 'float32'),
    (lambda: heatmap(labels=(True, )), T, 'labels', 'integer', 'bool'),
    (lambda: heatmap(centers=torch.tensor(1)), V, 'centers', '(K, 2)', '()'),
    (lambda: heatmap(radii=(1, 1)), V, 'radii', '(1, )', '(2,)'),
    (lambda: heatmap(radii=(-2, )), V, 'radii', '[-1, inf]', '-2'),
    (lambda: heatmap(labels=(5, )), V, 'labels', '[0, 2]', '5'),
    (lambda: heatmap(radii=ONE.to('meta')), V, 'radii', 'cpu', 'meta'),
    (lambda: heatmap(num_classes=-1), V, 'num_classes', 'least 0', '-1'),
    (lambda: heatmap(num_classes=3.0), V, 'num_classes', '3.0'),
    (lambda: heatmap(size=4), V, 'size', 'height, width', '4'),
    (lambda: heatmap(size=(4, )), V, 'size', 'height, width', '(4,)'),
    (lambda: heatmap(size=(-1, 4)), V, 'size', 'at least 0', '(-1, 4)'),
    (lambda: heatmap(size=(4.0, 4)), V, 'size', 'integers', '(4.0, 4)'),
    (lambda: gaussian_radius(1.0, ROWS), T, 'height', 'tensor', 'float'),
    (lambda: gaussian_radius(ROWS, ROWS > 0), T, 'width', 'torch.bool'),
    (lambda: gaussian_radius(ROWS, ONE), V, 'width', '(4, 2)', '(1,)'),
    (lambda: gaussian_radius(ROWS, ROWS, 'a'), T, 'min_overlap', "'a'"),
    (lambda: gaussian_radius(ROWS, ROWS, 1), V, 'min_overlap', '1'),
    # --- layers and losses
    (lambda: Act(eps='1e-4'), T, 'eps', 'number', "'1e-4'"),
    (lambda: Act(0.5), V, 'eps', '0 and 0.5', '0.5'),
    (lambda: Act(inplace='no'), T, 'inplace', 'True or False', "'no'"),
    (lambda: Act(0.1, min_val=0.95), V, 'min_val=0.95', 'max_val=0.9'),
    (lambda: GeM('inf'), T, 'p', 'number', "'inf'"),
    (lambda: GeM(True), T, 'p', 'number', 'True'),
    (lambda: GeM(torch.ones(1)), T, 'p', 'number', 'tensor([1.])'),
    (lambda: GeM(inf), V, 'p=inf', 'give', 'p_trainable=False'),
    (lambda: GeM([1, 2]), V, 'p', 'channels=None', '2'),
    (lambda: GeM(p_range=(5, )), V, 'p_range', 'two', '(5,)'),
    (lambda: GeM(p_range=(True, 5)), V, 'p_range', 'two', '(True, 5)'),
    (lambda: GeM(p_range=('a', 2)), V, 'p_range', "('a', 2)"),
    (lambda: GeM(p_range=(2, 1)), V, 'p_range', 'low < high', '(2, 1)'),
    (lambda: GeM(eps=None), T, 'eps', 'number', 'None'),
    (lambda: GeM(eps=inf), V, 'eps', 'finite', 'inf'),
    (lambda: GeM(clamp='no'), T, 'clamp', 'True or False', "'no'"),
    (lambda: GeM(p_trainable=1), T, 'p_trainable', 'True or False', '1'),
    (lambda: GeM(channels=2.5), V, 'channels', 'integer', '2.5'),
    (lambda: GeM(channels=True), V, 'channels', 'integer', 'True'),
    (lambda: GeM(kernel_size='3')(X), V, 'kernel_size', 'integers', "'3'"),
    (lambda: GeM(kernel_size=(2, ) * 4)(X), V, 'kernel_size', '4 entries'),
    (lambda: GeM(stride=0)(X), V, 'stride', 'at least 1', '0'),
    (lambda: GeM(padding=-1)(X), V, 'padding', 'at least 0', '-1'),
    (lambda: InnerNeck('FPN'), T, 'inner', "dict(type='FPN')", "'FPN'"),
    (lambda: InnerNeck(dict(tpye='FPN')), T, 'inner', 'type', 'tpye'),
    (lambda: InnerNeck([]), T, 'inner', 'config', '[]'),
    (lambda: InnerNeck([dict(type='GeM'), 3]), T, 'inner', 'config', '3'),
    (lambda: GeMContext('4'), V, 'in_channels', 'integer', "'4'"),
    (lambda: GeMContext(True), V, 'in_channels', 'integer', 'True'),
    (lambda: GeMContext([4, 0]), V, 'in_channels', 'least 1', '0'),
    (lambda: GeMContext(4, inf), V, 'ratio', 'finite', 'inf'),
    (lambda: GeMContext(4, True), T, 'ratio', 'number', 'True'),
    (lambda: GeMContext(4, fusion_type='mul'), V, 'fusion_type', "'mul'"),
    (lambda: GeMContext(4)(X), V, 'in_channels=4', '[3] channels'),
    (lambda: GeMContext(3)('a'), T, 'inputs', 'tensor', 'str'),
    (lambda: GeMContext(3)([X, 1]), V, 'inputs', '(N, C, H, W)', '1'),
    (lambda: GeMContext(3)(EMPTY), V, 'x', 'not be empty'),
    (lambda: Loss(pos_weight=-1), V, 'pos_weight', 'at least 0', '-1'),
    (lambda: Loss(loss_weight='a'), T, 'loss_weight', 'number', "'a'"),
    (lambda: Loss(loss_weight=nan), V, 'loss_weight', 'finite', 'nan'),
    (lambda: Loss(clip='a'), T, 'clip', 'number', "'a'"),
    (lambda: Loss()(X, X, reduction_override=True), V, 'reduction_override',
     "'mean'", 'True'),
    (lambda: Loss()(ROWS, ROWS, ONE), V, 'pos_inds needs pos_labels'),
    (lambda: Loss()(ROWS, ROWS, None, ONE), V, 'pos_labels needs pos_inds'),
    (lambda: Loss()(ROWS, ROWS, ONE, ONE, ROWS), V, 'weight', 'pos_inds'),
    (lambda: Loss()(ROWS, ROWS, [0], ONE), T, 'pos_inds', 'tensor', 'list'),
    (lambda: Loss()(ROWS, ROWS, ONE.float(), ONE), V, 'pos_inds', 'float32'),
    (lambda: Loss()(ROWS, ROWS, ONE - 1, ONE), V, 'pos_inds', '[0, 4)', '-1'),
    (lambda: Loss()(ROWS, ROWS, ONE, ONE + 5), V, 'pos_labels', '[0, 2)'),
    (lambda: Loss()(ROWS, ROWS, INDEX, ONE), V, 'pos_labels', '(1,)'),
    (lambda: Loss()(X, X, ONE, ONE), V, 'pred', '(2, 3, 4, 4)'),
    # --- necks
    (lambda: GeMNeck(channels='4'), V, 'channels', 'integer', "'4'"),
    (lambda: GeMNeck(channels=[3, True]), V, 'channels', 'True'),
    (lambda: GeMNeck(num_levels=0), V, 'num_levels', 'least 1', '0'),
    (lambda: GeMNeck(num_levels=True), V, 'num_levels', 'True'),
    (lambda: GeMNeck(num_levels=2, channels=3), V, 'num_levels=2',
     'channels=3', 'exclude'),
    (lambda: GeMNeck(bins=2), T, 'bins', 'tuple or list', '2'),
    (lambda: GeMNeck(bins=(1.5, )), V, 'bins', 'integer', '1.5'),
    (lambda: GeMNeck()(None), T, 'inputs', 'tensor', 'NoneType'),
    (lambda: GeMNeck()([X, 'a']), V, 'inputs', '(N, C, *spatial)', "'a'"),
    (lambda: GeMNeck(num_levels=2)(X), V, 'p', '2 levels', '1'),
    (lambda: GeMNeck(bins=(2, ))(EMPTY), V, 'x', 'not be empty'),
    (lambda: GeMPyramid(2, eps=None), T, 'eps', 'number', 'None'),
    (lambda: GeMPyramid(True), V, 'num_outs', 'integer', 'True'),
    (lambda: GeMPyramid('2'), V, 'num_outs', 'integer', "'2'"),
    (lambda: GeMPyramid(2)([]), V, 'num_outs=2', '0'),
    (lambda: GeMPyramid(2, inner='FPN'), T, 'inner', "'FPN'"),
    # --- voxel encoders
    (lambda: Pillar(mode='avg'), V, "mode='avg'", 'p=1 is the mean'),
    (lambda: GeMDynamicVFE(mode='max'), V, "mode='max'", 'GeMDynamicVFE'),
    (lambda: Pillar(per_chanel=True), T, "'per_chanel'"),
    (lambda: Dynamic(p_trainabel=1), T, "'p_trainabel'"),
    (lambda: Pillar(per_channel='a'), T, 'per_channel', 'False', "'a'"),
    (lambda: Pillar(eps=0), V, 'eps', 'above 0', '0'),
    (lambda: Pillar()(PILLARS[..., :3], COUNTS, COORS[:2]), V,
     'in_channels'),
    (lambda: Dynamic()(POINTS[:, :3], COORS), V, 'in_channels', ' 9', '10'),
    (lambda: Dynamic()(POINTS, COORS.float()), V, 'coors', 'float32'),
    # --- heads
    (lambda: center(heatmap_act='ClipSigmoid'), T, 'heatmap_act',
     "dict(type='ClipSigmoid')", "got 'ClipSigmoid'"),
    (lambda: center(heatmap_act={}), T, 'heatmap_act', 'type', '{}'),
    (lambda: center(heatmap_act=[{}]), T, 'heatmap_act', 'type', '[{}]'),
    (lambda: center(heatmap_act=True), T, 'heatmap_act', 'type', 'True'),
    (lambda: center(heatmap_act=dict(tpye='A')), T, 'heatmap_act', 'tpye'),
    (lambda: center(heatmap_atc={}), T, 'CenterHead', "'heatmap_atc'",
     "'heatmap_act'"),
    (lambda: center(norm_box=True), T, "'norm_box'", "'norm_bbox'"),
    (lambda: center(loss_cls=None), T, 'loss_cls', 'config', 'None'),
    (lambda: center(tasks=[]), V, 'tasks', 'class_names', '[]'),
    (lambda: center(tasks=[dict(num_class=1)]), V, 'tasks', 'num_class'),
    (lambda: center(common_heads=None), V, 'common_heads', 'None'),
    (lambda: center(common_heads=without(HEADS, 'rot')), V,
     'common_heads.rot', '(2, '),
    (lambda: center(common_heads=dict(HEADS, rot=(1, 2))), V,
     'common_heads.rot', '(2, '),
    (lambda: center(train_cfg=without(TRAIN, 'max_objs')).get_targets(
        [InstanceData()]), V, 'need max_objs in train_cfg', "'grid_size'"),
    (lambda: center(dict(grid_size=128)), V, 'train_cfg.grid_size', '128'),
    (lambda: center(dict(max_objs=-1)), V, 'train_cfg.max_objs', '-1'),
    (lambda: center(dict(dense_reg=0)), V, 'train_cfg.dense_reg', '0'),
    (lambda: center(dict(out_size_factor=0)), V, 'out_size_factor', '0'),
    (lambda: center(dict(gaussian_overlap=2)), V, 'gaussian_overlap', '2'),
    (lambda: center(dict(voxel_size='ab')), V, 'voxel_size', "'ab'"),
    (lambda: center(dict(code_weights=5)), V, 'code_weights', '5'),
    (lambda: center(dict(code_weights=[nan] * 8)), V, 'code_weights', 'nan'),
    (lambda: center(dict(code_weights=[1.0] * 9)), V, 'code_weights', '8',
     '9'),
    (lambda: center().get_targets([]), V, 'batch_gt_instances_3d', '[]'),
    (lambda: center(train_cfg=None).get_targets([InstanceData()]), V,
     'train_cfg', 'None'),
    *[(lambda cls=cls, value=value: mmdet(cls, heatmap_act=value), T,
       'heatmap_act', 'dict(type=', repr(value))
      for cls in (CenterNetHead, CornerHead, CentripetalHead,
                  CenterNetUpdateHead) for value in ('Sigmoid', 5, {})],
    *[(lambda cls=cls: mmdet(cls, heatmap_atc={}), T, cls.__name__,
       "'heatmap_atc'", "'heatmap_act'")
      for cls in (CenterNetHead, CornerHead, CentripetalHead,
                  CenterNetUpdateHead)],
    # --- engine, data, pictures
    (lambda: HeatmapSaturationHook('a'), V, 'interval', 'integer', "'a'"),
    (lambda: HeatmapSaturationHook(2.5), V, 'interval', 'integer', '2.5'),
    (lambda: HeatmapSaturationHook(True), V, 'interval', 'integer', 'True'),
    (lambda: HeatmapImageHook(0), V, 'interval', 'integer', '0'),
    (lambda: GeMPowerHook('a'), V, 'interval', 'integer', "'a'"),
    (lambda: BEVImageHook(0), V, 'num_samples', 'integer', '0'),
    (lambda: BEVImageHook(score_thr=3), V, 'score_thr', '3'),
    (lambda: BEVImageHook(score_thr=nan), V, 'score_thr', 'nan'),
    (lambda: BEVImageHook(score_thr='a'), T, 'score_thr', 'number', "'a'"),
    (lambda: CPUAmpOptimWrapper('fp16', optimizer=torch.optim.SGD(
        [torch.nn.Parameter(X)], 0.1)), V, 'dtype', "'bfloat16'", "'fp16'"),
    (lambda: GeneratorConfig(seed=1.5), T, 'seed', 'integer', '1.5'),
    (lambda: GeneratorConfig(seed=True), T, 'seed', 'integer', 'True'),
    (lambda: GeneratorConfig(samples_per_scene='4'), T, 'samples_per_scene',
     "'4'"),
    (lambda: GeneratorConfig(intermediate_sweeps=None), T,
     'intermediate_sweeps', 'None'),
    (lambda: GeneratorConfig(scenes='scene-0061'), T, 'scenes', 'tuple'),
    (lambda: GeneratorConfig(scenes=[3]), V, 'scenes', '3'),
    (lambda: generate_synthetic_nuscenes(None), T, 'out', 'path', 'None'),
    (lambda: generate_synthetic_nuscenes('never', dict(seed=0)), T,
     'config', 'GeneratorConfig', "{'seed': 0}"),
    (lambda: generate_synthetic_nuscenes('never', workers=1.5), T,
     'workers', 'integer', '1.5'),
    (lambda: draw_bev(CLOUD, gt_bboxes=BOX, gt_labels=[0],
                      class_names='car'), V, 'class_names', "'car'"),
    (lambda: draw_bev(CLOUD, size=5), V, 'size', 'width, height', '5'),
    (lambda: draw_bev(CLOUD, size=(300.5, 300)), V, 'size', '300.5'),
    (lambda: draw_bev(CLOUD, size=(10**9, 300)), V, 'size', '65535'),
    (lambda: draw_bev(CLOUD, ego_yaw='a'), V, 'ego_yaw', 'numbers'),
    (lambda: draw_bev(CLOUD, ego_yaw=nan), V, 'ego_yaw', 'finite'),
    (lambda: draw_bev(CLOUD, title=5), T, 'title', 'text', '5'),
    (lambda: bev_corners(BOX[0]), V, 'bboxes', '(M, >=7)', '(7,)'),
    (lambda: bev_corners('a'), V, 'bboxes', '(M, >=7)', '()'),
    (lambda: save_png(None, 'a.png'), T, 'figure', 'Figure', 'None'),
    (lambda: save_png(draw_bev(CLOUD), 5), T, 'path', '5'),
    (lambda: read_training_log(None), T, 'work_dir', 'path', 'None'),
    (lambda: draw_training('a'), T, 'log', 'read_training_log', "'a'"),
    (lambda: draw_training(TrainingLog(), metrics='mAP'), T, 'metrics',
     'list of names', "'mAP'"),
]


@pytest.mark.parametrize('case', CASES, ids=lambda case: ' '.join(case[2:]))
def test_message(case):
    call, error, *words = case
    with pytest.raises(error) as info:
        call()
    # Not of a class of it, such as UnicodeError.
    assert info.type is error
    assert re.search('.*'.join(map(re.escape, words)), str(info.value),
                     re.DOTALL), str(info.value)
    # No bystander's: torch's and Python's own messages know no argument.
    assert '/sigplug/' in str(info.traceback[-1].path)
