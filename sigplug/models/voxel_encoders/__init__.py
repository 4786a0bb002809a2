"""Voxel encoders, built on mmdet3d's."""
from sigplug.registry import register_unavailable

try:
    from .gem_dynamic_encoders import GeMDynamicPillarFeatureNet, GeMDynamicVFE
    from .gem_pillar_feature_net import GeMPillarFeatureNet
    from .point_pillars_scatter import PointPillarsScatter
# mmdet3d asserts the versions of its dependencies.
except (ImportError, AssertionError) as error:
    for name in ('GeMDynamicPillarFeatureNet', 'GeMDynamicVFE',
                 'GeMPillarFeatureNet', 'PointPillarsScatter'):
        # To a type checker the name stays the class.
        globals()[name] = register_unavailable(name, error)

__all__ = [
    'GeMDynamicPillarFeatureNet', 'GeMDynamicVFE', 'GeMPillarFeatureNet',
    'PointPillarsScatter'
]
