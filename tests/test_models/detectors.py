"""A small detector of the stack, features, and mmpretrain's GeM."""
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

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


def mmpretrain_gem() -> ModuleType:
    """Of mmpretrain's neck, without the package, which needs torchvision.

    The packages stay: mmengine knows a scope once and for all.
    """
    root, = find_spec('mmpretrain').submodule_search_locations
    for name in ('', '.models', '.models.necks'):
        if f'mmpretrain{name}' not in sys.modules:
            package = ModuleType(f'mmpretrain{name}')
            package.__path__ = [root + name.replace('.', '/')]
            sys.modules[package.__name__] = package
    return import_module('mmpretrain.models.necks.gem')
