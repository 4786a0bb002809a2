"""The flags of the run tools, applied to a config."""
import argparse
import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from sigplug.engine import cli, process
from sigplug.engine.hooks import CheckpointHook as SafeHook
from sigplug.errors import UserError


def parse(monkeypatch, *args):
    parser = argparse.ArgumentParser()
    cli.add_common_arguments(parser)
    monkeypatch.setattr('sys.argv', ['tool', *args])
    return cli.parse_args(parser)


def test_common_arguments(monkeypatch):
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    args = parse(monkeypatch, '--local-rank', '3', '--cfg-options', 'a.b=1',
                 'c=[x,y]', '--launcher', 'slurm', '--work-dir', 'w')
    assert args.cfg_options == {'a.b': 1, 'c': ['x', 'y']}
    assert (args.launcher, args.work_dir) == ('slurm', 'w')
    assert os.environ['LOCAL_RANK'] == '3'


def test_processes_of_a_launcher_print_once(monkeypatch):
    """From the command line on, which says whether there is one."""
    monkeypatch.setenv('SLURM_PROCID', '1')
    parse(monkeypatch, '--launcher', 'slurm')
    assert not process.is_first_process()
    parse(monkeypatch)
    assert process.is_first_process()


def test_an_option_without_a_value(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        parse(monkeypatch, '--cfg-options', 'a.b')
    assert end.value.code == 2
    assert '--cfg-options takes KEY=VALUE' in capsys.readouterr().err


def test_a_tool_without_launcher_leaves_the_local_rank(monkeypatch):
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    parser = argparse.ArgumentParser()
    cli.add_cfg_options(parser)
    monkeypatch.setattr('sys.argv', ['tool', '--cfg-options', 'a=1'])
    assert vars(cli.parse_args(parser)) == dict(cfg_options=dict(a=1))
    assert 'LOCAL_RANK' not in os.environ


@pytest.mark.parametrize('argument, in_config, expected', [
    ('x', 'y', 'x'),
    (None, 'y', 'y'),
    (None, None, './work_dirs/name'),
])
def test_work_dir(argument, in_config, expected):
    cfg = Config(dict(work_dir=in_config))
    cli.set_work_dir(cfg, argument, 'configs/name.py')
    assert cfg.work_dir == expected


def test_amp(monkeypatch):
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer={})))
    monkeypatch.setattr(cli, 'get_device', lambda: 'cuda')
    cli.enable_amp(cfg)
    expected = dict(
        type='AmpOptimWrapper', optimizer={}, loss_scale='dynamic')
    assert cfg.optim_wrapper == expected
    cli.enable_amp(cfg)
    assert cfg.optim_wrapper == expected
    monkeypatch.setattr(cli, 'get_device', lambda: 'cpu')
    cli.enable_amp(cfg)
    assert cfg.optim_wrapper == dict(type=cli.CPU_AMP, optimizer={})
    cfg.optim_wrapper.type = 'OtherWrapper'
    with pytest.raises(UserError, match="'OtherWrapper'"):
        cli.enable_amp(cfg)


