"""Heatmap heads, built on mmdet3d's."""
from sigplug.registry import register_unavailable

try:
    from .center_head import CenterHead
# mmdet3d asserts the versions of what it stands on.
except (ImportError, AssertionError) as error:
    CenterHead = register_unavailable('CenterHead', error)

__all__ = ['CenterHead']
