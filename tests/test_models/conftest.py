"""What each test of this folder starts from."""
import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True, scope='package')
def default_scope():
    """That of the configs, whatever a runner in another test has set."""
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        yield