@pytest.mark.parametrize('kind', ['OptimWrapper', 'AmpOptimWrapper'])
@pytest.mark.parametrize('dtype, on_cpu', [
    (None, {}),
    ('bfloat16', dict(dtype='bfloat16')),
    ('float16', dict(dtype='float16')),
])
def test_amp_takes_the_dtype_of_the_config(monkeypatch, capsys, kind, dtype,
                                           on_cpu):
    cfg = Config(dict(optim_wrapper=dict(
        type=kind, dtype=dtype, loss_scale='dynamic', use_fsdp=False)))
    monkeypatch.setattr(cli, 'get_device', lambda: 'cpu')
    cli.enable_amp(cfg)
    assert cfg.optim_wrapper == dict(type=cli.CPU_AMP, **on_cpu)
    slow = 'bfloat16 is much faster' in capsys.readouterr().out
    assert slow == (dtype == 'float16')

    cfg = Config(dict(optim_wrapper=dict(type=kind, dtype=dtype)))
    monkeypatch.setattr(cli, 'get_device', lambda: 'cuda')
    cli.enable_amp(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.dtype == dtype


def test_amp_with_a_dtype_that_the_cpu_has_not(monkeypatch):
    cfg = Config(dict(optim_wrapper=dict(dtype='float64')))
    monkeypatch.setattr(cli, 'get_device', lambda: 'cpu')
    with pytest.raises(UserError) as info:
        cli.enable_amp(cfg)
    for word in ('--amp', "optim_wrapper.dtype must be 'bfloat16'",
                 "'float64'"):
        assert word in str(info.value)


def test_auto_scale_lr():
    cfg = Config(dict(auto_scale_lr=dict(enable=False, base_batch_size=4)))
    cli.enable_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.enable
    with pytest.raises(UserError, match='base_batch_size'):
        cli.enable_auto_scale_lr(Config())


def test_launcher_pytorch_needs_torchrun(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(UserError, match='tools/dist_train.sh'):
        cli.set_launcher(Config(), 'pytorch')


def test_launcher_slurm_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(cli, 'get_device', lambda: 'cpu')
    with pytest.raises(UserError, match='launcher slurm needs a GPU'):
        cli.set_launcher(Config(), 'slurm')


def test_launcher_on_a_gpu_is_left_to_mmengine(monkeypatch):
    monkeypatch.setattr(cli, 'get_device', lambda: 'cuda')
    cfg = Config()
    cli.set_launcher(cfg, 'slurm')
    assert cfg.launcher == 'slurm' and 'model_wrapper_cfg' not in cfg


def test_sigterm_ends_a_process_of_several_at_once(monkeypatch):
    monkeypatch.setattr(cli, 'get_device', lambda: 'cuda')
    found = []

    def tool():
        cli.set_launcher(Config(), 'slurm')
        found.append(signal.getsignal(signal.SIGTERM))

    assert process.run_tool(tool) == 0 and found == [signal.SIG_DFL]


def save(path):
    meta = dict(seed=5, epoch=1, iter=2)
    torch.save(dict(meta=meta, message_hub={}, optimizer={}), path)
    return str(path)


def test_resume_starts_afresh_without_a_checkpoint(tmp_path, capsys):
    cfg = Config(dict(work_dir=str(tmp_path), resume=False, load_from='x'))
    cli.set_resume(cfg, 'auto')
    assert not cfg.resume and cfg.load_from == 'x'
    assert 'starts from the beginning' in capsys.readouterr().out


def test_resume_takes_the_last_checkpoint(tmp_path, capsys):
    cfg = Config(dict(work_dir=str(tmp_path)))
    path = save(tmp_path / 'epoch_3.pth')
    (tmp_path / 'last_checkpoint').write_text(path)
    cli.set_resume(cfg, 'auto')
    assert cfg.resume and cfg.load_from == path
    assert f'continues from {path}' in capsys.readouterr().out


@pytest.mark.parametrize('randomness, seed', [
    (None, 5),
    (dict(seed=None, deterministic=True), 5),
    (dict(seed=1), 1),
])
def test_resume_takes_over_a_random_seed(tmp_path, randomness, seed):
    cfg = Config(dict(work_dir=str(tmp_path)))
    if randomness is not None:
        cfg.randomness = randomness
    cli.set_resume(cfg, save(tmp_path / 'epoch_1.pth'))
    assert cfg.randomness == dict(randomness or {}, seed=seed)


def test_resume_in_a_work_dir_that_was_moved(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path)))
    path = save(tmp_path / 'epoch_3.pth')
    (tmp_path / 'last_checkpoint').write_text('/nowhere/epoch_3.pth')
    cli.set_resume(cfg, 'auto')
    assert cfg.load_from == path


def test_resume_looks_where_the_hook_writes(tmp_path, capsys):
    """mmengine's hook, below out_dir."""
    cfg = Config(dict(
        work_dir=str(tmp_path / 'a/run'),
        default_hooks=dict(checkpoint=dict(out_dir=str(tmp_path / 'out')))))
    (tmp_path / 'a/run').mkdir(parents=True)
    (tmp_path / 'out/run').mkdir(parents=True)
    path = save(tmp_path / 'out/run/epoch_2.pth')
    cli.warn_of_earlier_run(cfg)
    assert path in capsys.readouterr().out
    (tmp_path / 'a/run/last_checkpoint').write_text(
        str(tmp_path / 'out/run/epoch_3.pth'))
    cli.set_resume(cfg, 'auto')
    assert cfg.load_from == path


def write_at(path, data, seconds):
    path.write_bytes(data)
    os.utime(path, (seconds, seconds))


@pytest.mark.parametrize('damage', ['cut', 'empty', 'gone', 'folder',
                                    'no record'])
