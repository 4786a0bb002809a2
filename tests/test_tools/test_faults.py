"""Signals and kills, as they befall a distributed training."""
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from conftest import TOOLS
from test_distributed import free_port

from sigplug.engine.checkpoint import load_safely


def family(leader):
    """All processes of a session that live."""
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if (os.getsid(process.pid) == leader.pid
                    and process.status() != psutil.STATUS_ZOMBIE):
                found.append(process)
    return found


def wait(seconds, ready):
    deadline = time.time() + seconds
    while not ready():
        assert time.time() < deadline
        time.sleep(0.05)


@pytest.mark.soak
@pytest.mark.parametrize('victim, number, seconds', [
    ('1', signal.SIGKILL, 15),
    # The timeout of the process group, 30 s for its end, and some more.
    ('1', signal.SIGSTOP, 60),
    (None, signal.SIGTERM, 15),
])
def test_one_of_several_processes_dies(folder, victim, number, seconds):
    name = f'dist_{victim}_{number.name}'
    log = folder / f'{name}.log'
    with log.open('w') as file:
        run = psutil.Popen(
            [TOOLS / 'dist_train.sh', 'small.py', '2', '--work-dir', name,
             '--cfg-options', 'train_cfg.max_epochs=1000',
             'train_dataloader.dataset.indices=4',
             'env_cfg.dist_cfg.timeout=5'],
            cwd=folder, stdout=file, stderr=subprocess.STDOUT,
            env=dict(os.environ, PYTHON=sys.executable, PORT=free_port()),
            start_new_session=True)
    try:
        wait(120, lambda: 'Epoch(train)    [2]' in log.read_text())
        process = run
        if victim is not None:
            process, = (child for child in run.children()
                        if child.environ().get('RANK') == victim)
        process.send_signal(number)
        wait(seconds, lambda: run.poll() is not None and not family(run))
        assert run.returncode != 0
    finally:
        for process in family(run):
            process.kill()
        run.wait()
    last, = (folder / name).glob('last_checkpoint')
    assert load_safely(last.read_text())['meta']['epoch'] >= 1
