"""Embedded data: a synthetic LiDAR data set in the nuScenes format."""
from .synthetic import (
    SCENES,
    GeneratorConfig,
    TargetFolderError,
    generate_synthetic_nuscenes,
)

__all__ = [
    'SCENES', 'GeneratorConfig', 'TargetFolderError',
    'generate_synthetic_nuscenes'
]
