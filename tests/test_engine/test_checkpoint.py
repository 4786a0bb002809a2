"""The allow-list, against checkpoints that a real Runner wrote."""
import os
import pickle
import pickletools
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from toy_training import ToyDataset, ToyModel

from sigplug.engine import checkpoint as checkpoint_module
from sigplug.engine.checkpoint import (
    allow_mmengine_checkpoints,
    load_safely,
    safe_loading,
)

serialization = torch.serialization
needs_allow_list = pytest.mark.skipif(
    not hasattr(serialization, 'get_unsafe_globals_in_checkpoint'),
    reason='torch < 2.6 reads checkpoints without an allow-list')


class ToyMetric(BaseMetric):
    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results.append(float(len(data_samples)))

    def compute_metrics(self, results):
        return dict(score=np.mean(results), count=len(results))


def make_runner(work_dir, **kwargs):
    """A run with everything mmengine stores: a schedule, EMA, a best score,
    nested metainfo."""
    metainfo = Config(dict(m=dict(classes=['a'], mapping=dict(a=1)))).m
    loader = dict(
        dataset=ToyDataset(metainfo=metainfo),
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True))
    return Runner(
        model=ToyModel(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        val_dataloader=loader,
        val_evaluator=[ToyMetric()],
        val_cfg=dict(),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=0.1), clip_grad=dict(max_norm=1)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
            dict(type='OneCycleLR', eta_max=0.1, total_steps=4,
                 by_epoch=False),
            dict(type='ReduceOnPlateauLR', monitor='toy/score'),
            dict(type='CosineAnnealingMomentum', T_max=2, by_epoch=True)
        ],
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', interval=1, max_keep_ckpts=2,
                save_best='toy/score', rule='greater')),
        custom_hooks=[dict(type='EMAHook')],
        randomness=dict(seed=0),
        log_level='ERROR',
        experiment_name=str(work_dir).replace('/', '_'),
        **kwargs)


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('toy')
    make_runner(work_dir).train()
    return work_dir


@pytest.fixture
def nothing_allowed():
    """An empty allow-list; the former one comes back afterwards."""
    before = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    yield
    serialization.clear_safe_globals()
    serialization.add_safe_globals(before)


@needs_allow_list
def test_nothing_is_allowed_by_torch_alone(work_dir, nothing_allowed):
    with pytest.raises(pickle.UnpicklingError):
        torch.load(work_dir / 'epoch_2.pth', weights_only=True)
    allow_mmengine_checkpoints()
    torch.load(work_dir / 'epoch_2.pth', weights_only=True)


def test_loads_what_mmengine_wrote(work_dir):
    """With every version of torch."""
    allow_mmengine_checkpoints()
    path = work_dir / 'epoch_2.pth'
    loaded = load_safely(path)

    reference = torch.load(path, weights_only=False)
    losses = loaded['message_hub']['log_scalars']['train/loss']
    expected = reference['message_hub']['log_scalars']['train/loss']
    assert type(losses) is HistoryBuffer
    for values, wanted in zip(losses.data, expected.data, strict=True):
        assert type(values) is np.ndarray and values.dtype == wanted.dtype
        np.testing.assert_array_equal(values, wanted)
    assert len(losses.data[0]) == 4
    assert losses.statistics('mean') == expected.statistics('mean')
    info = loaded['message_hub']['runtime_info']
    assert type(info['best_score']) is np.float64 and info['best_score'] == 2
    mapping = loaded['meta']['dataset_meta']['mapping']
    assert type(mapping) is ConfigDict and mapping == dict(a=1)
    one_cycle = loaded['param_schedulers'][1]
    assert one_cycle['anneal_func'] is \
        reference['param_schedulers'][1]['anneal_func']


@needs_allow_list
def test_allows_nothing_that_mmengine_does_not_write(work_dir,
                                                     nothing_allowed):
    """Names a checkpoint could use and names in real checkpoints agree."""
    written = set()
    for path in work_dir.glob('*.pth'):
        written |= set(
            serialization.get_unsafe_globals_in_checkpoint(str(path)))
    allow_mmengine_checkpoints()
    allowed = {
        item[1] if isinstance(item, tuple) else
        f'{item.__module__}.{item.__qualname__}'
        for item in serialization.get_safe_globals()
    }
    # Both names of numpy's module stand for the one in use.
    allowed = {name.replace('numpy._core', 'numpy.core') for name in allowed}
    written = {name.replace('numpy._core', 'numpy.core') for name in written}
    # The classes of the arrays' dtypes (pickle reaches them through
    # numpy.dtype), our own stand-in, and a name no pickle can form.
    unnamed = {
        f'{cls.__module__}.{cls.__qualname__}'
        for cls in map(type, (np.dtype('f8'), np.dtype('i8')))
    } | {f'{checkpoint_module.__name__}._NDArray', 'ndarray'}
    assert allowed - unnamed == written


