"""The shares that the hook logs, by hand and against what training does."""
import copy
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.data import DataLoader

from sigplug.engine.checkpoint import load_safely
from sigplug.engine.hooks import HeatmapSaturationHook
from sigplug.errors import UserError
from sigplug.models.dense_heads import CenterHead

CHANNELS, SIZE = 4, 16
CLASSES = [['car'], ['truck', 'bus']]
NAMES = ('at_lower_clip', 'at_upper_clip', 'stuck')
KEYS = [f'task{task}.{name}' for task in (0, 1) for name in NAMES]


def make_head(**kwargs):
    return CenterHead(**dict(
        dict(
            in_channels=CHANNELS,
            share_conv_channel=CHANNELS,
            tasks=[dict(num_class=len(names), class_names=names)
                   for names in CLASSES],
            common_heads=dict(
                reg=(2, 1), height=(1, 1), dim=(3, 1), rot=(2, 1)),
            separate_head=dict(
                type='SeparateHead', head_conv=CHANNELS, final_kernel=1),
            bbox_coder=dict(
                type='CenterPointBBoxCoder', pc_range=[0, 0],
                out_size_factor=1, voxel_size=[1, 1]),
            loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'),
            loss_bbox=dict(type='mmdet.L1Loss', loss_weight=0.1),
            train_cfg=dict(
                grid_size=[SIZE, SIZE, 1], voxel_size=[1, 1, 1],
                point_cloud_range=[0, 0, 0, SIZE, SIZE, 1],
                out_size_factor=1, dense_reg=1, gaussian_overlap=0.1,
                max_objs=20, min_radius=2)), **kwargs))


class Detector(BaseModel):
    """A head on its input, which keeps the logits of every iteration."""

    def __init__(self, spread=6.0, **kwargs):
        super().__init__()
        self.head = make_head(**kwargs)
        self.spread = spread
        self.kept = []

    def forward(self, inputs, gt, mode='tensor'):
        preds = self.head([torch.stack(inputs)])
        for pred, in preds:
            # So wide that both bounds are reached.
            heatmap = pred['heatmap']
            pred['heatmap'] = self.spread * (heatmap - heatmap.mean()).div(
                heatmap.detach().std())
            pred['heatmap'].retain_grad()
        self.kept.append([pred['heatmap'] for pred, in preds])
        self.kept[-1].append([t.clone() for t in self.head.get_targets(gt)[0]])
        return self.head.loss_by_feat(preds, gt)


class NoHead(BaseModel):

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs, gt, mode='tensor'):
        return dict(loss=self.layer(torch.ones(1)).sum())


def make_data(count):
    generator = torch.Generator().manual_seed(0)
    data = []
    for _ in range(count):
        boxes = torch.rand(12, 7, generator=generator)
        boxes = boxes * torch.tensor([SIZE, SIZE, 1, 3, 3, 1, 3.]) + 0.5
        data.append(dict(
            inputs=torch.randn(CHANNELS, SIZE, SIZE, generator=generator),
            gt=InstanceData(
                bboxes_3d=LiDARInstance3DBoxes(boxes),
                labels_3d=torch.randint(3, (12, ), generator=generator))))
    return data


def collate(samples):
    return {key: [sample[key] for sample in samples] for key in samples[0]}


def make_runner(work_dir, model, hooks, *, log_interval=1, epochs=2, count=8,
                **kwargs):
    return Runner(
        model,
        str(work_dir),
        train_dataloader=DataLoader(
            make_data(count), batch_size=2, collate_fn=collate),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=1e-2), clip_grad=dict(max_norm=9)),
        default_hooks=dict(logger=dict(type='LoggerHook',
                                       interval=log_interval)),
        custom_hooks=hooks,
        visualizer=dict(
            type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        randomness=dict(seed=0),
        default_scope='mmdet3d',
        experiment_name=f'{work_dir.parent.name}-{work_dir.name}',
        **kwargs)


def read_log(runner):
    path = f'{runner.work_dir}/{runner.timestamp}/vis_data/scalars.json'
    with open(path) as file:
        return [json.loads(line) for line in file]


@pytest.fixture(autouse=True)
def default_scope():
    """That of the configs, whatever a runner in another test has set."""
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        yield


def expected_shares(kept, clip):
    """In numpy, from the logits and from the gradients of the training."""
    shares = {}
    *maps, targets = kept
    for task, (logits, target) in enumerate(zip(maps, targets, strict=True)):
        score = 1 / (1 + np.exp(-logits.detach().double().numpy()))
        target, grad = target.numpy(), logits.grad.numpy()
        wrong = np.where(target == 1, score < 0.5,
                         (target < 0.5) & (score > 0.5))
        assert wrong.sum() > 10
        shares[f'task{task}.at_lower_clip'] = (score <= clip).mean()
        shares[f'task{task}.at_upper_clip'] = (score >= 1 - clip).mean()
        shares[f'task{task}.stuck'] = (grad[wrong] == 0).mean()
    return shares


