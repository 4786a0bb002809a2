"""Hooks of mmengine's Runner."""
from .check_loss import CheckLossHook
from .checkpoint import CheckpointHook
from .checkpoint_fit import CheckpointFitHook
from .heatmap_saturation import HeatmapSaturationHook

__all__ = [
    'CheckLossHook', 'CheckpointFitHook', 'CheckpointHook',
    'HeatmapSaturationHook'
]
