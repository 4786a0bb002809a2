"""Heatmap heads, built on mmdet's and mmdet3d's."""
from sigplug.registry import register_unavailable

try:
    from .center_head import CenterHead
# mmdet3d asserts the versions of what it stands on.
except (ImportError, AssertionError) as error:
    CenterHead = register_unavailable('CenterHead', error)
try:
    from .heatmap_heads import (
        CenterNetHead,
        CenterNetUpdateHead,
        CentripetalHead,
        CornerHead,
    )
except (ImportError, AssertionError) as error:
    CenterNetHead, CenterNetUpdateHead, CentripetalHead, CornerHead = (
        register_unavailable(name, error, 'mmdet') for name in (
            'CenterNetHead', 'CenterNetUpdateHead', 'CentripetalHead',
            'CornerHead'))

__all__ = [
    'CenterHead', 'CenterNetHead', 'CenterNetUpdateHead', 'CentripetalHead',
    'CornerHead'
]
