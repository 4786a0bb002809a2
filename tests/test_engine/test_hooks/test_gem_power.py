"""The powers that the hook logs are those of the modules."""
from types import SimpleNamespace

import torch
from mmengine.logging import MessageHub
from torch import nn

from sigplug.engine.hooks import GeMPowerHook
from sigplug.models import GeM, GeMNeck


def test_every_gem_by_its_name():
    model = nn.ModuleDict(dict(
        one=GeM(p=2.5), fixed=GeM(p=float('inf'), p_trainable=False),
        neck=GeMNeck(p=4.0), inner=nn.Sequential(
            nn.Linear(1, 1), GeM(p=[2., 3., 7.], channels=3))))
    runner = SimpleNamespace(model=model, train_dataloader=range(100),
                             message_hub=MessageHub('powers'))
    hook = GeMPowerHook(interval=2)
    hook.after_train_iter(runner, 1)
    with torch.no_grad():
        # Below p_range: what the optimiser holds is shown.
        model['one'].p.fill_(0.75)
        model['inner'][1].p[0] = 8.0
    # Of these, the second is due.
    hook.after_train_iter(runner, 2)
    hook.after_train_iter(runner, 3)
    assert {key: buffer.data[0].tolist() for key, buffer in
            runner.message_hub.log_scalars.items()} == {
        'train/p/one': [2.5, 0.75],
        'train/p/fixed': [float('inf')] * 2,
        'train/p/neck': [4, 4],
        'train/p/inner.1.mean': [4, 6],
        'train/p/inner.1.min': [2, 3],
        'train/p/inner.1.max': [7, 8],
    }
