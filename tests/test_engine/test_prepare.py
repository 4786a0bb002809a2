"""What the flags of train.py and test.py change in a config."""
import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS

from sigplug.engine import prepare
from sigplug.engine.hooks import CheckpointHook as SafeHook
from sigplug.engine.prepare import prepare_test, prepare_training
from sigplug.errors import UserError

WRAPPER = dict(type='OptimWrapper', optimizer={})


def train(tmp_path, changes=None, **flags):
    """The config of a training in tmp_path, after the flags."""
    cfg = Config({'optim_wrapper': dict(WRAPPER), **(changes or {})})
    default = dict(
        config='configs/name.py', work_dir=str(tmp_path), amp=False,
        auto_scale_lr=False, resume=None, launcher='none')
    prepare_training(cfg, Namespace(**default | flags))
    return cfg


@pytest.mark.parametrize('flag, in_config, expected', [
    ('x', 'y', 'x'), (None, 'y', 'y'), (None, None, './work_dirs/name'),
])
def test_work_dir(flag, in_config, expected):
    cfg = train(None, dict(work_dir=in_config), work_dir=flag)
    assert cfg.work_dir == expected


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
@pytest.mark.parametrize('kind', ['OptimWrapper', 'AmpOptimWrapper'])
def test_amp(tmp_path, monkeypatch, device, kind):
    monkeypatch.setattr(prepare, 'get_device', lambda: device)
    cfg = train(tmp_path, dict(optim_wrapper=dict(
        type=kind, dtype='bfloat16', loss_scale='dynamic')), amp=True)
    assert cfg.optim_wrapper == (
        dict(type=prepare.CPU_AMP, dtype='bfloat16') if device == 'cpu' else
        dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale='dynamic'))


@pytest.mark.parametrize('wrapper, words', [
    (dict(dtype='float64'), "--amp: optim_wrapper.dtype must be 'bfloat16'"),
    (dict(type='OtherWrapper'), "--amp needs .* but it is 'OtherWrapper'"),
])
def test_amp_that_cannot_be(tmp_path, wrapper, words):
    with pytest.raises(UserError, match=words):
        train(tmp_path, dict(optim_wrapper=wrapper), amp=True)


def test_auto_scale_lr(tmp_path):
    scale = dict(enable=False, base_batch_size=4)
    cfg = train(tmp_path, dict(auto_scale_lr=scale), auto_scale_lr=True)
    assert cfg.auto_scale_lr.enable
    with pytest.raises(UserError, match='base_batch_size'):
        train(tmp_path, auto_scale_lr=True)


@pytest.mark.parametrize('before, after', [
    ({}, dict(type=prepare.CHECKPOINT_HOOK, interval=1)),
    (dict(checkpoint=dict(type='CheckpointHook', interval=5, save_best='acc')),
     dict(type=prepare.CHECKPOINT_HOOK, interval=5, save_best='acc')),
    (dict(checkpoint=dict(type='OtherHook')), dict(type='OtherHook')),
])
def test_safe_checkpoint_hook(tmp_path, before, after):
    hook = train(tmp_path, dict(default_hooks=before)).default_hooks.checkpoint
    assert hook == after
    if 'sigplug' in after['type']:
        assert type(HOOKS.build(hook)) is SafeHook


def save(path):
    meta = dict(seed=5, epoch=1, iter=2)
    torch.save(dict(meta=meta, message_hub={}, optimizer={}), path)
    return str(path)


def test_resume_starts_afresh_without_a_checkpoint(tmp_path, capsys):
    cfg = train(tmp_path, dict(resume=False, load_from='x'), resume='auto')
    assert not cfg.resume and cfg.load_from == 'x'
    assert 'starts from the beginning' in capsys.readouterr().out


@pytest.mark.parametrize('randomness, seed', [
    (dict(seed=None, deterministic=True), 5), (dict(seed=1), 1)])
def test_resume_from_a_given_checkpoint(tmp_path, randomness, seed):
    path = save(tmp_path / 'epoch_2.pth')
    cfg = train(tmp_path / 'new', dict(randomness=randomness), resume=path)
    assert cfg.resume and cfg.load_from == path
    assert cfg.randomness == dict(randomness, seed=seed)
    with pytest.raises(UserError, match='does not exist'):
        train(tmp_path / 'new', resume=str(tmp_path / 'epoch_9.pth'))


def test_resume_in_a_work_dir_that_was_moved(tmp_path, capsys):
    path = save(tmp_path / 'epoch_3.pth')
    save(tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text('/nowhere/epoch_3.pth')
    assert train(tmp_path, resume='auto').load_from == path
    assert f'continues from {path}' in capsys.readouterr().out


def test_earlier_run_is_named(tmp_path, capsys):
    path = save(tmp_path / 'epoch_2.pth')
    assert 'load_from' not in train(tmp_path)
    assert path in capsys.readouterr().out


@pytest.mark.parametrize('damage', ['cut', 'gone', 'no record'])
def test_resume_takes_the_newest_that_is_whole(tmp_path, capsys, damage):
    """Newest in time: epoch 8 is of a training before."""
    whole = Path(save(tmp_path / 'x')).read_bytes()
    for seconds, name in enumerate(['epoch_8', 'epoch_1', 'epoch_2']):
        (tmp_path / f'{name}.pth').write_bytes(whole)
        os.utime(tmp_path / f'{name}.pth', (1000 + seconds, 1000 + seconds))
    torch.save(dict(meta=dict(epoch=3)), tmp_path / 'best_x.pth')
    if damage != 'no record':
        last = tmp_path / 'epoch_3.pth'
        (tmp_path / 'last_checkpoint').write_text(str(last))
        if damage == 'cut':
            last.write_bytes(whole[:-100])
    cfg = train(tmp_path, resume='auto')
    expected = str(tmp_path / 'epoch_2.pth')
    assert cfg.resume and cfg.load_from == expected
    assert expected in capsys.readouterr().out


def test_resume_where_nothing_is_whole(tmp_path):
    (tmp_path / 'epoch_2.pth').write_bytes(b'PK')
    with pytest.raises(UserError, match='epoch_2.pth(.|\n)*no other'):
        train(tmp_path, resume='auto')


def test_launcher_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(UserError, match='tools/dist_train.sh'):
        train(tmp_path, launcher='pytorch')
    monkeypatch.setattr(prepare, 'get_device', lambda: 'cpu')
    with pytest.raises(UserError, match='launcher slurm needs a GPU'):
        train(tmp_path, launcher='slurm')


def test_test(tmp_path, monkeypatch):
    path = save(tmp_path / 'a.pth')
    metric = dict(type='NuScenesMetric')
    cfg = Config(dict(
        test_evaluator=metric, resume=True, default_hooks=dict(
            visualization=dict(type='Det3DVisualizationHook'))))
    args = Namespace(
        config='c.py', checkpoint=path, work_dir='w', out='p.pkl', show=False,
        show_dir='pictures', wait_time=2, score_thr=0.1, task='lidar_det',
        launcher='none')
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('DISPLAY', ':0')
    prepare_test(cfg, args)
    assert (cfg.load_from, cfg.resume) == (path, False)
    assert cfg.test_evaluator == [
        metric, dict(type='DumpResults', out_file_path='p.pkl')]
    assert cfg.default_hooks.visualization.test_out_dir == 'pictures'
    # One log of the metrics is enough.
    assert cfg.default_hooks.logger is None
    monkeypatch.delenv('DISPLAY')
    with pytest.raises(UserError, match='needs a display.*visualize_bev.py'):
        prepare_test(cfg, args)
