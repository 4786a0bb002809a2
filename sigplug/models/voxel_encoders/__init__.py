"""Voxel encoders, built on mmdet3d's."""
from sigplug.registry import register_unavailable

try:
    from .gem_dynamic_encoders import GeMDynamicPillarFeatureNet, GeMDynamicVFE
    from .gem_pillar_feature_net import GeMPillarFeatureNet
# mmdet3d asserts the versions of what it stands on.
except (ImportError, AssertionError) as error:
    GeMDynamicPillarFeatureNet = register_unavailable(
        'GeMDynamicPillarFeatureNet', error)
    GeMDynamicVFE = register_unavailable('GeMDynamicVFE', error)
    GeMPillarFeatureNet = register_unavailable('GeMPillarFeatureNet', error)

__all__ = [
    'GeMDynamicPillarFeatureNet', 'GeMDynamicVFE', 'GeMPillarFeatureNet'
]
