"""Kernels for CUDA, with the signatures and results of the plain forms.

float16, bfloat16 and float32 tensors; the arithmetic is in float32. Nothing
waits for the device.
"""
from .clip_sigmoid import clip_sigmoid_backward, clip_sigmoid_forward
from .gaussian_focal_loss import (
    gaussian_focal_loss_backward,
    gaussian_focal_loss_forward,
    gaussian_focal_loss_sums,
)
from .gaussian_heatmap import gaussian_heatmap
from .power_mean import power_mean_backward, power_mean_forward

__all__ = [
    'clip_sigmoid_backward', 'clip_sigmoid_forward',
    'gaussian_focal_loss_backward', 'gaussian_focal_loss_forward',
    'gaussian_focal_loss_sums', 'gaussian_heatmap', 'power_mean_backward',
    'power_mean_forward'
]