# --- worked examples ------------------------------------------------------


class Observed(nn.Module):
    """What a head offers to the hook."""

    def __init__(self, clip):
        super().__init__()
        self.heatmap_observers = []
        self.heatmap_clip = clip


def measure(clip, scores, target, dtype=torch.float32):
    """What the hook hands to the message hub for one task of one head."""
    model = nn.Sequential(Observed(clip))
    hub = MessageHub('by hand')
    runner = SimpleNamespace(
        model=model, message_hub=hub, train_dataloader=range(1))
    hook = HeatmapSaturationHook()
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    logits = torch.tensor(scores, dtype=torch.float64).logit().to(dtype)
    model[0].heatmap_observers[0](4, logits, torch.tensor(target))
    hook.after_train_iter(runner, 0)
    hook.after_train(runner)
    assert model[0].heatmap_observers == []
    return {key: buffer.current() for key, buffer in hub.log_scalars.items()}


SCORES = [0.05, 0.2, 0.95, 0.7, 0.95, 0.05, 0.95, 0.05, 0.45, 0.45]
TARGET = [1., 1., 0., 0.2, 0.8, 0., 1., 0.9, 0.1, 1.]
# wrong:  stuck yes stuck yes  -    -   -    -    -   yes


@pytest.mark.parametrize('stops, stuck', [(True, 2 / 5), (False, 0)])
def test_ten_cells_by_hand(stops, stuck):
    assert measure((0.1, 0.9, stops), SCORES, TARGET) == pytest.approx({
        'train/task4.at_lower_clip': 3 / 10,
        'train/task4.at_upper_clip': 3 / 10,
        'train/task4.stuck': stuck
    })


def test_without_a_clip_the_usual_bounds_count():
    scores = [1e-5, 9e-5, 2e-4, 0.5, 0.9998, 0.99995, 1e-5, 0.5]
    target = [0., 1., 0., 0., 0., 0., 1., 0.]
    assert measure(None, scores, target) == pytest.approx({
        'train/task4.at_lower_clip': 3 / 8,
        'train/task4.at_upper_clip': 1 / 8,
        'train/task4.stuck': 0
    })


def test_no_wrong_cell():
    shares = measure((0.1, 0.9, True), [0.95, 0.05, 0.95], [1., 0., 0.7])
    assert shares['train/task4.stuck'] == 0


def test_no_score_is_at_a_clip_because_it_is_not_a_number():
    nan = float('nan')
    shares = measure((0.1, 0.9, True), [nan, nan, 0.95], [1., 0., 0.])
    assert list(shares.values()) == pytest.approx([0, 1 / 3, 1])


# --- the clip of a head ---------------------------------------------------


def loss(**kwargs):
    return dict(type='GaussianFocalLossWithLogits', **kwargs)


@pytest.mark.parametrize('kwargs, clip', [
    (dict(), (1e-4, 1 - 1e-4, True)),
    (dict(heatmap_act=dict(type='ClipSigmoid', eps=0.1)), (0.1, 0.9, True)),
    (dict(heatmap_act=dict(
        type='ClipSigmoid', min_val=0.2, max_val=0.7,
        grad='straight_through')), (0.2, 0.7, False)),
    (dict(loss_cls=loss(clip=0.01)), (0.01, 0.99, True)),
    (dict(loss_cls=loss()), None),
    (dict(heatmap_act=dict(type='Sigmoid')), None),
])
def test_clip_of_the_head(kwargs, clip):
    found = make_head(**kwargs).heatmap_clip
    assert found == (clip and pytest.approx(clip))


def test_observers_see_what_the_loss_sees():
    model = Detector()
    seen = []
    model.head.heatmap_observers.append(
        lambda *args: seen.append((*args, torch.is_grad_enabled())))
    batch = collate(make_data(2))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        model(**batch)
    *maps, targets = model.kept[0]
    assert [task for task, *_ in seen] == [0, 1]
    for (task, logits, target, recording) in seen:
        assert not recording
        assert logits.dtype == torch.float32
        assert logits.equal(maps[task].float())
        assert target.equal(targets[task])


def test_a_cell_exactly_at_the_bound_still_learns():
    """The hook's strict comparison is that of clamp's gradient."""
    low = torch.tensor(-2.0).sigmoid().item()
    logits = torch.tensor([-2.0, -2.5], requires_grad=True)
    logits.sigmoid().clamp(low, 0.9).sum().backward()
    assert logits.grad[0] > 0 and logits.grad[1] == 0
    scores = logits.detach().double().sigmoid().tolist()
    shares = measure((low, 0.9, True), scores, [1., 1.])
    assert shares['train/task4.at_lower_clip'] == 1
    assert shares['train/task4.stuck'] == 0.5


