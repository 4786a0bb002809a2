"""The parts of a detector that are exported, as modules of their own."""
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from sigplug.deploy import pillars
from sigplug.errors import UserError

# The maps that a task of CenterHead may predict, in the order of its losses.
BRANCHES = ('heatmap', 'reg', 'height', 'dim', 'rot', 'vel')


def sizes_of(divisor: int, step: int = 0) -> tuple[int, int]:
    """Return a height and width: odd multiples of the divisor."""
    factor = max(64 // divisor, 1) | 1
    return divisor * (factor + step), divisor * (factor + 2 + 3 * step)


class DensePart(nn.Module):
    """Backbone, neck and head of a detector, without its decoder.

    ``outputs`` is ``'logits'`` or ``'probability'``, which is in the heatmaps;
    or ``'boxes'``, decoded.
    """

    input_name = 'image'
    axes = {0: 'batch', 2: 'height', 3: 'width'}

    def __init__(self, backbone: nn.Module, neck: nn.Module | None,
                 head: nn.Module, outputs: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.outputs = outputs

    @property
    def in_channels(self) -> int:
        return next(layer.in_channels for layer in self.backbone.modules()
                    if isinstance(layer, nn.Conv2d))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps by name, heatmaps first, or the boxes."""
        # Input and outputs stay float32 where the model is float16.
        x = self.backbone(x.to(next(self.parameters()).dtype))
        if self.neck is not None:
            x = self.neck(x)
        maps = {name: y.float() for name, y in self.predict(x).items()}
        if self.outputs == 'probability':
            for name in maps:
                if name.endswith('heatmap'):
                    maps[name] = maps[name].sigmoid()
        return self.decode(maps) if self.outputs == 'boxes' else maps

    def predict(self, x: Any) -> dict[str, Tensor]:
        """Return the maps of the head, with logits as heatmaps."""
        raise NotImplementedError

    def decode(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        raise UserError(f'--decode: {type(self.head).__name__} has no decoder '
                        'that this tool knows; CenterHead has.')

    def find_divisor(self) -> int:
        """Return the number that divides all heights and widths.

        Levels of different strides only meet again where each of them divides
        evenly.
        """
        self.divisor = 1
        while True:
            try:
                self(torch.zeros(
                    1, self.in_channels, *sizes_of(self.divisor)))
                return self.divisor
            except RuntimeError:
                if self.divisor == 128:
                    raise
                self.divisor *= 2

    def sample(self, batch: int, step: int) -> tuple[Tensor, dict]:
        """Return a random input and what the model makes of it."""
        x = torch.randn(batch, self.in_channels, *sizes_of(self.divisor, step),
                        generator=torch.Generator().manual_seed(step))
        return x, self(x)

    def describe(self, cfg: Config, checkpoint: dict) -> dict[str, Any]:
        """Return the metadata that a decoder needs."""
        known = cfg.model.get('data_preprocessor') or {}
        return dict(
            classes=(checkpoint.get('meta') or {}).get(
                'dataset_meta', {}).get('classes'),
            **{key: known.get(key) for key in ('mean', 'std', 'bgr_to_rgb')})


class CenterPointPart(DensePart):
    """The dense part of mmdet3d's CenterPoint, from the map of features."""

    input_name = 'spatial_features'

    def prefix(self, task: int) -> str:
        """Return what the names of a task start with, if there are more."""
        return f'task{task}.' if len(self.head.task_heads) > 1 else ''

    def predict(self, x: Any) -> dict[str, Tensor]:
        return {f'{self.prefix(i)}{branch}': maps[branch]
                for i, (maps, ) in enumerate(self.head(x))
                for branch in BRANCHES if branch in maps}

    def decode(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        from sigplug.models.dense_heads.center_decoding import decode
        head = self.head
        found = decode(
            [{name: maps[self.prefix(i) + name] for name in BRANCHES
              if self.prefix(i) + name in maps}
             for i in range(len(head.task_heads))],
            head.bbox_coder, head.norm_bbox)
        outputs, first = {}, 0
        for i, classes in enumerate(head.class_names):
            outputs |= {self.prefix(i) + name: value for name, value in dict(
                boxes=found.boxes[:, i], scores=found.scores[:, i],
                labels=found.labels[:, i].long() - first).items()}
            first += len(classes)
        return outputs

    def describe(self, cfg: Config, checkpoint: dict) -> dict[str, Any]:
        coder = self.head.bbox_coder
        voxels = (cfg.model.get('data_preprocessor') or {}).get(
            'voxel_layer') or {}
        return dict(
            tasks=self.head.class_names,
            voxel_size=voxels.get('voxel_size', coder.voxel_size),
            point_cloud_range=voxels.get('point_cloud_range', coder.pc_range),
            out_size_factor=coder.out_size_factor,
            norm_bbox=self.head.norm_bbox)


class CenterNetPart(DensePart):
    """A model with mmdet's ``CenterNetHead``, which has one level."""

    def predict(self, x: Any) -> dict[str, Tensor]:
        x, = x
        # The stock head applies the sigmoid in its forward.
        return dict(
            heatmap=self.head.heatmap_head(x),
            wh=self.head.wh_head(x),
            offset=self.head.offset_head(x))


class CenterNetUpdatePart(DensePart):
    """A model with mmdet's ``CenterNetUpdateHead``, of several levels."""

    def predict(self, x: Any) -> dict[str, Tensor]:
        maps = {}
        for i, (logits, box) in enumerate(zip(*self.head(x))):
            maps |= {f'level{i}.heatmap': logits, f'level{i}.box': box}
        return maps

    def describe(self, cfg: Config, checkpoint: dict) -> dict[str, Any]:
        return dict(
            super().describe(cfg, checkpoint),
            strides=[list(stride)
                     for stride in self.head.prior_generator.strides])


def dense_part(model: nn.Module, outputs: str) -> DensePart:
    from mmdet.models.dense_heads import CenterNetHead, CenterNetUpdateHead
    parts = {CenterNetHead: CenterNetPart,
             CenterNetUpdateHead: CenterNetUpdatePart}
    prefix = ''
    if hasattr(model, 'pts_bbox_head'):
        from mmdet3d.models.dense_heads import CenterHead
        prefix, parts = 'pts_', {CenterHead: CenterPointPart}
        for name in ('img_backbone', 'pts_fusion_layer'):
            if hasattr(model, name):
                raise UserError(
                    f'The model has {name}: the exported parts take points '
                    'alone, and would miss what images add.')
    backbone, neck, head = (getattr(model, prefix + name, None)
                            for name in ('backbone', 'neck', 'bbox_head'))
    kind = next((part for head_type, part in parts.items()
                 if isinstance(head, head_type)), None)
    if kind is None:
        raise UserError(
            f'{type(model).__name__} with the head {type(head).__name__} has '
            'no dense part that this tool knows. It exports CenterPoint with '
            "a CenterHead (mmdet3d's or sigplug's), and image detectors with "
            'a CenterNetHead or a CenterNetUpdateHead.')
    part = kind(backbone, neck, head, outputs).eval()
    refuse_deformable_convolution(part)
    return part


def refuse_deformable_convolution(part: nn.Module) -> None:
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
    names = [name for name, layer in part.named_modules()
             if isinstance(layer, (DeformConv2d, ModulatedDeformConv2d))]
    if names:
        raise UserError(
            f'{names[0]} is a deformable convolution, which ONNX runtimes '
            'lack. Train a model without, e.g. with separate_head=dict('
            "type='SeparateHead', ...) instead of DCNSeparateHead, or with "
            'use_dcn=False in CTResNetNeck.')


class PillarEncoder(nn.Module):
    """The layers of a pillar encoder, on features that are decorated.

    A normalisation is part of its linear layer. Which rows are padding shows
    in the features: their values are all 0. The first row never is padding.
    """

    input_name = 'input_features'
    axes = {0: 'pillars'}
    divisor = 1

    def __init__(self, stock: nn.Module, max_points: int) -> None:
        super().__init__()
        # Not as a module of this one, whose parameters are exported.
        self.stock = [stock]
        self.max_points = max_points
        self.linears = nn.ModuleList(
            fuse_linear_bn_eval(layer.linear, layer.norm)
            for layer in stock.pfn_layers)
        # Constants, which a trained power must not be a parameter for.
        powers = [layer.gem.power() if hasattr(layer, 'gem') else None
                  for layer in stock.pfn_layers]
        self.powers = [p.detach() if isinstance(p, Tensor) else p
                       for p in powers]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Reduce the points ``(N, M, C)`` of each pillar to ``(N, 1, C)``."""
        real = (x != 0).any(dim=2, keepdim=True)
        real = torch.cat([torch.ones_like(real[:, :1]), real[:, 1:]], 1)
        for linear, layer, p in zip(
                self.linears, self.stock[0].pfn_layers, self.powers):
            x = linear(x).relu()
            if p is not None:
                y = pool_rows(x, real, p, layer.gem.eps)
            # mmdet3d's layer counts the padding in.
            elif layer.mode == 'max':
                y = x.amax(dim=1, keepdim=True)
            else:
                y = x.sum(1, keepdim=True) / real.float().sum(1, keepdim=True)
            x = torch.cat([x, y.expand_as(x)], dim=2)
            if p is not None:
                x = x * real
        return dict(pillar_features=y)

    @property
    def num_columns(self) -> int:
        return self.stock[0].in_channels - pillars.count_added(self.describe())

    def describe(self) -> dict[str, Any]:
        """Return the arguments of ``sigplug.deploy.pillars.decorate``."""
        stock = self.stock[0]
        return dict(
            {f'with_{name}': bool(getattr(stock, f'_with_{name}'))
             for name in ('cluster_center', 'voxel_center', 'distance')},
            legacy=bool(stock.legacy),
            voxel_size=[stock.vx, stock.vy, stock.vz],
            offset=[stock.x_offset, stock.y_offset, stock.z_offset])

    def sample(self, batch: int, step: int) -> tuple[Tensor, dict]:
        """Return random features and what the stock encoder makes of them."""
        about, stock = self.describe(), self.stock[0]
        random = np.random.default_rng(step)
        shape = batch * (100 + step), self.max_points
        voxels = random.standard_normal(
            (*shape, self.num_columns), dtype=np.float32)
        counts = random.integers(1, 1 + self.max_points, shape[0])
        voxels *= (np.arange(self.max_points) < counts[:, None])[:, :, None]
        cells = random.integers(0, 9, (shape[0], 3))
        x = pillars.decorate(voxels, cells, counts, about)
        wanted = stock(*map(torch.from_numpy, (
            voxels, counts, np.pad(cells, ((0, 0), (1, 0))))))
        return torch.from_numpy(x), dict(
            pillar_features=wanted.view(shape[0], 1, -1))


def pool_rows(x: Tensor, real: Tensor, p: float | Tensor,
              eps: float) -> Tensor:
    """Return the generalised mean of the rows that are real.

    ``sigplug.ops.generalized_mean`` without its care for infinite inputs, in
    operations that runtimes vectorise: the encoder takes 0.6 of the time that
    it takes with that (41 and 67 ms in onnxruntime, on one core).
    """
    x = x.clamp(min=eps) * real
    top = x.amax(dim=1, keepdim=True)
    if not isinstance(p, Tensor) and p == float('inf'):
        return top
    mean = ((x / top).log() * p).exp().sum(
        1, keepdim=True) / real.float().sum(1, keepdim=True)
    return top * (mean.log() / p).exp()


def pillar_encoder(model: nn.Module) -> PillarEncoder:
    """Return the pillar encoder of a CenterPoint; refuse other models."""
    from mmdet3d.models import PillarFeatureNet, PointPillarsScatter

    from sigplug.models.voxel_encoders import GeMPillarFeatureNet
    middle, stock = model.pts_middle_encoder, model.pts_voxel_encoder
    hint = ' --out FILE.onnx exports backbone, neck and head alone.'
    if not isinstance(middle, PointPillarsScatter):
        raise UserError(
            f'pts_middle_encoder is {type(middle).__name__}: sparse '
            'convolution is no operator of ONNX, and a model of pillars has '
            f'PointPillarsScatter.{hint}')
    if type(stock) not in (PillarFeatureNet, GeMPillarFeatureNet):
        raise UserError(
            f'pts_voxel_encoder is {type(stock).__name__}: this tool exports '
            f'PillarFeatureNet and GeMPillarFeatureNet.{hint}')
    for layer in stock.pfn_layers:
        if not isinstance(layer.norm, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f'pts_voxel_encoder has a {type(layer.norm).__name__}: only '
                "a batch normalisation, norm_cfg=dict(type='BN1d'), becomes "
                f'part of its linear layer.{hint}')
    preprocessor = model.data_preprocessor
    if not preprocessor.voxel or preprocessor.voxel_type != 'hard':
        raise UserError('data_preprocessor has no hard voxels, voxel=True and '
                        f"voxel_type='hard', which pillars need here.{hint}")
    return PillarEncoder(
        stock, preprocessor.voxel_layer.max_num_points).eval()
