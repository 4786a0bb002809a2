"""The shares that the hook logs, by hand and from the gradients of a head.

That they reach the log of a training is tested in test_live_look.py.
"""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from test_models.test_dense_heads.center_heads import (
    config,
    features,
    random_instances,
)
from torch import nn

from sigplug.engine.hooks import HeatmapSaturationHook
from sigplug.models.dense_heads import CenterHead


def measure(head, train):
    """Return what the hook hands to the message hub."""
    hub = MessageHub('saturation')
    runner = SimpleNamespace(
        model=head, message_hub=hub, train_dataloader=range(1))
    hook = HeatmapSaturationHook()
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    train()
    hook.after_train_iter(runner, 0)
    return {key: buffer.current() for key, buffer in hub.log_scalars.items()}


SCORES = [0.05, 0.2, 0.95, 0.7, 0.95, 0.05, 0.95, 0.05, 0.45, 0.45]
TARGET = [1., 1., 0., 0.2, 0.8, 0., 1., 0.9, 0.1, 1.]
# wrong:  stuck yes stuck yes  -    -   -    -    -   yes


@pytest.mark.parametrize('clip, scores, target, lower, upper, stuck', [
    ((0.1, 0.9, True), SCORES, TARGET, 3 / 10, 3 / 10, 2 / 5),
    ((0.1, 0.9, False), SCORES, TARGET, 3 / 10, 3 / 10, 0),
    # Without a clip the usual bounds count.
    (None, [1e-5, 9e-5, 2e-4, 0.9998, 0.99995], [0., 1, 0, 0, 0], 2 / 5, 1 / 5,
     0),
    # No cell is wrong.
    ((0.1, 0.9, True), [0.95, 0.05, 0.95], [1., 0., 0.7], 1 / 3, 2 / 3, 0),
])
def test_cells_by_hand(clip, scores, target, lower, upper, stuck):
    head = nn.Module()
    head.heatmap_observers, head.heatmap_clip = [], clip
    shares = measure(head, lambda: head.heatmap_observers[0](
        4, torch.tensor(scores).logit(), torch.tensor(target)))
    assert shares == pytest.approx({
        'train/task4.at_lower_clip': lower,
        'train/task4.at_upper_clip': upper,
        'train/task4.stuck': stuck})


@pytest.mark.parametrize('clip, kwargs', [
    (0.01, dict(heatmap_act=dict(type='ClipSigmoid', eps=0.01))),
    (1e-4, dict(loss_cls=dict(type='GaussianFocalLossWithLogits'))),
])
def test_stuck_cells_have_no_gradient(clip, kwargs):
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        head = CenterHead(**config(
            velocity=False, tasks=[
                dict(num_class=2, class_names=['truck', 'bus'])], **kwargs))
    gt = [random_instances(60, size=7)]
    (pred, ), = preds = head(features(1))
    # So wide that both bounds are reached.
    logits = pred['heatmap'] = (
        6 * torch.randn(pred['heatmap'].shape)).requires_grad_()
    shares = measure(head, lambda: sum(
        head.loss_by_feat(preds, gt).values()).backward())

    score = 1 / (1 + np.exp(-logits.detach().double().numpy()))
    target = head.get_targets(gt)[0][0].numpy()
    wrong = np.where(target == 1, score < 0.5, (target < 0.5) & (score > 0.5))
    assert wrong.sum() > 10
    stuck = (logits.grad.numpy()[wrong] == 0).mean()
    assert (stuck > 0) == ('heatmap_act' in kwargs)
    assert shares == pytest.approx({
        'train/task0.at_lower_clip': (score <= clip).mean(),
        'train/task0.at_upper_clip': (score >= 1 - clip).mean(),
        'train/task0.stuck': stuck})
