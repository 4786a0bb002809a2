"""The operations of sigplug beside the stock forms."""
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import stock_forms
import torch
import torch.nn.functional as F
from plots.speedups import COMPILED, OURS
from torch import Tensor

from sigplug.ops import (
    clip_sigmoid,
    gaussian_focal_loss_with_logits,
    gaussian_heatmap,
    gem_pool,
    hard_voxelize,
    segment_generalized_mean,
)
from sigplug.ops.backends import VARIABLE

from .data import POINTS, make_batch, make_points
from .timing import Form, Work

EPS, GEM_EPS = 1e-4, 1e-6
# The last value below 1 is far from it in bfloat16.
TOLERANCES = {torch.bfloat16: 2e-2}
EAGER = 'sigplug eager'
MAP = (128, 128)
PILLAR_CONFIG = ('mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_'
                 '8xb4-cyclic-20e_nus-3d.py')
# Those of mmdet3d's CenterPoint.
PILLARS = dict(
    voxel_size=(0.2, 0.2, 8),
    point_cloud_range=(-51.2, -51.2, -5, 51.2, 51.2, 3),
    max_points=20, max_voxels=30000)
VOXELS = dict(
    voxel_size=(0.075, 0.075, 0.2),
    point_cloud_range=(-54, -54, -5, 54, 54, 3),
    max_points=10, max_voxels=90000)


@dataclass(frozen=True)
class Case:
    """A case: its title, a maker of its forms and inputs, and where it runs.

    ``quick`` tells whether it is part of a first look.
    """

    name: str
    build: Callable[[torch.device], Work]
    devices: tuple[str, ...] = ('cpu', 'cuda')
    quick: bool = False


# Forms -------------------------------------------------------------------


def eagerly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that uses plain PyTorch in all that it calls.

    The environment says so, because heads pass no backend on.
    """

    def call(*args: Any) -> Any:
        os.environ[VARIABLE] = 'eager'
        try:
            return function(*args)
        finally:
            del os.environ[VARIABLE]

    return call


def ours(function: Callable[..., Any], answer: str = '',
         suffix: str = '') -> list[Form]:
    """Return the default and the eager form of an operation of sigplug."""
    return [Form(OURS + suffix, function, answer),
            Form(EAGER + suffix, eagerly(function), answer)]


def stock(name: str, function: Callable[..., Any],
          compiled: bool = True) -> list[Form]:
    torch._dynamo.reset()
    forms = [Form(name, function)]
    if compiled:
        forms.append(
            Form(COMPILED, torch.compile(function, dynamic=False)))
    return forms


# Inputs, random on the CPU -------------------------------------------------


def heatmap_logits(shape: tuple[int, ...], device: torch.device,
                   dtype: torch.dtype = torch.float32) -> Tensor:
    """Return logits of a training: most are low, some beyond the clip.

    None lies so close to the clip that rounding decides on its gradient.
    """
    x = (3 * torch.randn(shape) - 2).to(device)
    kink = math.log(1 / EPS - 1)
    x[(x.abs() - kink).abs() < 0.05] = 0
    return x.to(dtype).requires_grad_()


def target_maps(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return targets of the loss with 30 objects per sample."""
    batch, classes, height, width = shape
    boxes = random_boxes(30 * batch, batch * classes, height, width, device)
    return gaussian_heatmap(
        *boxes, batch * classes, (height, width)).view(shape)


def random_boxes(count: int, classes: int, height: int, width: int,
                 device: torch.device) -> tuple[Tensor, ...]:
    """Return centres, radii and labels of boxes on a heatmap."""
    column, row, radius, label = (
        torch.randint(*limits, (count, )).to(device)
        for limits in ((0, width), (0, height), (2, 9), (0, classes)))
    return torch.stack((column, row), dim=1), radius, label


def features(shape: tuple[int, ...], device: torch.device,
             **changes: Any) -> Tensor:
    """Return activations, none so extreme that a form's clamps show."""
    x = (torch.randn(shape).to(device).abs() + 0.1).clamp(max=4)
    return x.to(**changes).requires_grad_()


def power(device: torch.device) -> Tensor:
    return torch.tensor([3.0], device=device, requires_grad=True)


# Cases -------------------------------------------------------------------


