"""Necks."""
from .gem_neck import GeMNeck
from .gem_pyramid import GeMPyramid

__all__ = ['GeMNeck', 'GeMPyramid']
