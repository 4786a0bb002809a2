"""Hooks of mmengine's Runner."""
from .check_loss import CheckLossHook
from .heatmap_saturation import HeatmapSaturationHook

__all__ = ['CheckLossHook', 'HeatmapSaturationHook']
