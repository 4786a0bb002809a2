"""One small data set for all tests that only read it."""
import sys
from pathlib import Path

import pytest
from conftest import TOOLS

# As for the tool that is run, whose folder comes first.
sys.path.insert(0, str(TOOLS / 'dataset_converters'))
from synthetic_nuscenes import (  # noqa: E402
    GeneratorConfig,
    generate_synthetic_nuscenes,
)

SMALL = GeneratorConfig(
    samples_per_scene=6, scenes=('scene-0061', 'scene-0103'))


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