def sigmoid_case(dtype: torch.dtype, shape: tuple[int, ...],
                 device: torch.device) -> Work:
    x = heatmap_logits(shape, device, dtype)
    return Work([*stock('mmdet3d', stock_forms.clip_sigmoid),
                 *ours(clip_sigmoid),
                 Form('torch.sigmoid', torch.sigmoid, 'sigmoid')], (x, ),
                TOLERANCES.get(dtype, 1e-4))


def loss_case(shape: tuple[int, ...], device: torch.device,
              dtype: torch.dtype = torch.float32) -> Work:
    x, t = heatmap_logits(shape, device, dtype), target_maps(shape, device)
    peaks = t.eq(1).sum().float()

    def composed(x: Tensor, t: Tensor) -> Tensor:
        loss = stock_forms.gaussian_focal_loss(
            stock_forms.clip_sigmoid(x.float()), t)
        return loss.sum() / (peaks + torch.finfo(torch.float32).eps)

    def loss(clip: float | None) -> Callable[..., Tensor]:
        return partial(
            gaussian_focal_loss_with_logits, clip=clip, avg_factor=peaks)

    return Work([*stock('mmdet3d + mmdet', composed, dtype == torch.float32),
                 *ours(loss(EPS)), *ours(loss(None), 'exact', ', clip=None')],
                (x, t), TOLERANCES.get(dtype, 1e-4))


def gem_case(shape: tuple[int, ...], device: torch.device,
             **changes: Any) -> Work:
    x, p = features(shape, device, **changes), power(device)

    def formula(x: Tensor, p: Tensor) -> Tensor:
        return stock_forms.gem(x.float(), p)

    return Work([
        *stock("mmpretrain's formula", formula, x.dtype == torch.float32),
        *ours(gem_pool),
        Form('adaptive_avg_pool2d',
             lambda x, p: F.adaptive_avg_pool2d(x, 1), 'mean'),
    ], (x, p), TOLERANCES.get(x.dtype, 2e-3))


def window_case(kernel: int, stride: int, shape: tuple[int, ...],
                device: torch.device) -> Work:
    x, p = features(shape, device), power(device)
    windows = dict(kernel_size=kernel, stride=stride)
    return Work([
        *stock('textbook formula',
               partial(stock_forms.gem, eps=GEM_EPS, **windows)),
        *ours(partial(gem_pool, **windows)),
        Form('torch avg_pool2d', lambda x, p: F.avg_pool2d(x, **windows),
             'mean'),
        Form('torch max_pool2d', lambda x, p: F.max_pool2d(x, **windows),
             'max'),
    ], (x, p), tolerance=2e-3)


def segment_case(rows: int, num: int, device: torch.device) -> Work:
    index = torch.randint(num, (rows, )).to(device)
    # Empty ones differ: PyG's is the lower bound.
    index[:num] = torch.arange(num, device=device)
    x, p = features((rows, 64), device), power(device)

    def mean(x: Tensor, p: Tensor) -> Tensor:
        return segment_generalized_mean(x, index, num, p)

    def amax(x: Tensor, p: Tensor) -> Tensor:
        return x.new_zeros(num, x.shape[1]).scatter_reduce(
            0, index[:, None].expand_as(x), x, 'amax')

    return Work([
        *stock("PyG's formula", partial(stock_forms.power_mean_aggregation,
                                        index=index, num_segments=num)),
        *ours(mean), Form('torch scatter_reduce amax', amax, 'max')
    ], (x, p), tolerance=2e-3)


def heatmap_case(boxes: int, shape: tuple[int, int, int],
                 device: torch.device) -> Work:
    return Work([Form(OURS, lambda *args: gaussian_heatmap(
        *args, shape[0], shape[1:]))], random_boxes(boxes, *shape, device))


def scans(device: torch.device) -> list[Tensor]:
    """Return two scans, of ten sweeps each."""
    return [make_points(POINTS, seed).to(device) for seed in range(2)]


def voxel_case(grid: dict[str, Any], device: torch.device) -> Work:
    from mmcv.ops import voxelization
    arguments = grid.values()

    def mmcv(batch: list[Tensor]) -> tuple[Tensor, ...]:
        parts = [voxelization(points, *arguments) for points in batch]
        voxels, coors, counts = map(list, zip(*parts))
        coors = [F.pad(c, (1, 0), value=i) for i, c in enumerate(coors)]
        return torch.cat(voxels), torch.cat(coors), torch.cat(counts)

    def mine(batch: list[Tensor]) -> tuple[Tensor, ...]:
        return hard_voxelize(batch, *arguments)

    return Work([Form('mmcv', mmcv), Form(OURS, mine)], (scans(device), ))


