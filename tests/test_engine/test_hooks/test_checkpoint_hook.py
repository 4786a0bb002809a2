"""Trainings that are killed or have no room, and what they leave."""
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import toy_training
from toy_training import exit_code, fork, make_runner

from sigplug.engine.hooks import CheckpointHook, checkpoint
from sigplug.engine.hooks.checkpoint import AtomicLocalBackend
from sigplug.engine.lock import lock_folder
from sigplug.errors import UserError

STOCK = dict(type='mmengine.CheckpointHook')
SCRIPT = toy_training.__file__


def play(function, work_dir, *command, **kwargs):
    """Have the script do it; return what it counted."""
    done = subprocess.run(
        [*command, sys.executable, SCRIPT, function, str(work_dir),
         json.dumps(kwargs)],
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_in_front_of_each_step(tmp_path):
    counts = play('die_everywhere', tmp_path)
    # Two epochs: three checkpoints, two records, and what is removed.
    assert counts['kills'] >= 20


@pytest.mark.soak
@pytest.mark.parametrize('seed, hook', [
    (0, {}),
    (1, dict(max_keep_ckpts=3, save_best=None)),
    (2, dict(by_epoch=False, save_best=None)),
])
def test_killed_at_random_moments(tmp_path, seed, hook):
    counts = play('murder', tmp_path, kills=60, seed=seed, mib=32, hook=hook)
    print(f'\n{counts["kills"]} kills, {counts["in_a_write"]} of them in the '
          f'middle of a write, survived; {counts["epochs"]} epochs')
    assert counts['in_a_write'] > 10


def test_no_room_under_the_limit_of_the_process(tmp_path):
    found = play('fill_disk', tmp_path, limit=2**20, mib=3)
    assert found['errno'] == errno.EFBIG and found['epoch'] == 1
    # Nothing of what did not fit.
    assert [name for name in found['left'] if not name.endswith('.py')] == [
        'best_toy_score_epoch_1.pth', 'epoch_1.pth']


def test_no_room_on_the_disk(tmp_path):
    """A disk of 16 MiB, in a name space of its own."""
    own = ['unshare', '--map-root-user', '--mount']
    if subprocess.run([*own, 'mount', '-t', 'tmpfs', 'none', tmp_path],
                      capture_output=True).returncode:
        pytest.skip('no file system can be mounted here')
    found = play(
        'fill_disk', tmp_path, *own, 'sh', '-c',
        f'mount -t tmpfs -o size=16m none {tmp_path} && exec "$@"', 'sh',
        mib=3)
    assert found['errno'] == errno.ENOSPC and found['epoch'] == 1


@pytest.mark.parametrize('hook', [
    {}, dict(max_keep_ckpts=2, save_best=None), dict(interval=2),
    dict(max_keep_ckpts=-1, published_keys=['meta', 'state_dict']),
])
def test_leaves_what_mmengine_leaves(tmp_path, hook):
    for name, kind in (('ours', {}), ('stock', STOCK)):
        make_runner(tmp_path / name, epochs=3, hook=hook | kind).train()
    ours, stock = (
        # The name of what is published ends in a hash.
        sorted(path.name.partition('-')[0] for path in folder.iterdir()
               if path.name == 'last_checkpoint' or path.suffix == '.pth')
        for folder in (tmp_path / 'ours', tmp_path / 'stock'))
    assert ours == stock and len(ours) >= 2
    assert (tmp_path / 'ours/last_checkpoint').read_text() == (
        tmp_path / 'stock/last_checkpoint').read_text().replace(
            'stock', 'ours')


def test_resumed_training_removes_what_the_one_before_left(tmp_path):
    make_runner(tmp_path, epochs=2).train()
    (tmp_path / 'epoch_9.pth.partial').touch()
    make_runner(tmp_path, epochs=3, resume=True,
                load_from=str(tmp_path / 'epoch_2.pth')).train()
    assert {path.name for path in tmp_path.glob('*.p*')
            if path.suffix != '.py'} == {
        'epoch_3.pth', 'best_toy_score_epoch_3.pth'}


class Sleeper:
    """A training in another process, which lasts and has a worker."""

    def __init__(self, work_dir):
        self.marker = Path(work_dir) / 'worker'
        self.process = fork(self.run)
        deadline = time.time() + 60
        while not self.marker.exists():
            assert time.time() < deadline
            time.sleep(0.02)

    def run(self):
        hook = CheckpointHook()

        class Runner:
            work_dir = str(self.marker.parent)
            logger = logging.getLogger('quiet')

        hook.before_train(Runner)
        # As those of a data loader, it inherits what is open.
        worker = str(fork(time.sleep, 600))
        partial = self.marker.with_name('worker_id')
        partial.write_text(worker)
        partial.rename(self.marker)
        time.sleep(600)


def test_one_training_at_a_time(tmp_path):
    first = Sleeper(tmp_path)
    worker = int((tmp_path / 'worker').read_text())
    (tmp_path / 'epoch_1.pth.partial').touch()
    try:
        with pytest.raises(UserError, match='Another process') as info:
            make_runner(tmp_path).train()
        for word in (str(tmp_path), '--work-dir'):
            assert word in str(info.value)
        # It may be what the other one is writing.
        assert (tmp_path / 'epoch_1.pth.partial').exists()
        os.kill(first.process, signal.SIGKILL)
        exit_code(first.process)
        # Free at once, although a worker has survived.
        os.kill(worker, 0)
        make_runner(tmp_path).train()
    finally:
        for process in (worker, first.process):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    assert not (tmp_path / 'epoch_1.pth.partial').exists()


@pytest.mark.parametrize('folder', ['a/run', 'out/run'])
def test_all_that_is_written_to_is_locked(tmp_path, folder):
    """By another process: to the one that has it, a lock is always free."""
    hook = dict(out_dir=str(tmp_path / 'out'))
    locked, ended = os.pipe(), os.pipe()

    def hold():
        with lock_folder(str(tmp_path / folder)):
            os.write(locked[1], b'.')
            os.close(ended[1])
            os.read(ended[0], 1)

    other = fork(hold)
    # If it fails, nobody is left to write.
    os.close(locked[1])
    try:
        assert os.read(locked[0], 1) == b'.'
        with pytest.raises(UserError, match=f"/{folder}'"):
            make_runner(tmp_path / 'a/run', hook=hook).train()
    finally:
        os.close(ended[1])
        exit_code(other)
    make_runner(tmp_path / 'a/run', hook=hook).train()
    assert (tmp_path / 'out/run/epoch_2.pth').exists()


def test_each_process_learns_that_the_lock_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, 'is_main_process', lambda: False)
    monkeypatch.setattr(checkpoint, 'broadcast_object_list',
                        lambda objects: objects.__setitem__(0, 'It is taken.'))
    with pytest.raises(UserError, match='It is taken'):
        CheckpointHook().before_train(make_runner(tmp_path))


