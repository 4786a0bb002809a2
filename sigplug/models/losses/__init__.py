"""Losses."""
from .gaussian_focal_loss import GaussianFocalLossWithLogits

__all__ = ['GaussianFocalLossWithLogits']
