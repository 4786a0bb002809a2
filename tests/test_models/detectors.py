"""Small detectors of the stack, and images that they learn from."""
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import import_modules_from_strings
from torch import Tensor, nn

CONFIGS = Path(__file__).parents[2] / 'configs'


def retinanet(name: str | None = None) -> nn.Module:
    """The RetinaNet of a sample config, or mmdet's, with few channels."""
    import_modules_from_strings(['mmdet.models'])
    cfg = (Config.fromfile(CONFIGS / name) if name else get_config(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')).model
    cfg.backbone.update(
        base_channels=4, stem_channels=4, frozen_stages=-1, init_cfg=None,
        norm_eval=False)
    for neck in cfg.neck if isinstance(cfg.neck, list) else [cfg.neck]:
        if neck.type == 'FPN':
            neck.update(in_channels=[16, 32, 64, 128], out_channels=16)
    cfg.bbox_head.update(
        num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(cfg)


def features(*shape: int) -> Tensor:
    """Noise, the same for each test."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def centerpoint(pts_neck: dict | None = None) -> nn.Module:
    """The small CenterPoint of the quickstart with another neck."""
    cfg = Config.fromfile(
        CONFIGS / '_base_/models/centerpoint_pillar04_second_secfpn_nus.py')
    import_modules_from_strings(['mmdet3d.models'])
    model = cfg.model
    if pts_neck is not None:
        model.pts_neck = pts_neck
    model.pts_bbox_head.in_channels = 96
    # A quarter of the range.
    model.pts_middle_encoder.output_shape = (64, 64)
    area = [-12.8, -12.8, -5.0, 12.8, 12.8, 3.0]
    model.data_preprocessor.voxel_layer.point_cloud_range = area
    model.pts_voxel_encoder.point_cloud_range = area
    model.pts_bbox_head.bbox_coder.pc_range = area[:2]
    model.train_cfg.pts.update(point_cloud_range=area, grid_size=[64, 64, 1])
    model.test_cfg.pts.update(pc_range=area[:2])
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        return MODELS.build(model)
