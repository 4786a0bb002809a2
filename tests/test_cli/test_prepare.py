"""What the flags of train.py and test.py change in a config."""
import os
from argparse import Namespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS

from sigplug.cli import prepare
from sigplug.engine.hooks import CheckpointHook as SafeHook
from sigplug.errors import UserError


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
    else:
        assert cfg.optim_wrapper == dict(given, type=(
            'AmpOptimWrapper' if kind == 'OptimWrapper' else kind))


@pytest.mark.parametrize('wrapper', [dict(type='OtherWrapper'), None])
def test_amp_of_another_wrapper(wrapper):
    cfg = Config(dict(optim_wrapper=wrapper))
    prepare.set_amp(cfg, False)
    assert cfg.optim_wrapper == wrapper
    with pytest.raises(UserError, match='--amp needs an optim_wrapper of'):
        prepare.set_amp(cfg, True)


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


# -- resuming ---------------------------------------------------------------
def resume(work_dir, checkpoint='auto', **config):
    """The config of a training in work_dir that continues."""
    cfg = Config(dict(config, work_dir=str(work_dir)))
    prepare.set_resume(cfg, checkpoint)
    return cfg


def save(path, age=0):
    meta = dict(seed=5, epoch=1, iter=2)
    torch.save(dict(meta=meta, message_hub={}, optimizer={}), path)
    os.utime(path, (9000 - age, 9000 - age))
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


def test_resume_asked_for_by_the_config(tmp_path):
    path = save(tmp_path / 'epoch_2.pth')
    for more in ({}, dict(load_from=path)):
        assert resume(tmp_path, None, resume=True, **more).load_from == path


@pytest.mark.parametrize('checkpoint, config, words', [
    ('epoch_9.pth', {}, "--resume 'epoch_9.pth' does not exist"),
    (None, dict(load_from='x.pth'), "load_from of the config 'x.pth' does"),
    ('weights.pth', {}, 'has no message_hub, optimizer.* load_from='),
    ('auto', {}, 'damaged.pth(.|\n)*no other one to continue from'),
])
def test_checkpoint_that_does_not_serve(tmp_path, monkeypatch, checkpoint,
                                        config, words):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(meta={}), 'weights.pth')
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work/damaged.pth').write_bytes(b'PK')
    with pytest.raises(UserError, match=words):
        resume('work', checkpoint, **config)


@pytest.mark.parametrize('damage', ['cut', 'gone', 'no record', None])
def test_resume_takes_the_last_that_is_whole(tmp_path, capsys, damage):
    """Newest in time: epoch 8 is of a training before."""
    for age, name in enumerate(['epoch_2', 'epoch_1', 'epoch_8']):
        save(tmp_path / f'{name}.pth', age)
    torch.save(dict(meta=dict(epoch=3)), tmp_path / 'best_x.pth')
    last = tmp_path / 'epoch_3.pth'
    save(last, age=9)
    if damage != 'no record':
        (tmp_path / 'last_checkpoint').write_text(str(last))
    if damage == 'cut':
        last.write_bytes(last.read_bytes()[:-100])
    elif damage == 'gone':
        last.unlink()
    cfg = resume(tmp_path)
    expected = str(tmp_path / 'epoch_2.pth') if damage else str(last)
    assert cfg.resume and cfg.load_from == expected
    assert f'continues from {expected}' in capsys.readouterr().out


# -- other flags ------------------------------------------------------------
def test_launcher_that_cannot_be(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(UserError, match='tools/dist_train.sh'):
        prepare.set_launcher(Config(), 'pytorch')


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
    cfg = Config()
    prepare.enable_visualization(cfg, args)
    hook = cfg.default_hooks.visualization
    assert hook.type == 'Det3DVisualizationHook' and hook.draw
    assert hook.test_out_dir == 'pictures'
    monkeypatch.delenv('DISPLAY')
    with pytest.raises(UserError, match='needs a display.*visualize_bev.py'):
        prepare.enable_visualization(cfg, args)
