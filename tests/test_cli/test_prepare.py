"""What the flags of train.py and test.py change in a config."""
import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS

from sigplug.cli import prepare
from sigplug.engine.hooks import CheckpointHook as SafeHook
from sigplug.errors import UserError


def resume(tmp_path, checkpoint='auto', **config):
    """The config of a training in tmp_path that continues."""
    cfg = Config(dict(config, work_dir=str(tmp_path)))
    prepare.set_resume(cfg, checkpoint)
    return cfg


@pytest.mark.parametrize('flag, in_config, expected', [
    ('x', 'y', 'x'), (None, 'y', 'y'), (None, None, './work_dirs/name'),
])
def test_work_dir(flag, in_config, expected):
    cfg = Config(dict(work_dir=in_config))
    prepare.set_work_dir(
        cfg, Namespace(work_dir=flag, config='configs/name.py'))
    assert cfg.work_dir == expected


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
@pytest.mark.parametrize('kind, amp', [
    ('OptimWrapper', True), ('AmpOptimWrapper', True),
    # On the CPU it cannot stay.
    ('AmpOptimWrapper', False), ('mmengine.optim.AmpOptimWrapper', False)])
def test_amp(monkeypatch, device, kind, amp):
    monkeypatch.setattr(prepare, 'get_device', lambda: device)
    given = dict(dtype='bfloat16', loss_scale='dynamic')
    cfg = Config(dict(optim_wrapper=dict(given, type=kind)))
    prepare.set_amp(cfg, amp)
    if device == 'cpu':
        assert cfg.optim_wrapper == dict(type=prepare.CPU_AMP,
                                         dtype='bfloat16')
        prepare.set_amp(cfg, True)
        assert cfg.optim_wrapper.type == prepare.CPU_AMP
    else:
        assert cfg.optim_wrapper == dict(given, type=(
            'AmpOptimWrapper' if kind == 'OptimWrapper' else kind))


def test_without_amp():
    cfg = Config(dict(optim_wrapper=dict(type='OtherWrapper')))
    prepare.set_amp(cfg, False)
    assert cfg.optim_wrapper == dict(type='OtherWrapper')


@pytest.mark.parametrize('wrapper, words', [
    (dict(dtype='float64'), "optim_wrapper.dtype must be 'bfloat16'"),
    (dict(type='OtherWrapper'), "--amp needs .* but it is 'OtherWrapper'"),
    (None, '--amp needs an optim_wrapper'),
])
def test_amp_that_cannot_be(monkeypatch, wrapper, words):
    monkeypatch.setattr(prepare, 'get_device', lambda: 'cpu')
    with pytest.raises(UserError, match=words):
        prepare.set_amp(Config(dict(optim_wrapper=wrapper)), True)


def test_auto_scale_lr():
    cfg = Config(dict(auto_scale_lr=dict(enable=False, base_batch_size=4)))
    prepare.enable_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.enable
    with pytest.raises(UserError, match='base_batch_size'):
        prepare.enable_auto_scale_lr(Config())


@pytest.mark.parametrize('before, after', [
    ({}, dict(type=prepare.CHECKPOINT_HOOK, interval=1)),
    (dict(checkpoint=dict(type='CheckpointHook', interval=5, save_best='acc')),
     dict(type=prepare.CHECKPOINT_HOOK, interval=5, save_best='acc')),
    (dict(checkpoint=dict(type='OtherHook')), dict(type='OtherHook')),
])
def test_safe_checkpoint_hook(before, after):
    cfg = Config(dict(default_hooks=before))
    prepare.use_safe_checkpoint_hook(cfg)
    hook = cfg.default_hooks.checkpoint
    assert hook == after
    if 'sigplug' in after['type']:
        assert type(HOOKS.build(hook)) is SafeHook


def save(path):
    meta = dict(seed=5, epoch=1, iter=2)
    torch.save(dict(meta=meta, message_hub={}, optimizer={}), path)
    return str(path)


