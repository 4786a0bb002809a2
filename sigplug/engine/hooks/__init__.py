"""Hooks of mmengine's Runner."""
from .accelerate import AccelerateHook
from .bev_image import BEVImageHook
from .check_loss import CheckLossHook
from .checkpoint import CheckpointHook
from .checkpoint_fit import CheckpointFitHook
from .gem_power import GeMPowerHook
from .heatmap_image import HeatmapImageHook
from .heatmap_saturation import HeatmapSaturationHook
from .live_look import LiveLookHook

__all__ = [
    'AccelerateHook', 'BEVImageHook', 'CheckLossHook', 'CheckpointFitHook',
    'CheckpointHook', 'GeMPowerHook', 'HeatmapImageHook',
    'HeatmapSaturationHook', 'LiveLookHook'
]
