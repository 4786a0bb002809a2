"""Activation and pooling layers."""
from .clip_sigmoid import ClipSigmoid
from .gem import GeM
from .gem_context import GeMContext

__all__ = ['ClipSigmoid', 'GeM', 'GeMContext']
