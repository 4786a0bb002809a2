"""A loss that is not finite ends the training."""
import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import nn

from sigplug.engine.hooks import CheckLossHook
from sigplug.engine.optim_wrapper import CPUAmpOptimWrapper
from sigplug.errors import UserError

RUNNER = SimpleNamespace(iter=6, optim_wrapper=SimpleNamespace())
needs_scaler = pytest.mark.skipif(
    not hasattr(torch.amp, 'GradScaler'),
    reason='torch < 2.3 has no loss scaler on the CPU')


@pytest.fixture
def hook():
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        return HOOKS.build(dict(type='sigplug.CheckLossHook'))


def batch(*paths):
    return dict(data_samples=[
        BaseDataElement(metainfo=dict(lidar_path=path)) for path in paths])


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_loss_and_files_are_named(hook, value):
    outputs = dict(
        loss=torch.tensor(value),
        **{'task0.loss_bbox': torch.tensor(value),
           'task0.loss_heatmap': torch.tensor(1.0)})
    with pytest.raises(UserError) as error:
        hook.after_train_iter(RUNNER, 6, batch('a.bin', 'b.bin'), outputs)
    text = str(error.value)
    assert 'in iteration 7: loss, task0.loss_bbox are NaN' in text
    assert 'Batch: a.bin, b.bin.' in text and '--resume' in text


def test_what_passes(hook):
    """Without a positive sample an accuracy, say, is 0 / 0."""
    outputs = dict(loss=torch.tensor(3e38), acc=torch.tensor(math.nan),
                   note='text')
    hook.after_train_iter(RUNNER, 0, batch('a.bin'), outputs)
    hook.after_train_iter(RUNNER, 0)


class Training:
    """Iterations in mixed precision, of which a large input overflows."""

    def __init__(self, **hook):
        self.model = nn.Sequential(nn.Linear(2, 2))
        self.optim_wrapper = CPUAmpOptimWrapper(
            dtype='float16',
            optimizer=torch.optim.SGD(self.model.parameters(), lr=1e-3))
        self.hook, self.iter = CheckLossHook(**hook), 0

    def step(self, value):
        with self.optim_wrapper.optim_context(self.model):
            loss = self.model(torch.full((4, 2), value)).square().mean()
        self.optim_wrapper.update_params(loss)
        self.hook.after_train_iter(self, 0, batch('a.bin'), dict(loss=loss))
        self.iter += 1
        return loss.item()


@needs_scaler
def test_an_overflow_that_the_scaler_catches_passes(said):
    training = Training()
    training.step(1.0)
    before = [value.clone() for value in training.model.parameters()]
    scale = training.optim_wrapper.loss_scaler.get_scale()
    assert not math.isfinite(training.step(1e5))
    warning, = said
    assert warning.startswith(
        'WARNING: Iteration 2: loss is NaN or infinite. Batch: a.bin.')
    for value, wanted in zip(training.model.parameters(), before, strict=True):
        assert torch.equal(value, wanted)
    assert training.optim_wrapper.loss_scaler.get_scale() == scale / 2
    assert math.isfinite(training.step(1.0))


@needs_scaler
def test_overflows_in_a_row_end_the_training():
    training = Training(patience=2)
    for value in (1e5, 1e5, 1.0, 1e5, 1e5):
        training.step(value)
    with pytest.raises(UserError, match='in iteration 6: loss is NaN'):
        training.step(1e5)


@needs_scaler
def test_a_scale_that_cannot_help_ends_the_training():
    training = Training(patience=100)
    with pytest.raises(UserError, match='in iteration 17: loss is NaN'):
        for _ in range(100):
            training.step(1e5)
    assert training.optim_wrapper.loss_scaler.get_scale() == 0.5
