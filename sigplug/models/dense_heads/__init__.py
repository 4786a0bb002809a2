"""Heatmap heads, built on mmdet's and mmdet3d's."""
from sigplug.registry import register_unavailable

try:
    from .center_head import CenterHead
# mmdet3d asserts the versions of its dependencies.
except (ImportError, AssertionError) as error:
    # To a type checker the name stays the class.
    globals()['CenterHead'] = register_unavailable('CenterHead', error)
try:
    from .heatmap_heads import (
        CenterNetHead,
        CenterNetUpdateHead,
        CentripetalHead,
        CornerHead,
    )
except (ImportError, AssertionError) as error:
    for name in ('CenterNetHead', 'CenterNetUpdateHead', 'CentripetalHead',
                 'CornerHead'):
        globals()[name] = register_unavailable(name, error, 'mmdet')

__all__ = [
    'CenterHead', 'CenterNetHead', 'CenterNetUpdateHead', 'CentripetalHead',
    'CornerHead'
]