# --- in a training --------------------------------------------------------


@pytest.mark.parametrize('kwargs, clip, stuck', [
    (dict(), 1e-4, True),
    (dict(heatmap_act=dict(type='ClipSigmoid', eps=0.01)), 0.01, True),
    (dict(heatmap_act=dict(
        type='ClipSigmoid', grad='straight_through')), 1e-4, False),
    (dict(loss_cls=loss(clip=0.01)), 0.01, True),
    (dict(loss_cls=loss()), 1e-4, False),
])
def test_json_log_holds_what_the_training_did(tmp_path, kwargs, clip, stuck):
    """Four iterations in each epoch, of which every second is measured."""
    model = Detector(**kwargs)
    runner = make_runner(tmp_path / 'work', model, [
        dict(type='sigplug.HeatmapSaturationHook', interval=2)])
    runner.train()
    log = read_log(runner)
    assert [record['step'] for record in log] == list(range(1, 9))
    assert not any('clip' in key or 'stuck' in key for key in log[0])
    for index in (1, 3, 5, 7):
        expected = expected_shares(model.kept[index], clip)
        assert list(expected) == KEYS
        found = {key: log[index][key] for key in KEYS}
        assert found == pytest.approx(expected, rel=1e-6)
        assert (found['task0.stuck'] > 0) == stuck
        for side in ('lower', 'upper'):
            assert found[f'task0.at_{side}_clip'] + found[
                f'task1.at_{side}_clip'] > 0.01
    # In between, the logger repeats the last values.
    assert [log[2][key] for key in KEYS] == [log[1][key] for key in KEYS]
    assert log[3] != log[1]
    folder = tmp_path / 'work' / runner.timestamp
    text = (folder / f'{runner.timestamp}.log').read_text()
    assert f'task1.stuck: {log[7]["task1.stuck"]:.4f}' in text
    assert model.head.heatmap_observers == []


def test_only_measured_iterations_are_computed(tmp_path, monkeypatch):
    """An iteration that is not measured costs nothing."""
    calls = []
    sigmoid = torch.Tensor.sigmoid

    def spy(self):
        calls.append(len(model.kept))
        return sigmoid(self)

    # The head's own activation calls torch.sigmoid.
    monkeypatch.setattr(torch.Tensor, 'sigmoid', spy)
    model = Detector()
    make_runner(tmp_path / 'work', model, [
        HeatmapSaturationHook(interval=3)]).train()
    assert calls == [3, 3, 7, 7]


def test_nothing_waits_for_the_device_inside_the_loss():
    """No value of a tensor is read: one on 'meta' has none to give."""
    hook = HeatmapSaturationHook()
    model = Observed((0.1, 0.9, True))
    runner = SimpleNamespace(model=model, train_dataloader=range(1))
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    empty = torch.empty(2, 3, 8, 8, device='meta')
    with pytest.raises((RuntimeError, NotImplementedError)):
        empty.sum().item()
    model.heatmap_observers[0](0, empty, empty)
    shares, = hook._shares.values()
    assert shares.is_meta and shares.shape == (3, )


def test_epochs_shorter_than_the_interval(tmp_path):
    """Measured at their end, where the logger logs as well."""
    model = Detector()
    runner = make_runner(
        tmp_path / 'work', model, [dict(type='HeatmapSaturationHook')],
        log_interval=50)
    runner.train()
    log = read_log(runner)
    assert [record['step'] for record in log] == [4, 8]
    for record, kept in zip(log, (model.kept[3], model.kept[7]), strict=True):
        assert {key: record[key] for key in KEYS} == pytest.approx(
            expected_shares(kept, 1e-4), rel=1e-6)


class Snapshot(Hook):
    """Copies the model in the middle of the training."""

    priority = 'LOWEST'

    def after_train_iter(self, runner, *args, **kwargs):
        for kept in runner.model.kept:
            kept.clear()
        self.copy = copy.deepcopy(runner.model)
        pickle.dumps(runner.model.head)


def train(work_dir, hooks, **kwargs):
    torch.manual_seed(0)
    model = Detector()
    runner = make_runner(
        work_dir, model, [dict(type='EMAHook', momentum=0.1), *hooks],
        **kwargs)
    runner.train()
    return load_safely(work_dir / f'epoch_{runner.epoch}.pth')


