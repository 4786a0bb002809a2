"""The mathematics of sigplug in plain PyTorch.

Nothing of OpenMMLab is imported from here, so that
``from sigplug.ops import clip_sigmoid`` works in any PyTorch project.
"""
from importlib.util import find_spec

if find_spec('torch') is None:
    raise ImportError('sigplug.ops needs PyTorch: pip install torch')

from .backends import available_backends
from .center_targets import CenterTargets, center_targets, covered_cells
from .clip_sigmoid import clip_sigmoid
from .gaussian_focal_loss import gaussian_focal_loss_with_logits
from .gaussian_heatmap import gaussian_heatmap, gaussian_radius
from .gem_pool import gem_pool
from .generalized_mean import generalized_mean
from .hard_voxelize import hard_voxelize
from .segment_generalized_mean import segment_generalized_mean

__all__ = [
    'CenterTargets', 'available_backends', 'center_targets', 'clip_sigmoid',
    'covered_cells', 'gaussian_focal_loss_with_logits', 'gaussian_heatmap',
    'gaussian_radius', 'gem_pool', 'generalized_mean', 'hard_voxelize',
    'segment_generalized_mean'
]
