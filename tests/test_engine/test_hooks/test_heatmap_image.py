"""What is drawn of tasks, samples and heads; the pixels of a training are in
test_live_look.py."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sigplug.engine.hooks import HeatmapImageHook
from sigplug.errors import UserError
from sigplug.visualization import draw_heatmap_pair


class Observed(nn.Module):

    def __init__(self):
        super().__init__()
        self.heatmap_observers = []


class Pictures:

    def __init__(self):
        self.added = {}

    def add_image(self, name, image, step):
        assert (name, step) not in self.added
        self.added[name, step] = image


def make_runner(model, length=1):
    return SimpleNamespace(model=model, train_dataloader=range(length),
                           visualizer=Pictures(), iter=41)


def train_iter(hook, runner, maps, batch_idx=0):
    """Have each head observe (task, logits, target) in one iteration."""
    hook.before_train_iter(runner, batch_idx)
    for head, *seen in maps:
        for observe in head.heatmap_observers:
            observe(*seen)
    hook.after_train_iter(runner, batch_idx)
    return runner.visualizer.added


def random_maps(classes):
    logits = torch.randn(2, classes, 5, 6)
    return logits, torch.rand(2, classes, 5, 6)


def test_first_sample_and_best_of_all_classes_of_all_tasks():
    model = nn.Sequential(Observed())
    runner = make_runner(model)
    hook = HeatmapImageHook()
    hook.before_train(runner)
    (a, s), (b, t) = random_maps(2), random_maps(3)
    added = train_iter(hook, runner, [(model[0], 0, a, s),
                                      (model[0], 1, b, t)])
    score = 1 / (1 + np.exp(-np.concatenate([a[0], b[0]]).max(0)))
    target = np.concatenate([s[0], t[0]]).max(0)
    (name, step), = added
    assert (name, step) == ('heatmap_beside_target', 42)
    np.testing.assert_allclose(
        added[name, step].astype(int), draw_heatmap_pair(score, target),
        atol=1)


def test_each_of_two_heads_has_its_picture():
    model = nn.ModuleDict(dict(near=Observed(), far=Observed()))
    runner = make_runner(model)
    hook = HeatmapImageHook()
    hook.before_train(runner)
    added = train_iter(hook, runner, [
        (head, 0, *random_maps(1)) for head in model.values()])
    near, far = (added[f'{name}.heatmap_beside_target', 42]
                 for name in ('near', 'far'))
    assert (near != far).any()


def test_interval_and_end():
    model = nn.Sequential(Observed())
    runner = make_runner(model, length=9)
    hook = HeatmapImageHook(interval=3)
    hook.before_train(runner)
    for runner.iter in range(9):
        train_iter(hook, runner, [(model[0], 0, *random_maps(1))],
                   batch_idx=runner.iter)
    assert [step for _, step in runner.visualizer.added] == [3, 6, 9]
    hook.after_train(runner)
    assert model[0].heatmap_observers == []


def test_other_ranks_draw_nothing(monkeypatch):
    monkeypatch.setattr('sigplug.engine.hooks.heatmap_image.is_main_process',
                        lambda: False)
    model = nn.Sequential(Observed())
    runner = make_runner(model)
    hook = HeatmapImageHook()
    hook.before_train(runner)
    assert train_iter(hook, runner, [(model[0], 0, *random_maps(1))]) == {}


def test_what_cannot_be_drawn_does_not_end_the_training(monkeypatch):
    said = []
    monkeypatch.setattr('sigplug.engine.hooks.heatmap_image.print_log',
                        lambda text, **kwargs: said.append(text))
    model = nn.Sequential(Observed())
    runner = make_runner(model)
    hook = HeatmapImageHook()
    hook.before_train(runner)
    logits, target = random_maps(1)
    added = train_iter(hook, runner, [(model[0], 0, logits * np.nan, target)])
    assert added == {} and 'iteration 42: predicted must be finite' in said[0]


def test_a_model_without_such_a_head():
    with pytest.raises(UserError, match='HeatmapImageHook: Linear has'):
        HeatmapImageHook().before_train(make_runner(nn.Linear(1, 1)))
