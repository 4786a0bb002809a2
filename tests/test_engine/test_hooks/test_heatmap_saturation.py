"""The shares that the hook logs, by hand and from the gradients of a head.

That they reach the log of a training is tested in test_live_look.py.
"""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from sigplug.engine.hooks import HeatmapSaturationHook
from sigplug.models.dense_heads import CenterHead

CHANNELS, SIZE = 4, 16


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
        head = CenterHead(
            in_channels=CHANNELS,
            share_conv_channel=CHANNELS,
            tasks=[dict(num_class=2, class_names=['truck', 'bus'])],
            common_heads=dict(
                reg=(2, 1), height=(1, 1), dim=(3, 1), rot=(2, 1)),
            separate_head=dict(
                type='SeparateHead', head_conv=CHANNELS, final_kernel=1),
            bbox_coder=dict(
                type='CenterPointBBoxCoder', pc_range=[0, 0],
                out_size_factor=1, voxel_size=[1, 1]),
            loss_bbox=dict(type='mmdet.L1Loss', loss_weight=0.1),
            train_cfg=dict(
                grid_size=[SIZE, SIZE, 1], voxel_size=[1, 1, 1],
                point_cloud_range=[0, 0, 0, SIZE, SIZE, 1],
                out_size_factor=1, dense_reg=1, gaussian_overlap=0.1,
                max_objs=20, min_radius=2), **kwargs)
    boxes = torch.rand(12, 7) * torch.tensor(
        [SIZE, SIZE, 1, 3, 3, 1, 3.]) + 0.5
    gt = [InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes),
                       labels_3d=torch.randint(2, (12, )))]
    (pred, ), = preds = head([torch.randn(1, CHANNELS, SIZE, SIZE)])
    # So wide that both bounds are reached.
    logits = pred['heatmap'] = (
        6 * torch.randn(1, 2, SIZE, SIZE)).requires_grad_()
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