def test_resume_starts_afresh_without_a_checkpoint(tmp_path, capsys):
    path = save(tmp_path / 'x')
    cfg = resume(tmp_path, resume=False, load_from=path)
    assert not cfg.resume and cfg.load_from == path
    assert 'starts from the beginning' in capsys.readouterr().out


@pytest.mark.parametrize('randomness, seed', [
    (dict(seed=None, deterministic=True), 5), (dict(seed=1), 1)])
def test_resume_from_a_given_checkpoint(tmp_path, randomness, seed):
    path = save(tmp_path / 'epoch_2.pth')
    cfg = resume(tmp_path / 'new', path, randomness=randomness)
    assert cfg.resume and cfg.load_from == path
    assert cfg.randomness == dict(randomness, seed=seed)
    with pytest.raises(UserError, match='does not exist'):
        resume(tmp_path / 'new', str(tmp_path / 'epoch_9.pth'))


def test_resume_asked_for_by_the_config(tmp_path):
    path = save(tmp_path / 'epoch_2.pth')
    for more in ({}, dict(load_from=path)):
        assert resume(tmp_path, None, resume=True, **more).load_from == path


def test_load_from_is_looked_for(tmp_path):
    with pytest.raises(UserError, match="load_from of the config 'x.pth' d"):
        resume(tmp_path, None, load_from='x.pth')


def test_resume_needs_more_than_weights(tmp_path):
    path = tmp_path / 'best.pth'
    torch.save(dict(meta={}, message_hub={}), path)
    with pytest.raises(UserError, match='has no optimizer.* load_from='):
        resume(tmp_path, str(path))


def test_resume_in_a_work_dir_that_was_moved(tmp_path, capsys):
    path = save(tmp_path / 'epoch_3.pth')
    save(tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text('/nowhere/epoch_3.pth')
    assert resume(tmp_path).load_from == path
    assert f'continues from {path}' in capsys.readouterr().out


def test_earlier_run_is_named(tmp_path, capsys):
    path = save(tmp_path / 'epoch_2.pth')
    assert 'load_from' not in resume(tmp_path, None)
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
    cfg = resume(tmp_path)
    expected = str(tmp_path / 'epoch_2.pth')
    assert cfg.resume and cfg.load_from == expected
    assert expected in capsys.readouterr().out


def test_resume_where_nothing_is_whole(tmp_path):
    (tmp_path / 'epoch_2.pth').write_bytes(b'PK')
    with pytest.raises(UserError, match='epoch_2.pth(.|\n)*no other'):
        resume(tmp_path)


def test_launcher_that_cannot_be(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(UserError, match='tools/dist_train.sh'):
        prepare.set_launcher(Config(), 'pytorch')
    monkeypatch.setattr(prepare, 'get_device', lambda: 'cpu')
    with pytest.raises(UserError, match='launcher slurm needs a GPU'):
        prepare.set_launcher(Config(), 'slurm')


def test_predictions():
    metric = dict(type='NuScenesMetric')
    for given in (metric, [metric]):
        cfg = Config(dict(test_evaluator=given))
        prepare.write_predictions(cfg, 'p.pkl')
        assert cfg.test_evaluator == [
            metric, dict(type='DumpResults', out_file_path='p.pkl')]


def test_visualization(monkeypatch):
    args = Namespace(
        config='c.py', checkpoint='a.pth', show=False, show_dir='pictures',
        wait_time=2, score_thr=0.1, task='lidar_det')
    monkeypatch.setenv('DISPLAY', ':0')
    for cfg in (Config(), Config(dict(default_hooks=dict(
            visualization=dict(type='Det3DVisualizationHook'))))):
        prepare.enable_visualization(cfg, args)
        hook = cfg.default_hooks.visualization
        assert hook.type == 'Det3DVisualizationHook' and hook.draw
        assert hook.test_out_dir == 'pictures'
    monkeypatch.delenv('DISPLAY')
    with pytest.raises(UserError, match='needs a display.*visualize_bev.py'):
        prepare.enable_visualization(cfg, args)
