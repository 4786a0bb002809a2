"""Run the tests of this folder in the scope of the configs."""
import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True, scope='package')
def default_scope():
    """Set it, whatever a runner in another test has set."""
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        yield
