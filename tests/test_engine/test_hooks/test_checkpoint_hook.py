"""Trainings that are killed or have no room, and what they leave."""
import errno
import os
import resource
import signal
import subprocess
import sys

import pytest
import toy_training
from toy_training import check, exit_code, fork, make_runner, train

from sigplug.errors import UserError
from sigplug.files import lock


def test_killed_in_front_of_each_step(tmp_path):
    done = subprocess.run(
        [sys.executable, toy_training.__file__, tmp_path],
        env=dict(os.environ, OMP_NUM_THREADS='1'), capture_output=True,
        text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    # Two epochs: three checkpoints, two records, and what is removed.
    assert int(done.stdout.splitlines()[-1]) >= 15


def test_no_room(tmp_path):
    """The checkpoint before stays whole, and training goes on from it."""

    def train_without_room():
        # The signal would kill; ignored, the write fails.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        train(tmp_path, epochs=2, mib=3)

    make_runner(tmp_path, epochs=1, mib=3).train()
    assert exit_code(fork(train_without_room)) == errno.EFBIG
    assert check(tmp_path) == 1
    # Nothing of what did not fit.
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == [
        'best_toy_score_epoch_1.pth', 'epoch_1.pth']
    train(tmp_path, epochs=2, mib=3)
    assert check(tmp_path) == 2


@pytest.mark.parametrize('hook', [
    {}, dict(max_keep_ckpts=2, save_best=None),
    dict(max_keep_ckpts=-1, published_keys=['meta', 'state_dict']),
    dict(filename_tmpl='latest.pth', save_best=None),
])
def test_leaves_what_mmengine_leaves(tmp_path, hook):
    stock = dict(type='mmengine.CheckpointHook')
    for name, kind in (('ours', {}), ('stock', stock)):
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
    assert {path.name for path in tmp_path.glob('*.pth*')} == {
        'epoch_3.pth', 'best_toy_score_epoch_3.pth'}


def test_one_training_at_a_time_writes_to_a_folder(tmp_path):
    locked = os.pipe()

    def hold():
        held = lock(tmp_path / '.lock')
        os.write(locked[1], b'.')
        signal.pause()
        held.close()

    # It may be what the other one is writing.
    partial = tmp_path / 'epoch_1.pth.partial'
    partial.touch()
    other = fork(hold)
    assert os.read(locked[0], 1) == b'.'
    with pytest.raises(UserError, match='Another process .* --work-dir'):
        make_runner(tmp_path).train()
    assert partial.exists()
    os.kill(other, signal.SIGKILL)
    exit_code(other)
    make_runner(tmp_path).train()
    assert not partial.exists()
    # The lock ends with the training.
    assert exit_code(fork(make_runner(tmp_path).train)) == 0
