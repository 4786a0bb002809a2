"""Heatmap heads, built on mmdet's and mmdet3d's."""
from sigplug.registry import register_unavailable

try:
    from .center_head import CenterHead
    from .monoflex_head import MonoFlexHead
    from .smoke_head import SMOKEMono3DHead
# mmdet3d asserts the versions of its dependencies.
except (ImportError, AssertionError) as error:
    # To a type checker the name stays the class.
    for name in ('CenterHead', 'MonoFlexHead', 'SMOKEMono3DHead'):
        globals()[name] = register_unavailable(name, error)
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
    'CornerHead', 'MonoFlexHead', 'SMOKEMono3DHead'
]
