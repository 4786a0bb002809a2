"""Hooks of mmengine's Runner."""
from .checkpoint import CheckpointHook
from .checkpoint_fit import CheckpointFitHook
from .heatmap_saturation import HeatmapSaturationHook

__all__ = ['CheckpointFitHook', 'CheckpointHook', 'HeatmapSaturationHook']
