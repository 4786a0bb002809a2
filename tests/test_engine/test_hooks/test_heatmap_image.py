"""Which tasks, samples, heads and iterations are drawn."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sigplug.engine.hooks import HeatmapImageHook
from sigplug.errors import UserError
from sigplug.visualization import draw_heatmap_pair

HEATMAP = 'heatmap_beside_target'


class Observed(nn.Module):
    """What a head offers to the hook."""

    def __init__(self):
        super().__init__()
        self.heatmap_observers = []


def make_runner(model, length=1):
    """A runner that keeps its pictures by name and step."""
    pictures = {}
    runner = SimpleNamespace(
        model=model, train_dataloader=range(length), iter=41,
        pictures=pictures, visualizer=SimpleNamespace(
            add_image=lambda name, image, step: pictures.update(
                {(name, step): image})))
    runner.hook = HeatmapImageHook(interval=3)
    runner.hook.before_train(runner)
    return runner


def train_iter(runner, maps, batch_idx=0):
    """Have each head observe (task, logits, target) in one iteration."""
    runner.hook.before_train_iter(runner, batch_idx)
    for head, *seen in maps:
        for observe in head.heatmap_observers:
            observe(*seen)
    runner.hook.after_train_iter(runner, batch_idx)
    assert all(head.heatmap_observers == [] for head, *_ in maps)
    return runner.pictures


def random_maps(classes):
    return torch.randn(2, classes, 5, 6), torch.rand(2, classes, 5, 6)


def test_first_sample_and_best_of_all_classes_of_all_tasks():
    head = Observed()
    (a, s), (b, t) = random_maps(2), random_maps(3)
    pictures = train_iter(make_runner(nn.Sequential(head)),
                          [(head, 0, a, s), (head, 1, b, t)])
    score = 1 / (1 + np.exp(-np.concatenate([a[0], b[0]]).max(0)))
    target = np.concatenate([s[0], t[0]]).max(0)
    (key, image), = pictures.items()
    assert key == (HEATMAP, 42)
    np.testing.assert_allclose(
        image.astype(int), draw_heatmap_pair(score, target), atol=1)


def test_interval():
    head = Observed()
    runner = make_runner(nn.Sequential(head), length=9)
    for runner.iter in range(9):
        train_iter(runner, [(head, 0, *random_maps(1))],
                   batch_idx=runner.iter)
    assert [step for _, step in runner.pictures] == [3, 6, 9]


def test_what_cannot_be_drawn_does_not_end_the_training(monkeypatch):
    said = []
    monkeypatch.setattr('sigplug.engine.hooks.heatmap_image.print_log',
                        lambda text, **kwargs: said.append(text))
    head = Observed()
    logits, target = random_maps(1)
    assert train_iter(make_runner(nn.Sequential(head)),
                      [(head, 0, logits * np.nan, target)]) == {}
    assert 'iteration 42: predicted must lie in [0, 1]' in said[0]


def test_a_model_without_such_a_head():
    with pytest.raises(UserError, match='HeatmapImageHook: Linear has'):
        make_runner(nn.Linear(1, 1))
