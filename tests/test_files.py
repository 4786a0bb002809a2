"""Files that are whole at every moment, and locks between processes."""
import os
import subprocess
import sys

import pytest

from sigplug.files import lock, replacing


def test_a_file_is_the_new_one_or_the_old(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    with pytest.raises(KeyboardInterrupt):
        with replacing(path) as partial:
            with open(partial, 'w') as file:
                file.write('half')
            assert path.read_text() == 'old'
            raise KeyboardInterrupt
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['file']
    with replacing(path) as partial:
        with open(partial, 'w') as file:
            file.write('new')
    assert path.read_text() == 'new' and os.listdir(tmp_path) == ['file']


HOLD = """
import os, sys
from sigplug.files import lock
held = lock(sys.argv[1])
print('locked', flush=True)
# A worker, which may outlive it.
os.fork()
sys.stdin.read()
"""


def test_one_process_at_a_time(tmp_path):
    """Until it is killed, although a worker survives it."""
    path = str(tmp_path / '.lock')
    # It imports sigplug, from where this process does.
    other = subprocess.Popen(
        [sys.executable, '-c', HOLD, path], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
    assert other.stdout.readline() == b'locked\n'
    with pytest.raises(BlockingIOError):
        lock(path)
    waited = []

    def wait():
        waited.append(other.poll())
        other.kill()

    lock(path, wait).close()
    # It was asked once, while the other one was there.
    assert waited == [None]
    other.wait()
    lock(path).close()
    # The end of the worker.
    other.communicate()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError('no locks available')

    monkeypatch.setattr('fcntl.lockf', refuse)
    lock(tmp_path / '.lock').close()
    with pytest.raises(OSError, match='No such file'):
        lock(tmp_path / 'no folder/.lock')
