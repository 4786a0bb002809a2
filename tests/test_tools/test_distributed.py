"""Two processes on the CPU, started by torch.distributed.run."""
import json
import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from sigplug.engine.checkpoint import load_safely


def free_port():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


def run_script(script, *args, cwd):
    done = subprocess.run(
        [script, *map(str, args)], cwd=cwd, text=True, timeout=300,
        env=dict(os.environ, PYTHON=sys.executable, PORT=free_port()),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def read_metrics(work_dir):
    """Read what the evaluation has written."""
    path, = work_dir.glob('*/*.json')
    return json.loads(path.read_text())


@pytest.fixture
def tools(request):
    return request.config.rootpath / 'tools'


@pytest.mark.slow
def test_dist_train_and_dist_test(folder, tools, run_here):
    """Three samples: one is drawn twice to give both processes two."""
    printed = run_script(
        tools / 'dist_train.sh', 'small.py', 2, '--work-dir', 'dist',
        '--cfg-options', 'train_cfg.max_epochs=1',
        'train_dataloader.dataset.indices=3', cwd=folder)
    log, = (folder / 'dist').glob('2*/*.log')
    assert re.search(r'Distributed training: True\s+GPU number: 2',
                     log.read_text())
    assert len(re.findall(r'Epoch\(train\) \[1\]\[2/2\]', printed)) == 1
    # One folder for both processes.
    assert len(list((folder / 'dist').glob('2*'))) == 1
    checkpoint = load_safely(folder / 'dist/epoch_1.pth')
    assert checkpoint['meta']['iter'] == 2
    assert not any(k.startswith('module.') for k in checkpoint['state_dict'])

    printed = run_script(
        tools / 'dist_test.sh', 'small.py', 'dist/epoch_1.pth', 2,
        '--work-dir', 'dist_eval', cwd=folder)
    assert printed.count('Per-class results') == 1

    code, _ = run_here('test.py', 'small.py', 'dist/epoch_1.pth',
                       '--work-dir', 'one_eval', cwd=folder)
    assert code == 0
    one = read_metrics(folder / 'one_eval')
    both = read_metrics(folder / 'dist_eval')
    metrics = [key for key in one if key.startswith('NuScenes')]
    assert len(metrics) > 50
    np.testing.assert_equal(
        [both[key] for key in metrics], [one[key] for key in metrics])


@pytest.mark.parametrize('script, tool, last', [
    ('slurm_train.sh', 'train.py', ['--work-dir', 'd']),
    ('slurm_test.sh', 'test.py', ['d']),
])
def test_slurm_command(tools, tmp_path, script, tool, last):
    """A program that poses as srun shows the command it is given."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "$SIGPLUG_RESUME"\n')
    srun.chmod(0o755)
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    printed = subprocess.run(
        [tools / script, 'part', 'job', 'c.py', 'd', '--amp', 'a b'],
        env=dict(os.environ, PATH=path, PYTHON='python3', GPUS='16',
                 SRUN_ARGS='--qos high'),
        check=True,
        capture_output=True,
        text=True).stdout.splitlines()
    assert printed == [
        '-p', 'part', '--job-name=job', '--gres=gpu:8', '--ntasks=16',
        '--ntasks-per-node=8', '--cpus-per-task=5', '--kill-on-bad-exit=1',
        '--qos', 'high', 'python3', '-u', str(tools / tool), 'c.py', *last,
        '--launcher', 'slurm', '--amp', 'a b',
        # How a training that is stopped is continued.
        f'{tools / script} part job c.py d --amp a\\ b --resume'
        if tool == 'train.py' else ''
    ]
