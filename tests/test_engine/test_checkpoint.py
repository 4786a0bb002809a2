"""Checkpoints that a real Runner wrote are read; harmful ones do not run."""
import os
import pickletools
import zipfile

import numpy as np
import pytest
import torch
from conftest import Call
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from toy_training import make_runner

from sigplug.engine import checkpoint as checkpoint_module
from sigplug.engine.checkpoint import (
    allowed_globals,
    load_safely,
    read_checkpoint,
)
from sigplug.errors import UserError


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    """A run with everything that mmengine stores beside weights.

    Schedules, EMA, a best score, nested metainfo.
    """
    work_dir = tmp_path_factory.mktemp('toy')
    metainfo = Config(dict(m=dict(classes=['a'], mapping=dict(a=1)))).m
    make_runner(
        work_dir,
        hook=dict(type='CheckpointHook', max_keep_ckpts=2),
        metainfo=metainfo,
        param_scheduler=[
            dict(type='OneCycleLR', eta_max=0.1, total_steps=4,
                 by_epoch=False),
            dict(type='ReduceOnPlateauLR', monitor='toy/score'),
            dict(type='CosineAnnealingMomentum', T_max=2, by_epoch=True)
        ],
        custom_hooks=[dict(type='EMAHook')]).train()
    return work_dir / 'epoch_2.pth'


@pytest.fixture(params=['of torch', 'for old torch'])
def reader(request, monkeypatch):
    """Also the reader for torch before 2.6, with the torch that is here."""
    if request.param == 'for old torch':
        monkeypatch.setattr(checkpoint_module, 'HAS_ALLOW_LIST', False)


def test_reads_what_mmengine_wrote(path, reader):
    loaded = load_safely(path)
    reference = torch.load(path, weights_only=False)
    for key, value in reference['state_dict'].items():
        assert torch.equal(loaded['state_dict'][key], value)
    losses, expected = (
        checkpoint['message_hub']['log_scalars']['train/loss']
        for checkpoint in (loaded, reference))
    assert type(losses) is HistoryBuffer and len(losses.data[0]) == 2
    for values, wanted in zip(losses.data, expected.data, strict=True):
        assert type(values) is np.ndarray and values.dtype == wanted.dtype
        np.testing.assert_array_equal(values, wanted)
    assert losses.statistics('mean') == expected.statistics('mean')
    info = loaded['message_hub']['runtime_info']
    assert info['best_score'] == (
        reference['message_hub']['runtime_info']['best_score'])
    mapping = loaded['meta']['dataset_meta']['mapping']
    assert type(mapping) is ConfigDict and mapping == dict(a=1)
    assert loaded['param_schedulers'][0]['anneal_func'] is \
        reference['param_schedulers'][0]['anneal_func']


def globals_in(path):
    """Return the names in a checkpoint that torch does not know."""
    from torch._weights_only_unpickler import _get_allowed_globals
    with zipfile.ZipFile(path) as file:
        data, = (file.read(name) for name in file.namelist()
                 if name.endswith('data.pkl'))
    names = {arg.replace(' ', '.').replace('__builtin__', 'builtins')
             for op, arg, _ in pickletools.genops(data) if op.name == 'GLOBAL'}
    # Torch before 2.2 does not list the first one.
    return names - {'_codecs.encode'} - set(_get_allowed_globals())


def test_allows_nothing_that_mmengine_does_not_write(path):
    """Names that a checkpoint could use agree with those in a real one."""
    # A name without a dot stands in no checkpoint.
    allowed = {name for name in allowed_globals() if '.' in name}
    assert {name.replace('numpy._core', 'numpy.core') for name in allowed} == {
        name.replace('numpy._core', 'numpy.core') for name in globals_in(path)}


def rewrite(source, target, change):
    """Copy a checkpoint with another pickle inside."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w') as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(
                name, change(data) if name.endswith('data.pkl') else data)
    return target


@pytest.mark.parametrize('core', [b'numpy.core', b'numpy._core'])
def test_reads_what_either_numpy_wrote(path, tmp_path, core):
    """numpy 1 and 2 name the module of their functions differently."""

    def change(data):
        for own in (b'numpy.core', b'numpy._core'):
            data = data.replace(b'c' + own + b'.multiarray\n',
                                b'c' + core + b'.multiarray\n')
        return data

    other = rewrite(path, tmp_path / 'other.pth', change)
    assert f'{core.decode()}.multiarray._reconstruct' in globals_in(other)
    losses = load_safely(other)['message_hub']['log_scalars']['train/loss']
    assert losses.data[0].dtype == np.float64


def attacks(marker):
    """Pickles that do harm when they are trusted."""
    return dict(
        system=Call(os.system, f'touch {marker}'),
        module_globals=Call(getattr, HistoryBuffer.update, '__globals__'),
        # An array of "objects" from raw bytes: pointers of one's choice.
        pointers=Call(np.ndarray, (1, ), 'O', bytearray(8)))


@pytest.mark.parametrize('name', attacks(''))
def test_malicious_checkpoint_does_not_run(tmp_path, reader, name):
    marker, path = tmp_path / 'marker', tmp_path / 'bad.pth'
    torch.save(dict(state_dict={}, meta=attacks(marker)[name]), path)
    with pytest.raises(Exception, match='(?i)unsupported|may not|cannot be'):
        load_safely(path)
    assert not marker.exists()


def test_checkpoint_does_not_change_a_function(tmp_path, reader):
    """Which is no call, and so no matter of the names alone."""
    torch.save({}, tmp_path / 'good.pth')
    # The function, a dict with a=1, and BUILD.
    path = rewrite(
        tmp_path / 'good.pth', tmp_path / 'bad.pth',
        lambda _: b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n'
        b'}X\x01\x00\x00\x00aK\x01sb.')
    with pytest.raises(Exception, match='(?i)may not change|can only build'):
        load_safely(path)
    assert not hasattr(torch._utils._rebuild_tensor_v2, 'a')


@pytest.mark.parametrize('content, words', [
    (b'PK', 'cannot be loaded. It is no checkpoint, or damaged'),
    (None, 'cannot be loaded. It is no checkpoint, or damaged'),
    (torch.ones(1), 'is no checkpoint, .* but a Tensor'),
    (attacks('x')['system'], 'holds posix.system, which torch does not trust'),
])
def test_unusable_file_is_named(path, tmp_path, content, words):
    file = tmp_path / 'file.pth'
    if content is None:
        # Cut off, which is seen without reading tensors.
        content = path.read_bytes()[:-100]
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    for mmap in (False, True):
        with pytest.raises(UserError, match=f'file.pth. {words}'):
            read_checkpoint(str(file), mmap=mmap)
        assert read_checkpoint(str(path), mmap=mmap)['meta']['epoch'] == 2
