"""Which tasks and samples are drawn."""
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from sigplug.engine.hooks import HeatmapImageHook
from sigplug.visualization import draw_heatmap_pair


def draw(*tasks):
    """The pictures of one iteration, by name and step."""
    pictures = {}
    head = nn.Module()
    head.heatmap_observers = []
    runner = SimpleNamespace(
        model=head, train_dataloader=range(1), iter=41,
        visualizer=SimpleNamespace(
            add_image=lambda name, image, step: pictures.update(
                {(name, step): image})))
    hook = HeatmapImageHook()
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    for number, maps in enumerate(tasks):
        head.heatmap_observers[0](number, *maps)
    hook.after_train_iter(runner, 0)
    return pictures


def random_maps(classes):
    return torch.randn(2, classes, 5, 6), torch.rand(2, classes, 5, 6)


def test_first_sample_and_best_of_all_classes_of_all_tasks():
    (a, s), (b, t) = random_maps(2), random_maps(3)
    score = 1 / (1 + np.exp(-np.concatenate([a[0], b[0]]).max(0)))
    target = np.concatenate([s[0], t[0]]).max(0)
    (key, image), = draw((a, s), (b, t)).items()
    assert key == ('heatmap_beside_target', 42)
    np.testing.assert_allclose(
        image.astype(int), draw_heatmap_pair(score, target), atol=1)


def test_overflow_does_not_end_the_training():
    logits, target = random_maps(1)
    expected = draw_heatmap_pair(np.zeros((5, 6)), target[0, 0])
    image, = draw((logits * np.nan, target)).values()
    np.testing.assert_array_equal(image, expected)
