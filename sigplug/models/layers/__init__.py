"""Activation and pooling layers."""
from .clip_sigmoid import ClipSigmoid
from .gem import GeM

__all__ = ['ClipSigmoid', 'GeM']