def test_the_lock_ends_with_the_training(tmp_path):
    make_runner(tmp_path).train()
    other = fork(make_runner(tmp_path, epochs=3).train)
    assert exit_code(other) == 0


def test_a_folder_that_cannot_be_locked(tmp_path, monkeypatch):
    """As on some network file systems: training goes on."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr('fcntl.lockf', refuse)
    make_runner(tmp_path).train()
    assert (tmp_path / 'epoch_2.pth').exists()


def test_other_back_ends_are_left_alone(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(AtomicLocalBackend, 'put',
                        lambda self, obj, path: written.append(path))
    make_runner(tmp_path / 'a', epochs=1,
                hook=dict(backend_args=dict(backend='local'))).train()
    assert (tmp_path / 'a/epoch_1.pth').exists()
    assert {Path(path).name for path in written} == {'last_checkpoint'}


def test_interrupted_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / 'folder/file'
    backend = AtomicLocalBackend()
    backend.put(b'old', path)

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr('os.fsync', interrupt)
    with pytest.raises(KeyboardInterrupt):
        backend.put(b'new', path)
    assert path.read_bytes() == b'old'
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_names_its_file(tmp_path):
    (tmp_path / 'file').mkdir()
    with pytest.raises(OSError) as info:
        AtomicLocalBackend().put(b'new', tmp_path / 'file')
    assert info.value.filename == str(tmp_path / 'file')
    assert info.value.errno == errno.EISDIR


def test_a_new_checkpoint_of_the_same_name_stays(tmp_path):
    make_runner(tmp_path, epochs=3, hook=dict(
        filename_tmpl='latest.pth', save_best=None)).train()
    assert [path.name for path in tmp_path.glob('*.pth')] == ['latest.pth']
    assert (tmp_path / 'last_checkpoint').read_text().endswith('latest.pth')


def test_a_new_best_one_in_the_same_epoch_stays(tmp_path):
    runner = make_runner(tmp_path, hook=dict(interval=100))
    # Validates in each iteration, of which an epoch has several.
    runner._train_loop = dict(by_epoch=False, max_iters=2, val_interval=1)
    runner.train()
    assert list(tmp_path.glob('best_*.pth'))


def test_a_file_system_that_cannot_sync(tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.EINVAL, 'Invalid argument')

    monkeypatch.setattr(os, 'fsync', fsync)
    AtomicLocalBackend().put(b'whole', tmp_path / 'file')
    assert (tmp_path / 'file').read_bytes() == b'whole'
