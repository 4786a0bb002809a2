"""A loss that is not finite ends the training."""
import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS, DefaultScope
from mmengine.structures import BaseDataElement

from sigplug.engine.preflight import PreflightError

RUNNER = SimpleNamespace(iter=6)


@pytest.fixture
def hook():
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        return HOOKS.build(dict(type='sigplug.CheckLossHook'))


def batch(*paths):
    return dict(data_samples=[
        BaseDataElement(metainfo=dict(lidar_path=path)) for path in paths])


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_loss_and_files_are_named(hook, value):
    outputs = dict(
        loss=torch.tensor(value),
        **{'task0.loss_bbox': torch.tensor(value),
           'task0.loss_heatmap': torch.tensor(1.0)})
    with pytest.raises(PreflightError) as error:
        hook.after_train_iter(RUNNER, 6, batch('a.bin', 'b.bin'), outputs)
    text = str(error.value)
    assert 'in iteration 7: loss, task0.loss_bbox are NaN' in text
    assert 'Batch: a.bin, b.bin.' in text and '--resume' in text


def test_finite_losses_pass(hook):
    outputs = dict(loss=torch.tensor(3e38), note='text')
    hook.after_train_iter(RUNNER, 0, batch('a.bin'), outputs)
    hook.after_train_iter(RUNNER, 0)


@pytest.mark.parametrize('data_batch', [None, [1], dict(inputs=1)])
def test_batch_of_another_kind(hook, data_batch):
    with pytest.raises(PreflightError, match='Batch: unknown'):
        hook.after_train_iter(
            RUNNER, 0, data_batch, dict(loss=torch.tensor(math.nan)))


def test_what_is_only_logged_may_be_nan(hook):
    """Without a positive sample an accuracy, say, is 0 / 0."""
    hook.after_train_iter(
        SimpleNamespace(iter=0), 0, None,
        dict(loss=torch.tensor(1.), acc=torch.tensor(math.nan)))
