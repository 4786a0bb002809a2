"""Exported detectors with numpy and onnxruntime alone.

This folder is also the reference for a port to another language: each step
from points to boxes is one function.
"""
from .detector import Detections, Detector
from .points import read_points

__all__ = ['Detections', 'Detector', 'read_points']
