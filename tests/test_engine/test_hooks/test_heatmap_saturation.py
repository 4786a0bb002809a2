"""The shares that the hook logs, by hand and against what training does."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.data import DataLoader

from sigplug.engine.hooks import HeatmapSaturationHook, interval
from sigplug.errors import UserError
from sigplug.models.dense_heads import CenterHead

CHANNELS, SIZE = 4, 16
NAMES = ('at_lower_clip', 'at_upper_clip', 'stuck')


# -- worked examples --------------------------------------------------------
class Observed(nn.Module):
    """What a head offers to the hook."""

    def __init__(self, clip):
        super().__init__()
        self.heatmap_observers = []
        self.heatmap_clip = clip


def measure(model, scores, target):
    """Return what the hook hands to the message hub for one task."""
    hub = MessageHub('by hand')
    runner = SimpleNamespace(
        model=model, message_hub=hub, train_dataloader=range(1))
    hook = HeatmapSaturationHook()
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    logits = torch.tensor(scores).logit()
    for module in model.modules():
        for observe in getattr(module, 'heatmap_observers', ()):
            observe(4, logits, torch.tensor(target))
    hook.after_train_iter(runner, 0)
    hook.after_train(runner)
    assert not any(getattr(module, 'heatmap_observers', ())
                   for module in model.modules())
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
    shares = measure(Observed(clip), scores, target)
    assert shares == pytest.approx({
        'train/task4.at_lower_clip': lower,
        'train/task4.at_upper_clip': upper,
        'train/task4.stuck': stuck})


def test_head_that_does_without_its_activation(monkeypatch):
    """Its own loss_by_feat calls no observer. It is said once."""
    texts = []
    monkeypatch.setattr(interval, 'print_log',
                        lambda text, **_: texts.append(text))
    runner = SimpleNamespace(model=Observed(None), train_dataloader=range(9))
    hook = HeatmapSaturationHook(interval=2)
    hook.before_train(runner)
    for batch in range(6):
        hook.before_train_iter(runner, batch)
        hook.after_train_iter(runner, batch)
        assert len(texts) == (batch > 0)
    assert 'no heatmap of Observed: the loss of this head calls no' in texts[0]
    measure(Observed(None), SCORES, TARGET)
    assert len(texts) == 1


def test_two_heads_are_told_apart():
    model = nn.ModuleDict(dict(near=Observed(None), far=Observed(None)))
    assert list(measure(model, SCORES, TARGET)) == [
        f'train/{head}.task4.{name}' for head in ('near', 'far')
        for name in NAMES]


def test_model_without_such_a_head():
    with pytest.raises(UserError, match='Linear has no head .*CenterHead'):
        HeatmapSaturationHook().before_train(
            SimpleNamespace(model=nn.Linear(1, 1)))


# -- in a training ----------------------------------------------------------
class Detector(BaseModel):
    """A head on its input, which keeps the logits of every iteration."""

    def __init__(self, **kwargs):
        super().__init__()
        self.kept = []
        self.head = CenterHead(
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

    def forward(self, inputs, gt, mode='tensor'):
        (pred, ), = preds = self.head([torch.stack(inputs)])
        # So wide that both bounds are reached.
        heatmap = pred['heatmap']
        pred['heatmap'] = 6.0 * (heatmap - heatmap.mean()).div(
            heatmap.detach().std())
        pred['heatmap'].retain_grad()
        target, = self.head.get_targets(gt)[0]
        self.kept.append((pred['heatmap'], target.clone()))
        return self.head.loss_by_feat(preds, gt)


def make_data(count):
    data = []
    for _ in range(count):
        boxes = torch.rand(12, 7)
        boxes = boxes * torch.tensor([SIZE, SIZE, 1, 3, 3, 1, 3.]) + 0.5
        data.append(dict(
            inputs=torch.randn(CHANNELS, SIZE, SIZE),
            gt=InstanceData(
                bboxes_3d=LiDARInstance3DBoxes(boxes),
                labels_3d=torch.randint(2, (12, )))))
    return data


def train(work_dir, model, *hooks):
    """Train two epochs of four iterations; return the log."""
    torch.manual_seed(1)
    loader = DataLoader(
        make_data(8), batch_size=2, collate_fn=lambda samples: {
            key: [sample[key] for sample in samples] for key in samples[0]})
    runner = Runner(
        model, str(work_dir), train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=1e-2), clip_grad=dict(max_norm=9)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='EMAHook', momentum=0.1), *hooks],
        visualizer=dict(
            type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        randomness=dict(seed=0), default_scope='mmdet3d',
        experiment_name=f'{work_dir.parent.name}-{work_dir.name}')
    runner.train()
    path = work_dir / runner.timestamp / 'vis_data/scalars.json'
    return [json.loads(line) for line in path.read_text().splitlines()]


def expected_shares(logits, target, clip):
    """In numpy, from the logits and from the gradients of the training."""
    score = 1 / (1 + np.exp(-logits.detach().double().numpy()))
    target, grad = target.numpy(), logits.grad.numpy()
    wrong = np.where(target == 1, score < 0.5, (target < 0.5) & (score > 0.5))
    assert wrong.sum() > 10
    return {'task0.at_lower_clip': (score <= clip).mean(),
            'task0.at_upper_clip': (score >= 1 - clip).mean(),
            'task0.stuck': (grad[wrong] == 0).mean()}


@pytest.mark.parametrize('clip, stuck, kwargs', [
    (0.01, True, dict(heatmap_act=dict(type='ClipSigmoid', eps=0.01))),
    (1e-4, False, dict(loss_cls=dict(type='GaussianFocalLossWithLogits'))),
])
def test_log_holds_what_the_training_did(tmp_path, clip, stuck, kwargs):
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = Detector(**kwargs)
        log = train(tmp_path / 'work', model,
                    dict(type='HeatmapSaturationHook', interval=2))
    assert [record['step'] for record in log] == list(range(1, 9))
    keys = [f'task0.{name}' for name in NAMES]
    assert not set(keys) & set(log[0])
    for index in (1, 3, 5, 7):
        found = {key: log[index][key] for key in keys}
        assert found == pytest.approx(
            expected_shares(*model.kept[index], clip), rel=1e-6)
        assert (found['task0.stuck'] > 0) == stuck
    # In between, the logger repeats the last values.
    assert [log[2][key] for key in keys] == [log[1][key] for key in keys]
    assert model.head.heatmap_observers == []
