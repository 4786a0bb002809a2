"""Hooks of mmengine's Runner."""
from .heatmap_saturation import HeatmapSaturationHook

__all__ = ['HeatmapSaturationHook']
