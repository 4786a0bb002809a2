"""Kills, full disks and wrong checkpoints, as they befall the tools."""
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import TOOLS, assert_same_training, tool_command
from test_distributed import free_port

# Until a process of torch.distributed.run that is stopped has been given up:
# the timeout of the process group, and the 30 s that are left for its end.
PATIENCE = 30
LONG = ('train_cfg.max_epochs=1000', )


class Run:
    """A tool that runs beside the test, in a session of its own."""

    def __init__(self, command, cwd, **env):
        self.log = cwd / f'{time.time()}.log'
        with open(self.log, 'w') as log:
            self.process = subprocess.Popen(
                command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT,
                env=dict(os.environ, **env), start_new_session=True)

    @property
    def printed(self):
        return self.log.read_text()

    def wait_for(self, text, seconds=120):
        deadline = time.time() + seconds
        while text not in self.printed:
            assert time.time() < deadline and self.process.poll() is None, (
                self.printed[-3000:])
            time.sleep(0.02)

    def family(self):
        """All processes of the session that live."""
        return [process for process in psutil.process_iter()
                if self.lives(process)]

    def lives(self, process):
        try:
            return (os.getsid(process.pid) == self.process.pid
                    and process.status() != psutil.STATUS_ZOMBIE)
        except (OSError, psutil.Error):
            return False

    def wait_for_all(self, seconds):
        """The seconds until the last process has gone."""
        start = time.time()
        while self.process.poll() is None or self.family():
            assert time.time() < start + seconds, self.family()
            time.sleep(0.05)
        return time.time() - start

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.family():
            process.kill()
        self.process.wait()


def train(folder, work_dir, *args):
    return Run(tool_command('train.py', 'small.py', '--work-dir', work_dir,
                            *args), folder)


@pytest.mark.slow
def test_stopped_by_sigterm(folder):
    """As a batch system does it."""
    with train(folder, 'stopped', '--cfg-options', *LONG) as run:
        run.wait_for('Epoch(train)')
        assert len(run.family()) > 1
        run.process.terminate()
        run.wait_for_all(60)
    assert run.process.returncode == 143
    # A thread of multiprocessing may complain that its worker is gone.
    assert '_Terminated' not in run.printed
    assert 'Stopped by SIGTERM. A training continues' in run.printed
    assert not list((folder / 'stopped').glob('*.partial'))


@pytest.mark.slow
def test_a_checkpoint_of_another_model(folder, fail):
    """With an entry that fits, and one that has another shape."""
    torch.save(dict(state_dict={
        'pts_bbox_head.shared_conv.bn.weight': torch.ones(32),
        'pts_bbox_head.shared_conv.bn.bias': torch.ones(8),
    }), folder / 'other.pth')
    message = fail('test.py', 'small.py', 'other.pth', '--work-dir', 'other',
                   cwd=folder)
    assert re.search(r"'other\.pth' lacks \d+ of the \d+ weights", message)
    assert 'another model' in message


@pytest.mark.soak
def test_killed_at_random_moments_equals_uninterrupted(folder, run_tool):
    run_tool('train.py', 'small.py', '--work-dir', 'whole', cwd=folder)
    chance = random.Random(0)
    kills = in_a_write = 0
    finished = []
    for trial in range(3):
        work_dir = folder / f'killed{trial}'
        truncated = False
        for attempt in range(6):
            with train(folder, work_dir, '--resume') as run:
                run.wait_for('Checkpoints will be saved')
                if attempt % 2:
                    # In the middle of a write.
                    while (run.process.poll() is None
                           and not list(work_dir.glob('*.partial'))):
                        time.sleep(0.001)
                else:
                    time.sleep(chance.uniform(0, 2.5))
                run.process.kill()
                code = run.process.wait()
            in_a_write += bool(list(work_dir.glob('*.partial')))
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
            epochs = sorted(work_dir.glob('epoch_*.pth'))
            if len(epochs) > 1 and not truncated:
                # As by a stock hook that was killed in a write.
                os.truncate(epochs[-1], 10**6)
                truncated = True
        run_tool('train.py', 'small.py', '--work-dir', work_dir, '--resume',
                 cwd=folder)
        assert_same_training(work_dir, folder / 'whole')
        finished.append(attempt + 1)
    print(f'\n{kills} kills, {in_a_write} of them in the middle of a write, '
          f'in {finished} starts; all trainings equal the whole one')
    assert in_a_write > 3


@pytest.mark.soak
def test_full_disk(folder, run_tool):
    """The write fails with EFBIG, as the log is shorter and it is not."""
    work_dir = folder / 'full'
    arguments = ('small.py', '--work-dir', work_dir, '--cfg-options',
                 'default_hooks.checkpoint.max_keep_ckpts=1')
    run_tool('train.py', *arguments, 'train_cfg.max_epochs=1', cwd=folder)

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    done = subprocess.run(
        tool_command('train.py', *arguments[:3], '--resume', *arguments[3:]),
        cwd=folder, preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "File too large: '" in done.stderr and 'epoch_2' in done.stderr
    assert 'Traceback' not in done.stderr
    assert {path.name for path in work_dir.glob('*.pth*')} == {'epoch_1.pth'}
    run_tool('train.py', *arguments[:3], '--resume', *arguments[3:],
             cwd=folder)
    run_tool('train.py', 'small.py', '--work-dir', 'never_full', cwd=folder)
    assert_same_training(work_dir, folder / 'never_full')


@pytest.mark.soak
def test_two_trainings_in_a_work_dir(folder, run_tool):
    with train(folder, 'shared', '--cfg-options', *LONG) as first:
        first.wait_for('Epoch(train)')
        printed = run_tool('train.py', 'small.py', '--work-dir', 'shared',
                           cwd=folder, expect=2)
        assert 'Another process is writing to ' in printed
        assert 'Traceback' not in printed
        assert first.process.poll() is None
        first.process.kill()
        first.process.wait()
        # At once, while the workers of the first one may live.
        printed = run_tool('train.py', 'small.py', '--work-dir', 'shared',
                           cwd=folder)
    assert 'holds checkpoints of an earlier training' in printed
    assert Path((folder / 'shared/last_checkpoint').read_text()).name == (
        'epoch_3.pth')


@pytest.mark.soak
@pytest.mark.parametrize('victim, number, bound', [
    ('0', signal.SIGKILL, 15),
    ('1', signal.SIGKILL, 15),
    ('1', signal.SIGSTOP, 5 + PATIENCE + 15),
    (None, signal.SIGKILL, 15),
    (None, signal.SIGTERM, 15),
])
def test_one_of_several_processes_dies(folder, victim, number, bound):
    name = f'dist_{victim}_{number.name}'
    command = [
        TOOLS / 'dist_train.sh', 'small.py', '2', '--work-dir', name,
        '--cfg-options', *LONG, 'train_dataloader.dataset.indices=4',
        'env_cfg.dist_cfg.timeout=5']
    with Run(command, folder, PYTHON=sys.executable, PORT=free_port()) as run:
        run.wait_for('Epoch(train)    [2]')
        process = psutil.Process(run.process.pid)
        if victim is not None:
            process, = (child for child in process.children()
                        if child.environ().get('RANK') == victim)
        process.send_signal(number)
        seconds = run.wait_for_all(bound)
        assert run.process.returncode != 0
    last, = (folder / name).glob('last_checkpoint')
    assert torch.load(last.read_text())['meta']['epoch'] >= 1
    print(f'\n{number.name} to {victim or "the launcher"}: all processes '
          f'gone after {seconds:.1f} s')
