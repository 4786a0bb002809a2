"""The powers that the hook logs are those of the modules."""
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from torch import nn

from sigplug.engine.hooks import GeMPowerHook
from sigplug.models import GeM, GeMNeck


def make_runner(model, length=100):
    return SimpleNamespace(model=model, train_dataloader=range(length),
                           message_hub=MessageHub('powers'))


def logged(runner):
    return {key: buffer.data[0].tolist()
            for key, buffer in runner.message_hub.log_scalars.items()}


def test_every_gem_by_its_name():
    model = nn.ModuleDict(dict(
        one=GeM(p=2.5), fixed=GeM(p=float('inf'), p_trainable=False),
        neck=GeMNeck(p=4.0), inner=nn.Sequential(
            nn.Linear(1, 1), GeM(p=[2., 3., 7.], channels=3))))
    runner = make_runner(model)
    hook = GeMPowerHook(interval=1)
    hook.after_train_iter(runner, 0)
    with torch.no_grad():
        # Below p_range: what the optimiser holds is shown.
        model['one'].p.fill_(0.75)
        model['inner'][1].p[0] = 8.0
    hook.after_train_iter(runner, 1)
    assert logged(runner) == {
        'train/p/one': [2.5, 0.75],
        'train/p/fixed': [float('inf')] * 2,
        'train/p/neck': [4, 4],
        'train/p/inner.1.mean': [4, 6],
        'train/p/inner.1.min': [2, 3],
        'train/p/inner.1.max': [7, 8],
    }


@pytest.mark.parametrize('length, steps', [
    (100, {49, 99}), (120, {49, 99}), (7, {6})])
def test_as_often_as_the_logger(length, steps):
    runner = make_runner(nn.Sequential(GeM()), length)
    hook = GeMPowerHook()
    for step in range(length):
        before = len(logged(runner).get('train/p/0', []))
        hook.after_train_iter(runner, step)
        after = len(logged(runner).get('train/p/0', []))
        assert after - before == (step in steps)