def assert_same_training(found, expected):
    for part in ('state_dict', 'ema_state_dict'):
        assert found[part].keys() == expected[part].keys()
        for name, value in expected[part].items():
            assert found[part][name].equal(value), name
    for name in ('train/loss', 'train/lr'):
        np.testing.assert_array_equal(*(
            checkpoint['message_hub']['log_scalars'][name].data[0]
            for checkpoint in (found, expected)))


def test_training_ema_and_resume_are_not_disturbed(tmp_path, caplog):
    hook = dict(type='HeatmapSaturationHook', interval=2)
    plain = train(tmp_path / 'plain', [])
    hooked = train(tmp_path / 'hooked', [hook])
    assert_same_training(hooked, plain)

    train(tmp_path / 'first', [hook], epochs=1)
    resumed = train(
        tmp_path / 'second', [hook], resume=True,
        load_from=str(tmp_path / 'first/epoch_1.pth'))
    assert_same_training(resumed, plain)
    for key in KEYS:
        values, expected = (
            checkpoint['message_hub']['log_scalars'][f'train/{key}'].data[0]
            for checkpoint in (resumed, hooked))
        assert len(expected) == 4
        np.testing.assert_array_equal(values, expected)
    assert not [r for r in caplog.records if 'clip' in r.getMessage()
                and r.levelname == 'WARNING']


def test_a_copy_of_the_model_keeps_to_itself(tmp_path):
    snapshot = Snapshot()
    hook = HeatmapSaturationHook(interval=2)
    runner = make_runner(tmp_path / 'work', Detector(), [hook, snapshot])
    runner.train()
    observer, = snapshot.copy.head.heatmap_observers
    assert observer.func.__self__ is not hook
    snapshot.copy(**collate(make_data(2)))
    assert not hook._shares


def test_interrupted_training_is_not_observed_twice():
    model = Detector()
    runner = SimpleNamespace(model=model)
    hook = HeatmapSaturationHook()
    hook.before_train(runner)
    hook.before_train(runner)
    assert len(model.head.heatmap_observers) == 1
    HeatmapSaturationHook().before_train(runner)
    hook.after_train(runner)
    assert len(model.head.heatmap_observers) == 1


def test_what_else_the_head_does_is_not_measured():
    """A validation that computes its losses, or any other use."""
    model = Detector()
    hub = MessageHub('validation')
    runner = SimpleNamespace(
        model=model, message_hub=hub, train_dataloader=range(8))
    hook = HeatmapSaturationHook(interval=2)
    batch = collate(make_data(2))
    hook.before_train(runner)
    for index in range(3):
        hook.before_train_iter(runner, index)
        model(**batch)
        hook.after_train_iter(runner, index)
        model(**batch)
    hook.after_train_iter(runner, 3)
    assert list(hub.log_scalars) == [f'train/{key}' for key in KEYS]
    assert all(len(buffer.data[0]) == 1 for buffer in hub.log_scalars.values())


class TwoHeads(nn.Module):

    def __init__(self):
        super().__init__()
        self.near, self.far = Detector(), Detector(spread=0.0)

    def forward(self, **batch):
        self.near(**batch)
        self.far(**batch)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/rendezvous', rank=0,
        world_size=1)
    yield
    torch.distributed.destroy_process_group()


def run_one_iteration(model):
    hub = MessageHub('one iteration')
    runner = SimpleNamespace(
        model=model, message_hub=hub, train_dataloader=range(1))
    hook = HeatmapSaturationHook()
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    model(**collate(make_data(2)))
    hook.after_train_iter(runner, 0)
    return {key: buffer.current() for key, buffer in hub.log_scalars.items()}


@pytest.mark.parametrize('make', [Detector, TwoHeads])
def test_wrapped_for_distributed_training(process_group, make):
    model = make()
    shares = run_one_iteration(MMDistributedDataParallel(module=model))
    assert shares and shares == run_one_iteration(model)


def test_two_heads_are_told_apart():
    shares = run_one_iteration(TwoHeads())
    assert list(shares) == [
        f'train/{name}.head.{key}' for name in ('near', 'far') for key in KEYS]
    assert shares['train/near.head.task0.at_lower_clip'] > 0.02
    assert shares['train/far.head.task0.at_lower_clip'] == 0


# --- errors ---------------------------------------------------------------


def test_model_without_such_a_head(tmp_path):
    runner = make_runner(tmp_path / 'work', NoHead(), [
        dict(type='HeatmapSaturationHook')])
    with pytest.raises(UserError) as info:
        runner.train()
    for word in ('HeatmapSaturationHook', 'NoHead', 'sigplug.CenterHead',
                 'custom_hooks'):
        assert word in str(info.value)


@pytest.mark.parametrize('interval', [0, -1])
def test_wrong_interval(interval):
    with pytest.raises(ValueError, match=f'interval.*{interval}'):
        HOOKS.build(dict(type='HeatmapSaturationHook', interval=interval))
