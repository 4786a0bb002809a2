"""The operations of sigplug beside the stock forms."""
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import stock_forms
import torch
import torch.nn.functional as F
from torch import Tensor

from sigplug.ops import (
    clip_sigmoid,
    gaussian_focal_loss_with_logits,
    gaussian_heatmap,
    gem_pool,
    hard_voxelize,
    segment_generalized_mean,
)

from .data import lidar_points
from .timing import Form, Work

EPS, GEM_EPS = 1e-4, 1e-6
OURS, EAGER, COMPILED = 'sigplug', 'sigplug eager', 'torch.compile of stock'
MMDET, MMDET3D, MMCV = 'mmdet3d + mmdet', 'mmdet3d', 'mmcv'
MAXIMUM = 'mmdet3d, maximum'
MMPRETRAIN = "mmpretrain's formula"
TEXTBOOK = 'textbook formula'
PYG = "PyG's formula"
AVERAGE, AMAX = 'adaptive_avg_pool2d', 'torch scatter_reduce amax'
EXACT = ', clip=None'
NUM_CLASSES, MAP = 10, (128, 128)
PILLAR_CONFIG = ('mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_'
                 '8xb4-cyclic-20e_nus-3d.py')
# Those of mmdet3d's CenterPoint.
PILLARS = dict(
    voxel_size=(0.2, 0.2, 8), point_cloud_range=(-51.2, -51.2, -5, 51.2, 51.2,
                                                 3),
    max_points=20, max_voxels=30000)
VOXELS = dict(
    voxel_size=(0.075, 0.075, 0.2), point_cloud_range=(-54, -54, -5, 54, 54,
                                                       3),
    max_points=10, max_voxels=90000)


@dataclass(frozen=True)
class Goal:
    """A ratio of speed (``at_least``) or of cost (``at_most``) to report."""

    against: str
    at_least: float | None = None
    at_most: float | None = None
    form: str = OURS


@dataclass(frozen=True)
class Case:
    """A case: its title, a maker of its forms and inputs, and its goals."""

    name: str
    build: Callable[[torch.device], Work]
    goals: tuple[Goal, ...] = ()
    quick: bool = True


# Forms -------------------------------------------------------------------


def on_backend(function: Callable[..., Any],
               backend: str) -> Callable[..., Any]:
    """Return a function that uses one backend in everything that it calls.

    The environment sets it, because heads and encoders pass no backend on.
    """

    def call(*args: Any) -> Any:
        os.environ['SIGPLUG_BACKEND'] = backend
        return function(*args)

    return call


def ours(function: Callable[..., Any], answer: str = '', suffix: str = '',
         leaves: tuple[Tensor, ...] | None = None) -> list[Form]:
    """Return the default and the eager form of an operation of sigplug."""
    return [Form(name + suffix, on_backend(function, backend), answer, leaves)
            for name, backend in ((OURS, 'auto'), (EAGER, 'eager'))]


def stock(name: str, function: Callable[..., Any]) -> list[Form]:
    """Return a stock form, as it is and compiled."""
    torch._dynamo.reset()
    return [Form(name, function),
            Form(COMPILED, torch.compile(function, dynamic=False))]


# Inputs ------------------------------------------------------------------


def heatmap_logits(shape: tuple[int, ...], device: torch.device,
                   dtype: torch.dtype = torch.float32) -> Tensor:
    """Return logits of a training: most are low, some beyond the clip.

    None lies so close to the clip that rounding decides on its gradient.
    """
    x = 3 * torch.randn(shape) - 2
    kink = torch.tensor(1 / EPS - 1).log()
    x[(x.abs() - kink).abs() < 0.05] = 0
    return x.to(device, dtype).requires_grad_()


