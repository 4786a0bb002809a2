"""When hooks act, and which heads they observe."""
from types import SimpleNamespace

import pytest
from torch import nn

from sigplug.engine.hooks import interval
from sigplug.errors import UserError


class Head(nn.Module):
    """What a head offers to hooks."""

    def __init__(self):
        super().__init__()
        self.heatmap_observers = []


class Hook(interval.HeatmapObserverHook):
    """Reports what it has seen in each iteration that is due."""

    def before_train(self, runner):
        self.seen, self.reports = [], []
        super().before_train(runner)

    def _measure(self, head, prefix, task, logits, target):
        self.seen.append((prefix, task, logits, target))

    def _report(self, runner):
        self.reports.append(self.seen)
        self.seen = []


def run(model, heads, every=1, length=1):
    """Run an epoch in which these heads give something to see."""
    hook = Hook(interval=every)
    runner = SimpleNamespace(model=model, train_dataloader=range(length))
    hook.before_train(runner)
    for step in range(length):
        hook.before_train_iter(runner, step)
        for head in heads:
            for observe in head.heatmap_observers:
                observe(step, 'logits', 'target')
        hook.after_train_iter(runner, step)
    assert all(head.heatmap_observers == [] for head in heads)
    return hook.reports


@pytest.mark.parametrize('length, steps', [
    (100, [49, 99]), (120, [49, 99]), (7, [6])])
def test_as_often_as_mmengines_logger(length, steps):
    head = Head()
    reports = run(nn.Sequential(head), [head], 50, length)
    assert [i for i, seen in enumerate(reports) if seen] == steps
    assert reports[steps[0]] == [('', steps[0], 'logits', 'target')]


def test_two_heads_are_told_apart():
    model = nn.ModuleDict(dict(near=Head(), far=Head()))
    seen, = run(model, model.values())
    assert [prefix for prefix, *_ in seen] == ['near.', 'far.']


def test_model_without_such_a_head():
    with pytest.raises(UserError, match='Hook: Linear has no head .*Center'):
        run(nn.Linear(1, 1), [])


def test_head_that_does_without_its_activation(said):
    """Its own loss_by_feat calls no observer. It is said once."""
    head = Head()
    run(head, [], length=3)
    text, = said
    assert 'Hook has seen no heatmap of Head: the loss of this' in text
    run(head, [head], length=3)
    assert said == [text]


def test_interval_is_a_number():
    with pytest.raises(ValueError, match='interval'):
        Hook(interval=0)
