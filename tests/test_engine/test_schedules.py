"""A training that is continued with another schedule."""
import shutil

import pytest
import torch
from toy_training import make_runner, train

from sigplug.engine.hooks import CheckpointFitHook


def cosine(epochs, **kwargs):
    return [dict(type='LinearLR', start_factor=0.1, end=2, by_epoch=False),
            dict(type='CosineAnnealingLR', T_max=epochs, end=epochs,
                 by_epoch=True, **kwargs)]


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
    """The work dir of a training of two epochs."""
    work_dir = tmp_path_factory.mktemp('begun')
    make_runner(work_dir, epochs=2, param_scheduler=cosine(2)).train()
    return work_dir


@pytest.fixture
def resume(begun, tmp_path, said):
    """A function that continues it; returns the last rate, and the texts."""

    def resume(epochs, param_scheduler, new_schedule=False):
        shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
        train(tmp_path, epochs=epochs, param_scheduler=param_scheduler,
              custom_hooks=[CheckpointFitHook(new_schedule=new_schedule)])
        return rate(tmp_path, max(epochs, 2)), said

    return resume


def rate(work_dir, epochs):
    checkpoint = torch.load(work_dir / f'epoch_{epochs}.pth')
    return checkpoint['optimizer']['param_groups'][0]['lr']


def test_longer_schedule_is_named(resume, begun):
    """mmengine's own way stays at the rate where it was interrupted."""
    last, (text, ) = resume(6, cosine(6))
    assert ('param_scheduler.1.end: checkpoint 2, config 6' in text
            and 'param_scheduler.1.T_max: checkpoint 2, config 6' in text)
    assert 'Those of the checkpoint are used; --new-schedule' in text
    assert 'param_scheduler.0' not in text and last == rate(begun, 2)


def test_new_schedule_equals_one_from_the_start(resume, tmp_path):
    make_runner(tmp_path / 'whole', epochs=5, param_scheduler=cosine(6)
                ).train()
    last, (text, ) = resume(5, cosine(6), new_schedule=True)
    expected = rate(tmp_path / 'whole', 5)
    # The old schedule would have stayed at 0.05.
    assert last == pytest.approx(expected) and expected < 0.02
    assert 'Those of the config are used' in text


@pytest.mark.parametrize('new_schedule', [False, True])
def test_equal_schedules_need_no_word(resume, new_schedule):
    assert resume(3, cosine(2), new_schedule)[1] == []


@pytest.mark.parametrize('epochs', [1, 2])
def test_nothing_is_left_to_do(resume, epochs):
    assert resume(epochs, cosine(2))[1] == [
        f'INFO: Nothing left to do: 2 epochs are done, and train_cfg asks for '
        f'{epochs}.']