def target_maps(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return targets of the loss with 30 objects per sample."""
    batch, classes, height, width = shape
    count = (30 * batch, )
    centers = torch.stack(
        [torch.randint(width, count), torch.randint(height, count)], dim=1)
    return gaussian_heatmap(
        centers, torch.randint(2, 9, count),
        torch.randint(batch * classes, count), batch * classes,
        (height, width)).view(shape).to(device)


def features(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return activations, none so extreme that a form's clamps show."""
    x = (torch.randn(shape).abs() + 0.1).clamp(max=4)
    return x.to(device).requires_grad_()


def power(device: torch.device) -> Tensor:
    """Return a trained power."""
    return torch.tensor([3.0], device=device, requires_grad=True)


@cache
def pillar_model() -> Any:
    """Return the config of the stock full-size pillar model."""
    import mmdet3d.models  # noqa: F401
    from mmengine.hub import get_config
    return get_config(PILLAR_CONFIG).model


# Cases -------------------------------------------------------------------


def sigmoid_case(dtype: torch.dtype, device: torch.device) -> Work:
    x = heatmap_logits((4, NUM_CLASSES, *MAP), device, dtype)
    # The last value below 1 is far from it in bfloat16.
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
    return Work([*stock(MMDET3D, stock_forms.clip_sigmoid),
                 *ours(clip_sigmoid),
                 Form('torch.sigmoid', torch.sigmoid, 'sigmoid')], (x, ),
                tolerance)


def loss_case(side: int, device: torch.device) -> Work:
    shape = (4, NUM_CLASSES, side, side)
    x, t = heatmap_logits(shape, device), target_maps(shape, device)
    peaks = t.eq(1).sum().float()

    def composed(x: Tensor, t: Tensor) -> Tensor:
        loss = stock_forms.gaussian_focal_loss(stock_forms.clip_sigmoid(x), t)
        return loss.sum() / (peaks + torch.finfo(torch.float32).eps)

    def loss(clip: float | None) -> Callable[..., Tensor]:
        return partial(
            gaussian_focal_loss_with_logits, clip=clip, avg_factor=peaks)

    return Work([*stock(MMDET, composed), *ours(loss(EPS)),
                 *ours(loss(None), 'exact', EXACT)], (x, t))


def gem_case(shape: tuple[int, ...], device: torch.device) -> Work:
    """Pool globally with a trained p."""
    x, p = features(shape, device), power(device)
    average = Form(AVERAGE, lambda x, p: F.adaptive_avg_pool2d(x, 1), 'mean',
                   (x, ))
    return Work([*stock(MMPRETRAIN, stock_forms.gem), *ours(gem_pool),
                 average], (x, p), tolerance=2e-3)


def window_case(shape: tuple[int, ...], kernel: int, stride: int,
                device: torch.device) -> Work:
    x, p = features(shape, device), 3.0
    windows = dict(kernel_size=kernel, stride=stride)

    def lp_pool(x: Tensor) -> Tensor:
        # torch takes the sum of the powers instead of their mean.
        return F.lp_pool2d(x, p, kernel, stride) * kernel**(-2 / p)

    return Work([
        *stock(TEXTBOOK,
               partial(stock_forms.gem, p=p, eps=GEM_EPS, **windows)),
        Form('torch lp_pool2d', lp_pool),
        *ours(partial(gem_pool, p=p, **windows)),
        Form('torch avg_pool2d', partial(F.avg_pool2d, **windows), 'mean'),
        Form('torch max_pool2d', partial(F.max_pool2d, **windows), 'max'),
    ], (x, ))


def segment_case(device: torch.device) -> Work:
    """Reduce the points of pillars of 0.2 m."""
    cells = torch.cat([
        F.pad((points[:, :2] / 0.2).floor().long(), (1, 0), value=sample)
        for sample, points in enumerate(lidar_points())])
    unique, index = cells.unique(dim=0, return_inverse=True)
    index, num = index.to(device), len(unique)
    x, p = features((len(index), 64), device), power(device)

    def mean(x: Tensor, p: Tensor) -> Tensor:
        return segment_generalized_mean(x, index, num, p)

    def amax(x: Tensor, p: Tensor) -> Tensor:
        return x.new_zeros(num, x.shape[1]).scatter_reduce(
            0, index[:, None].expand_as(x), x, 'amax')

    return Work([
        *stock(PYG, partial(stock_forms.power_mean_aggregation, index=index,
                            num_segments=num)),
        *ours(mean), Form(AMAX, amax, 'max', (x, ))
    ], (x, p), tolerance=2e-3)


def voxel_case(grid: dict[str, Any], device: torch.device) -> Work:
    """Voxelise two scans."""
    from mmcv.ops import voxelization
    arguments = grid.values()

    def mmcv(scans: list[Tensor]) -> tuple[Tensor, ...]:
        parts = [voxelization(points, *arguments) for points in scans]
        voxels, coors, counts = map(list, zip(*parts))
        coors = [F.pad(c, (1, 0), value=i) for i, c in enumerate(coors)]
        return torch.cat(voxels), torch.cat(coors), torch.cat(counts)

    def mine(scans: list[Tensor]) -> tuple[Tensor, ...]:
        return hard_voxelize(scans, *arguments)

    scans = [points.to(device) for points in lidar_points()]
    return Work([Form(MMCV, mmcv), Form(OURS, mine)], (scans, ))


def pillar_case(device: torch.device) -> Work:
    """Run both whole pillar nets on the pillars of two scans."""
    from mmdet3d.models.voxel_encoders import PillarFeatureNet

    from sigplug.models.voxel_encoders import GeMPillarFeatureNet
    arguments = dict(pillar_model().pts_voxel_encoder)
    del arguments['type']
    voxels, coors, counts = hard_voxelize(
        [points.to(device) for points in lidar_points()], **PILLARS)
    net = PillarFeatureNet(**arguments).to(device)
    mine = GeMPillarFeatureNet(**arguments, p=3.0).to(device)
    mine.load_state_dict(net.state_dict(), strict=False)

    def run(net: torch.nn.Module) -> Callable[..., Tensor]:
        # The nets write into their input.
        return lambda *args: net(args[0].clone(), *args[1:]).flatten(1)

    return Work([
        Form(MAXIMUM, run(net), 'max', tuple(net.parameters())),
        *ours(run(mine), leaves=tuple(mine.parameters()))
    ], (voxels, counts, coors))


def targets_case(num_boxes: int, device: torch.device) -> Work:
    """Compute the targets of four samples by both heads."""
    from mmdet3d.models.dense_heads import CenterHead as StockHead
    from mmdet3d.structures import LiDARInstance3DBoxes
    from mmengine.registry import DefaultScope
    from mmengine.structures import InstanceData

    from sigplug.models.dense_heads import CenterHead
    cfg = pillar_model()
    arguments = dict(cfg.pts_bbox_head, train_cfg=cfg.train_cfg.pts,
                     test_cfg=cfg.test_cfg.pts)
    del arguments['type']
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        head, mine = (kind(**arguments) for kind in (StockHead, CenterHead))
    samples = []
    for _ in range(4):
        boxes = torch.rand(num_boxes, 9, device=device)
        boxes[:, :2] = 100 * boxes[:, :2] - 50
        boxes[:, 2] -= 2
        boxes[:, 3:6] = 0.4 + boxes[:, 3:6] * boxes.new_tensor([8, 2.5, 3])
        samples.append(InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
            labels_3d=torch.randint(NUM_CLASSES, (num_boxes, ),
                                    device=device)))
    return Work([Form(MMDET3D, head.get_targets), *ours(mine.get_targets)],
                (samples, ))


