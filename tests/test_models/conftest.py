"""What each test of this folder starts from."""
import pytest
import torch
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True, scope='package')
def default_scope():
    """That of the configs, whatever a runner in another test has set."""
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        yield


@pytest.fixture(autouse=True, scope='package')
def one_thread():
    """On small tensors a second thread only costs, most so when busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
