"""What the fixes change outside sigplug, and what they leave alone."""
import importlib
import os
import pickle
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import mmcv
import mmdet
import numpy as np
import pytest
import torch
from conftest import Call
from mmengine.runner import CheckpointLoader
from toy_training import make_runner

from sigplug.engine.upstream_fixes import (
    allow_mmengine_checkpoints,
    import_mmdet3d_beside_onedl,
    load_checkpoints_safely,
    supply_numpy_long,
    train_spconv_on_cpu,
)
from sigplug.errors import UserError

serialization = torch.serialization


@pytest.mark.skipif(not hasattr(serialization, 'get_safe_globals'),
                    reason='older torch has no allow-list')
def test_torch_reads_checkpoints_once_they_are_allowed(tmp_path):
    make_runner(tmp_path, epochs=1).train()
    before = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    try:
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
        allow_mmengine_checkpoints()
        torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and its address."""
    folder = tmp_path / 'served'
    folder.mkdir()
    monkeypatch.setattr(CheckpointLoader, '_schemes',
                        CheckpointLoader._schemes.copy())
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.mark.parametrize('remote', [False, True])
def test_mmengine_loads_safely(tmp_path, served, remote):
    """From a file and, where torch's hub would trust it, from a URL."""
    folder, url = served
    place = url if remote else folder
    torch.save(dict(state_dict=dict(a=torch.ones(2))), folder / 'good.pth')
    torch.save(dict(meta=Call(
        os.system, f'touch {tmp_path}/marker')), folder / 'bad.pth')
    load_checkpoints_safely()
    loaded = CheckpointLoader.load_checkpoint(f'{place}/good.pth', 'cpu')
    assert torch.equal(loaded['state_dict']['a'], torch.ones(2))
    with pytest.raises(UserError, match='bad.pth.* torch does not trust'):
        CheckpointLoader.load_checkpoint(f'{place}/bad.pth', 'cpu')
    assert not (tmp_path / 'marker').exists()


def test_numpy_has_the_long_of_old(monkeypatch):
    """With which mmdet3d 1.4.0 labels the objects that it pastes."""
    monkeypatch.delitem(vars(np), 'long', raising=False)
    supply_numpy_long()
    assert np.array([1], dtype=np.long).dtype == np.int64


@pytest.mark.parametrize('kind, options', [
    ('SubMConv3d', dict(padding=1)),
    ('SparseConv3d', dict(stride=2, padding=(0, 1, 1))),
    ('SparseConv3d', dict(kernel_size=(3, 1, 1), stride=(2, 1, 1))),
])
def test_sparse_convolution_is_dense_convolution(kind, options):
    """On a grid that is empty where no voxel is, forward and backward."""
    sparse = pytest.importorskip('spconv.pytorch', exc_type=ImportError)
    train_spconv_on_cpu()
    torch.manual_seed(0)
    shape = 5, 9, 11
    voxels = (torch.rand(2, *shape) < 0.3).nonzero()
    values = torch.randn(len(voxels), 4, requires_grad=True)
    options = dict(dict(kernel_size=3), **options)
    conv = getattr(sparse, kind)(4, 6, bias=False, **options)
    # It takes a tensor in another order for one in this order.
    out = conv(sparse.SparseConvTensor(
        values, voxels.int().contiguous(), list(shape), 2))
    del options['kernel_size']
    dense = torch.nn.functional.conv3d(
        torch.zeros(2, *shape, 4).index_put(
            tuple(voxels.T), values).permute(0, 4, 1, 2, 3),
        conv.weight.permute(0, 4, 1, 2, 3), **options)
    sample, *cell = out.indices.long().T
    expected = dense.permute(0, 2, 3, 4, 1)[(sample, *cell)]
    if kind == 'SparseConv3d':
        # Every cell that a voxel reaches.
        assert len(expected) == dense.ne(0).any(1).sum()
    torch.testing.assert_close(out.features, expected)
    weights = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(out.features, [values, conv.weight], weights),
        torch.autograd.grad(expected, [values, conv.weight], weights),
        rtol=1e-5, atol=1e-4)


def test_mmdet3d_beside_onedl(monkeypatch):
    monkeypatch.setattr(mmcv, '__version__', '2.3.6')
    monkeypatch.setattr(mmdet, '__version__', '3.5.1')
    monkeypatch.delitem(sys.modules, 'mmdet3d')
    with pytest.raises(AssertionError, match='MMCV==2.3.6 is used but incomp'):
        importlib.import_module('mmdet3d')
    import_mmdet3d_beside_onedl()
    assert importlib.import_module('mmdet3d').__name__ == 'mmdet3d'
    assert (mmcv.__version__, mmdet.__version__) == ('2.3.6', '3.5.1')
