"""Model parts.

The parts that need only mmengine are imported here; ``dense_heads``,
``voxel_encoders`` and ``data_preprocessors`` import mmdet and mmdet3d, and are
imported once a config asks for them.
"""
from .layers import ClipSigmoid, GeM, GeMContext, SegmentGeM, TokenGeM
from .losses import GaussianFocalLossWithLogits
from .necks import GeMNeck, GeMPyramid

__all__ = [
    'ClipSigmoid', 'GaussianFocalLossWithLogits', 'GeM', 'GeMContext',
    'GeMNeck', 'GeMPyramid', 'SegmentGeM', 'TokenGeM'
]
