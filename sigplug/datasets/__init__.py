"""Embedded data: a synthetic LiDAR data set in the nuScenes format."""
from .synthetic import (
    DIFFICULTIES,
    SCENES,
    GeneratorConfig,
    TargetFolderError,
    generate_synthetic_nuscenes,
)

__all__ = [
    'DIFFICULTIES', 'SCENES', 'GeneratorConfig', 'TargetFolderError',
    'generate_synthetic_nuscenes'
]