@needs_allow_list
@pytest.mark.parametrize('core', ['numpy.core', 'numpy._core'])
def test_loads_what_either_numpy_wrote(work_dir, tmp_path, core):
    """numpy 1 and 2 name the module of their functions differently."""
    allow_mmengine_checkpoints()
    path = work_dir / 'epoch_2.pth'
    other = tmp_path / 'other.pth'
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(
            other, 'w') as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith('data.pkl'):
                for own in (b'numpy.core', b'numpy._core'):
                    data = data.replace(b'c' + own + b'.multiarray\n',
                                        f'c{core}.multiarray\n'.encode())
                names = {
                    arg
                    for op, arg, _ in pickletools.genops(data)
                    if op.name == 'GLOBAL'
                }
                assert f'{core}.multiarray _reconstruct' in names
            target.writestr(name, data)
    loaded = torch.load(other, weights_only=True)
    losses = loaded['message_hub']['log_scalars']['train/loss'].data[0]
    assert losses.dtype == np.float64 and len(losses) == 4


@needs_allow_list
def test_resumed_runner_writes_loadable_checkpoints(work_dir):
    """Nothing of ours gets into the files that are written after a load."""
    allow_mmengine_checkpoints()
    folder = work_dir / 'resumed'
    make_runner(
        folder, load_from=str(work_dir / 'epoch_1.pth'), resume=True).train()
    path = folder / 'epoch_2.pth'
    with zipfile.ZipFile(path) as file:
        data, = (file.read(name) for name in file.namelist()
                 if name.endswith('data.pkl'))
    assert b'sigplug' not in data
    first = torch.load(work_dir / 'epoch_2.pth', weights_only=True)
    again = torch.load(path, weights_only=True)
    assert again['meta']['iter'] == first['meta']['iter'] == 4
    for name, value in first['state_dict'].items():
        torch.testing.assert_close(
            again['state_dict'][name], value, rtol=0, atol=0)
    for name, value in first['message_hub']['log_scalars'].items():
        if name == 'train/loss':
            np.testing.assert_array_equal(
                again['message_hub']['log_scalars'][name].data[0],
                value.data[0])


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(marker):
    """Pickles that do harm when they are trusted."""
    touch = f'touch {marker}'
    get = Call(getattr, HistoryBuffer.update, '__globals__')
    return dict(
        system=Call(os.system, touch),
        eval=Call(eval, f'__import__("os").system("{touch}")'),
        popen=Call(subprocess.Popen, ['touch', str(marker)]),
        module_globals=get,
        class_attribute=Call(getattr, HistoryBuffer, '__init__'),
        array_attribute=Call(getattr, np.ndarray, 'tofile'),
        # An array of "objects" from raw bytes: pointers of one's choice.
        pointers=Call(np.ndarray, (1, ), 'O', bytearray(8)),
        load=Call(np.load, str(marker), None, True))


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('name', attacks(''))
def test_malicious_checkpoint_does_not_run(tmp_path, name, zipped):
    allow_mmengine_checkpoints()
    marker = tmp_path / 'marker'
    path = tmp_path / 'bad.pth'
    torch.save(dict(state_dict={}, meta=attacks(marker)[name]), path,
               _use_new_zipfile_serialization=zipped)
    assert_refused(path, '(?i)unsupported|may not|cannot be')
    assert not marker.exists()


def assert_refused(path, words):
    refused = pytest.raises(Exception, match=words)
    with refused:
        load_safely(path)
    with refused, safe_loading():
        torch.load(path, map_location='cpu')


