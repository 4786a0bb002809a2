"""Signals and kills, as they befall a training."""
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import TOOLS, tool_command
from test_distributed import free_port

from sigplug.engine.checkpoint import load_safely

LONG = ('--cfg-options', 'train_cfg.max_epochs=1000')


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
        """Return all processes of the session that live."""
        return [process for process in psutil.process_iter()
                if self.lives(process)]

    def lives(self, process):
        try:
            return (os.getsid(process.pid) == self.process.pid
                    and process.status() != psutil.STATUS_ZOMBIE)
        except (OSError, psutil.Error):
            return False

    def wait_for_all(self, seconds):
        """Wait until the last process has gone."""
        deadline = time.time() + seconds
        while self.process.poll() is None or self.family():
            assert time.time() < deadline, self.family()
            time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.family():
            process.kill()
        self.process.wait()


@pytest.mark.slow
def test_stopped_by_sigterm(folder):
    """As a batch system does it."""
    command = tool_command('train.py', 'small.py', '--work-dir', 'stopped',
                           *LONG)
    with Run(command, folder) as run:
        run.wait_for('Epoch(train)')
        assert len(run.family()) > 1
        run.process.terminate()
        run.wait_for_all(60)
    assert run.process.returncode == 143
    # A thread of multiprocessing may complain that its worker is gone.
    assert '_Terminated' not in run.printed
    assert 'Stopped by SIGTERM.' in run.printed


@pytest.mark.soak
@pytest.mark.parametrize('victim, number, seconds', [
    ('1', signal.SIGKILL, 15),
    # The timeout of the process group, 30 s for its end, and some more.
    ('1', signal.SIGSTOP, 60),
    (None, signal.SIGTERM, 15),
])
def test_one_of_several_processes_dies(folder, victim, number, seconds):
    name = f'dist_{victim}_{number.name}'
    command = [
        TOOLS / 'dist_train.sh', 'small.py', '2', '--work-dir', name, *LONG,
        'train_dataloader.dataset.indices=4', 'env_cfg.dist_cfg.timeout=5']
    with Run(command, folder, PYTHON=sys.executable, PORT=free_port()) as run:
        run.wait_for('Epoch(train)    [2]')
        process = psutil.Process(run.process.pid)
        if victim is not None:
            process, = (child for child in process.children()
                        if child.environ().get('RANK') == victim)
        process.send_signal(number)
        run.wait_for_all(seconds)
        assert run.process.returncode != 0
    last, = (folder / name).glob('last_checkpoint')
    assert load_safely(last.read_text())['meta']['epoch'] >= 1
