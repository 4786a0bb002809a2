"""One small data set for all tests that only read it."""
from pathlib import Path

import pytest

from sigplug.datasets import GeneratorConfig, generate_synthetic_nuscenes

SMALL = GeneratorConfig(
    samples_per_scene=8, scenes=('scene-0061', 'scene-0103'))


@pytest.fixture(scope='session')
def data_root(tmp_path_factory) -> Path:
    """Data set of one training and one validation scene."""
    root = tmp_path_factory.mktemp('datasets') / 'synthetic'
    assert generate_synthetic_nuscenes(root, SMALL)
    return root


@pytest.fixture(scope='session')
def nusc(data_root):
    """The data set, opened by the official devkit."""
    nuscenes = pytest.importorskip('nuscenes')
    return nuscenes.NuScenes('v1.0-mini', str(data_root), verbose=False)
