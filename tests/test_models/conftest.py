"""Run the tests of this folder in the scope of the configs."""
import sys

import pytest
import torch
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True, scope='package')
def default_scope():
    """Set it, whatever a runner in another test has set."""
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        yield


@pytest.fixture
def no_peaks(monkeypatch):
    """Draw nothing: ``gaussian_heatmap`` may wait for a GPU."""
    def draw(centers, radii, labels, num_classes, size, **_):
        return torch.zeros(num_classes, *size, device=centers.device)

    # The module, which the function of the same name hides.
    monkeypatch.setattr(
        sys.modules['sigplug.ops.center_targets'], 'gaussian_heatmap', draw)