LARGE, SMALL = (4, 256, *MAP), (8, 512, 16, 16)
LOSS_GOALS = (Goal(MMDET, at_least=8.0), Goal(COMPILED, at_least=1.5),
              Goal(OURS, at_least=1.0, form=OURS + EXACT))
CASES = (
    Case('clip_sigmoid, fp32, (4, 10, 128, 128)',
         partial(sigmoid_case, torch.float32)),
    Case('clip_sigmoid, bf16, (4, 10, 128, 128)',
         partial(sigmoid_case, torch.bfloat16), quick=False),
    *(Case(f'loss, clip=1e-4, (4, 10, {side}, {side})',
           partial(loss_case, side), LOSS_GOALS, quick=side == 128)
      for side in (128, 180)),
    Case(f'GeM, trained p, {LARGE}', partial(gem_case, LARGE),
         (Goal(MMPRETRAIN, at_least=5.0), Goal(AVERAGE, at_most=2.2))),
    Case(f'GeM, trained p, {SMALL}', partial(gem_case, SMALL),
         (Goal(MMPRETRAIN, at_least=3.5), ), quick=False),
    *(Case(f'gem_pool, p=3, {shape}, windows of {kernel}, stride {stride}',
           partial(window_case, shape, kernel, stride), (Goal(TEXTBOOK), ),
           quick=False)
      for shape in ((8, 64, *MAP), (2, 64, 64, 64))
      for kernel, stride in ((2, 2), (3, 1))),
    Case('GeM over the points of a pillar, 64 channels, trained p',
         segment_case, (Goal(PYG), Goal(AMAX))),
    *(Case(f'hard_voxelize, {name}', partial(voxel_case, grid),
           (Goal(MMCV), ))
      for name, grid in (('pillars of 0.2 m', PILLARS),
                         ('voxels of 0.075 m', VOXELS))),
    Case('pillar feature net, training', pillar_case,
         (Goal(MAXIMUM), )),
    *(Case(f'targets, 4 samples x {boxes} boxes, six tasks',
           partial(targets_case, boxes), (Goal(MMDET3D, at_least=goal), ))
      for boxes, goal in ((400, 20.0), (30, 5.0))),
)
