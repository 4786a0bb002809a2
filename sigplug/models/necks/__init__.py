"""Necks."""
from .gem_neck import GeMNeck

__all__ = ['GeMNeck']
