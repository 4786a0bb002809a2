"""Generator of a synthetic LiDAR data set in the nuScenes format.

A street scene is made up (:mod:`scenario`), scanned by a ray-cast LiDAR
(:mod:`scene`, :mod:`lidar`), and written (:mod:`generator`) as nuScenes tables
(:mod:`tables`) and mmdet3d info files (:mod:`infos`).
"""
from .config import DIFFICULTIES, SCENES, GeneratorConfig
from .generator import generate_synthetic_nuscenes

__all__ = [
    'DIFFICULTIES', 'SCENES', 'GeneratorConfig', 'generate_synthetic_nuscenes']