def test_resume_takes_the_newest_that_is_whole(tmp_path, capsys, damage):
    """Newest in time: epoch 8 is of a training before."""
    whole = Path(save(tmp_path / 'x')).read_bytes()
    for seconds, name in enumerate(['epoch_8', 'epoch_1', 'epoch_2']):
        write_at(tmp_path / f'{name}.pth', whole, 1000 + seconds)
    torch.save(dict(meta=dict(epoch=3, iter=4)), tmp_path / 'best_x.pth')
    record, last = tmp_path / 'last_checkpoint', tmp_path / 'epoch_3.pth'
    record.write_text(str(last))
    if damage == 'cut':
        last.write_bytes(whole[:-100])
    elif damage == 'empty':
        last.touch()
        record.write_text('')
    elif damage == 'folder':
        last.mkdir()
    elif damage == 'no record':
        record.unlink()
    cfg = Config(dict(work_dir=str(tmp_path)))
    cli.set_resume(cfg, 'auto')
    expected = str(tmp_path / 'epoch_2.pth')
    assert cfg.resume and cfg.load_from == expected
    printed = capsys.readouterr().out
    assert f'instead, the newest checkpoint that can be read: {expected}' in \
        printed
    # What was wrong with which file.
    assert str('best_x.pth' if damage == 'no record' else
               record if damage == 'gone' else last.parent) in printed


def test_resume_where_nothing_is_whole(tmp_path):
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    (tmp_path / 'epoch_2.pth').write_bytes(b'PK')
    with pytest.raises(UserError) as info:
        cli.set_resume(Config(dict(work_dir=str(tmp_path))), 'auto')
    for word in ('epoch_3.pth', 'does not exist', '--resume CHECKPOINT'):
        assert word in str(info.value)


def test_a_training_among_checkpoints_of_another(tmp_path, capsys):
    cfg = Config(dict(work_dir=str(tmp_path)))
    cli.warn_of_earlier_run(cfg)
    assert capsys.readouterr().out == ''
    path = save(tmp_path / 'epoch_2.pth')
    cli.warn_of_earlier_run(cfg)
    printed = capsys.readouterr().out
    for word in (path, '--resume', '--work-dir'):
        assert word in printed
    cfg.resume = True
    cli.warn_of_earlier_run(cfg)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('before, after', [
    ({}, dict(type=cli.CHECKPOINT_HOOK, interval=1)),
    (dict(checkpoint=dict(type='CheckpointHook', interval=5, save_best='acc')),
     dict(type=cli.CHECKPOINT_HOOK, interval=5, save_best='acc')),
    (dict(checkpoint=dict(type='mmengine.CheckpointHook')),
     dict(type=cli.CHECKPOINT_HOOK)),
    (dict(checkpoint=dict(type=CheckpointHook)),
     dict(type=cli.CHECKPOINT_HOOK)),
    (dict(checkpoint=dict(type='OtherHook')), dict(type='OtherHook')),
    (dict(checkpoint=None), None),
])
def test_safe_checkpoints(before, after):
    cfg = Config(dict(default_hooks=before))
    cli.use_safe_checkpoints(cfg)
    assert cfg.default_hooks.checkpoint == after
    if after and 'sigplug' in after['type']:
        assert type(HOOKS.build(cfg.default_hooks.checkpoint)) is SafeHook


def test_safe_checkpoints_without_hooks_in_the_config():
    cfg = Config()
    cli.use_safe_checkpoints(cfg)
    assert cfg.default_hooks.checkpoint.type == cli.CHECKPOINT_HOOK


@pytest.mark.parametrize('settings, seconds', [
    ({}, None), (dict(env_cfg=dict(dist_cfg=dict(timeout=7))), 7)])
def test_timeout_of_the_process_group(monkeypatch, settings, seconds):
    found = []
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setattr(cli, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(cli, 'end_with_parent', lambda: None)
    monkeypatch.setattr(
        'torch.distributed.init_process_group',
        lambda backend, timeout=None: found.append((backend, timeout)))
    cli.set_launcher(Config(settings), 'pytorch')
    assert found == [('gloo', seconds and timedelta(seconds=seconds))]


def test_resume_from_a_given_checkpoint(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path / 'new')))
    path = save(tmp_path / 'epoch_2.pth')
    cli.set_resume(cfg, path)
    assert cfg.resume and cfg.load_from == path
    with pytest.raises(UserError, match='does not exist'):
        cli.set_resume(cfg, str(tmp_path / 'epoch_9.pth'))
