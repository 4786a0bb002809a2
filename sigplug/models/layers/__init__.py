"""Activation and pooling layers."""
from .clip_sigmoid import ClipSigmoid
from .gem import GeM
from .gem_context import GeMContext
from .gem_of_sets import SegmentGeM, TokenGeM

__all__ = ['ClipSigmoid', 'GeM', 'GeMContext', 'SegmentGeM', 'TokenGeM']