@pytest.mark.parametrize('name', attacks(''))
def test_what_stands_in_for_the_allow_list(work_dir, tmp_path, monkeypatch,
                                           name):
    """The reader for old torch, here with the one that is installed."""
    monkeypatch.setattr(checkpoint_module, '_has_allow_list', lambda: False)
    path = work_dir / 'epoch_2.pth'
    reference = torch.load(path, weights_only=False)
    loaded = load_safely(path)
    for key, value in reference['state_dict'].items():
        assert torch.equal(loaded['state_dict'][key], value)
    np.testing.assert_array_equal(*(
        content['message_hub']['log_scalars']['train/loss'].data[0]
        for content in (loaded, reference)))

    marker = tmp_path / 'marker'
    bad = tmp_path / 'bad.pth'
    torch.save(dict(state_dict={}, meta=attacks(marker)[name]), bad)
    assert_refused(bad, 'Unsupported global|may not|cannot be')
    assert not marker.exists()


def test_checkpoint_does_not_change_a_function(tmp_path):
    """Which is no call, and so no matter of the names alone."""
    torch.save({}, tmp_path / 'good.pth')
    path = tmp_path / 'bad.pth'
    with zipfile.ZipFile(tmp_path / 'good.pth') as source, zipfile.ZipFile(
            path, 'w') as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith('data.pkl'):
                # The function, a dict with a=1, and BUILD.
                data = (b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n'
                        b'}X\x01\x00\x00\x00aK\x01sb.')
            target.writestr(name, data)
    with pytest.raises(Exception, match='(?i)may not change|can only build'):
        load_safely(path)
    assert not hasattr(torch._utils._rebuild_tensor_v2, 'a')


def test_downloaded_checkpoint_does_not_run(tmp_path):
    """torch's hub would load it with weights_only=False."""
    from mmengine.runner import CheckpointLoader
    marker = tmp_path / 'marker'
    (tmp_path / 'served').mkdir()
    torch.save(attacks(marker)['system'], tmp_path / 'served/bad.pth')
    handler = partial(SimpleHTTPRequestHandler,
                      directory=str(tmp_path / 'served'))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/bad.pth'
        with pytest.raises(Exception, match='(?i)unsupported'):
            with pytest.MonkeyPatch.context() as patch, safe_loading():
                patch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
                CheckpointLoader.load_checkpoint(url, 'cpu')
        server.shutdown()
    assert list((tmp_path / 'hub').rglob('bad*.pth'))
    assert not marker.exists()


@pytest.mark.parametrize('version', [torch.__version__, '2.3.1'])
def test_only_a_named_pickle_module_is_trusted(tmp_path, monkeypatch,
                                               version):
    """What is done for an older torch also works with this one."""
    monkeypatch.setattr(torch, '__version__', version)
    path, marker = tmp_path / 'bad.pth', tmp_path / 'marker'
    torch.save(attacks(marker)['system'], path)
    load, environment = torch.load, dict(os.environ)
    with safe_loading():
        for options in ({}, dict(weights_only=False),
                        dict(weights_only=True)):
            with pytest.raises(Exception, match='(?i)unsupported'):
                torch.load(path, **options)
        assert not marker.exists()
        torch.load(path, pickle_module=pickle, weights_only=False)
        assert marker.exists()
        assert os.environ == environment
    assert torch.load is load


@pytest.mark.parametrize('value, is_safe', [('0', True), ('1', False)])
def test_safety_can_be_switched_off_by_the_environment(tmp_path, monkeypatch,
                                                       value, is_safe):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', value)
    load = torch.load
    with safe_loading():
        assert (torch.load is not load) == is_safe


@pytest.mark.parametrize('name', ['system', 'eval', 'popen'])
def test_attacks_are_real(tmp_path, name):
    """The pickles above do their harm where nothing stops them."""
    marker = tmp_path / 'marker'
    data = pickle.dumps(attacks(marker)[name])
    result = pickle.loads(data)
    if name == 'popen':
        result.wait()
    assert marker.exists()


def test_does_nothing_with_an_older_torch(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.3.1')
    monkeypatch.delattr(serialization, 'add_safe_globals', raising=False)
    allow_mmengine_checkpoints()


def test_import_is_light():
    """It is a part of ``import sigplug``."""
    code = ('import sys; import sigplug.engine.checkpoint; '
            'print([m for m in ("mmcv", "mmdet", "mmdet3d", '
            '"mmengine.runner", "mmengine.optim") if m in sys.modules])')
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=True)
    assert done.stdout.strip() == '[]'