def targets_case(num_boxes: int, device: torch.device) -> Work:
    from mmdet3d.models.dense_heads import CenterHead as StockHead
    from mmengine.hub import get_config
    from mmengine.registry import DefaultScope

    from sigplug.models.dense_heads import CenterHead
    cfg = get_config(PILLAR_CONFIG).model
    arguments = dict(cfg.pts_bbox_head, train_cfg=cfg.train_cfg.pts,
                     test_cfg=cfg.test_cfg.pts)
    del arguments['type']
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        head, mine = (kind(**arguments) for kind in (StockHead, CenterHead))
    samples = [sample.gt_instances_3d.to(device) for sample in make_batch(
        4, 1, num_boxes=num_boxes)['data_samples']]
    return Work([Form('mmdet3d', head.get_targets),
                 *ours(mine.get_targets)], (samples, ))


FP32, BF16 = torch.float32, torch.bfloat16
HEATMAP, CLASSES, WINDOWED = (4, 10, *MAP), (64, 80, *MAP), (8, 64, *MAP)
LARGE, SMALL, LATE = (4, 256, *MAP), (8, 512, 16, 16), (64, 2048, 7, 7)
CPU, CUDA = ('cpu', ), ('cuda', )
# Few forms are compiled in bfloat16, as each takes many seconds.
CASES = (
    Case(f'clip_sigmoid, fp32, {HEATMAP}',
         partial(sigmoid_case, FP32, HEATMAP), CPU, quick=True),
    Case(f'clip_sigmoid, bf16, {HEATMAP}',
         partial(sigmoid_case, BF16, HEATMAP), CPU),
    Case(f'loss, clip=1e-4, {HEATMAP}', partial(loss_case, HEATMAP),
         quick=True),
    Case('loss, clip=1e-4, (8, 10, 180, 180)',
         partial(loss_case, (8, 10, 180, 180))),
    Case(f'loss, clip=1e-4, {CLASSES}', partial(loss_case, CLASSES), CUDA),
    Case(f'GeM, trained p, {LARGE}', partial(gem_case, LARGE), quick=True),
    Case(f'GeM, trained p, {SMALL}', partial(gem_case, SMALL), CPU),
    Case(f'GeM, trained p, {LATE}', partial(gem_case, LATE), CUDA),
    Case(f'GeM, trained p, {LATE}, channels_last',
         partial(gem_case, LATE, memory_format=torch.channels_last), CUDA),
    *(Case(f'gem_pool, trained p, {WINDOWED}, windows of {kernel}, '
           f'stride {stride}', partial(window_case, kernel, stride, WINDOWED))
      for kernel, stride in ((2, 2), (3, 1))),
    Case('GeM of 300,000 points in 30,000 pillars, 64 channels, trained p',
         partial(segment_case, 300_000, 30_000), quick=True),
    Case('gaussian_heatmap, 1600 boxes, (40, 180, 180)',
         partial(heatmap_case, 1600, (40, 180, 180)), CUDA, quick=True),
    *(Case(f'hard_voxelize, {name}, 2 x 250,000 points',
           partial(voxel_case, grid), quick=True)
      for name, grid in (('pillars of 0.2 m', PILLARS),
                         ('voxels of 0.075 m', VOXELS))),
    *(Case(f'targets, 4 samples x {boxes} boxes, six tasks',
           partial(targets_case, boxes), CPU, quick=True)
      for boxes in (400, 30)),
    *(Case(f'clip_sigmoid, {name}, 64 Mi',
           partial(sigmoid_case, dtype, (2**26, )), CUDA)
      for name, dtype in (('fp32', FP32), ('bf16', BF16))),
    Case(f'loss, bf16, clip=1e-4, {CLASSES}',
         partial(loss_case, CLASSES, dtype=BF16), CUDA),
    *(Case(f'GeM, bf16, trained p, {shape}',
           partial(gem_case, shape, dtype=BF16), CUDA)
      for shape in (LARGE, LATE)),
)
