"""Class weights, losses by class, ignored regions, the prior of the bias."""
import math

import pytest
import torch

from sigplug.models.dense_heads import CenterHead
from sigplug.models.dense_heads.center_targets import GRID_KEYS
from sigplug.ops import covered_cells

from .center_heads import (
    BATCHES,
    CLASSES,
    X_MIN,
    Y_MIN,
    box,
    config,
    features,
    instances,
)

BATCH = BATCHES['random']
WEIGHTS = [1.0, 0.5, 2.0, 1.0, 3.0, 0.0, 1.5, 1.0, 0.25, 4.0]
LOSSES = {
    'mmdet.GaussianFocalLoss': 1e-4, 'GaussianFocalLossWithLogits': None}


def build(loss='mmdet.GaussianFocalLoss', **kwargs):
    torch.manual_seed(0)
    return CenterHead(**config(loss_cls=dict(type=loss), **kwargs))


def formula(head, preds, batch, clip, ignored=None):
    """The loss of each class of each task in float64, not yet weighted."""
    found = []
    for (pred, ), target in zip(preds, head.get_targets(batch)[0]):
        q, t = pred['heatmap'].double().sigmoid(), target.double()
        q = q if clip is None else q.clamp(clip, 1 - clip)
        cells = -torch.where(t == 1, (1 - q)**2 * q.log(),
                             (1 - t)**4 * q**2 * (1 - q).log())
        peaks = t == 1
        if ignored is not None:
            cells, peaks = (x * ~ignored[:, None] for x in (cells, peaks))
        found.append(cells.sum((0, 2, 3)) / max(peaks.sum().item(), 1))
    return found


@pytest.mark.parametrize('loss, clip', LOSSES.items())
def test_class_weights_and_losses_by_class(loss, clip):
    head = build(loss, class_weights=WEIGHTS, log_class_losses=True)
    preds = head(features())
    losses = head.loss_by_feat(preds, BATCH)
    weights = iter(WEIGHTS)
    for task, (names, values) in enumerate(zip(
            CLASSES, formula(head, preds, BATCH, clip))):
        values = [value.item() * next(weights) for value in values]
        for name, value in zip(names, values):
            got = losses.pop(f'task{task}.heatmap_{name}')
            assert not got.requires_grad
            assert got.item() == pytest.approx(value, rel=1e-6, abs=1e-9)
        assert losses.pop(f'task{task}.loss_heatmap').item() == pytest.approx(
            sum(values), rel=1e-6)
    assert losses.keys() == {f'task{i}.loss_bbox' for i in range(6)}
    assert head.state_dict().keys() == build().state_dict().keys()


@pytest.mark.parametrize('loss, clip', LOSSES.items())
def test_ignored_regions(loss, clip):
    regions = [box(4, 2, 8, 5, yaw=0.4), box(-6, -3, 4, 9, yaw=0.0)]
    batch = [instances(BATCH[0].bboxes_3d.tensor.tolist() + regions,
                       BATCH[0].labels_3d.tolist() + [-1, -1]),
             BATCH[1]]
    grid = {key: config()['train_cfg'][key] for key in GRID_KEYS}
    ignored = covered_cells(
        [torch.tensor(regions), torch.zeros(0, 9)], **grid)
    assert ignored.any()
    head = build(loss, ignore_label=-1)
    preds = head(features())
    for pred, in preds:
        pred['heatmap'].retain_grad()
    losses = head.loss_by_feat(preds, batch)
    for task, values in enumerate(formula(head, preds, batch, clip, ignored)):
        assert losses[f'task{task}.loss_heatmap'].item() == pytest.approx(
            values.sum().item(), rel=1e-6)
    sum(losses.values()).backward()
    for pred, in preds:
        gradient = pred['heatmap'].grad.ne(0).any(1)
        assert not gradient[ignored].any() and gradient.any()


def test_prior_score():
    head = build(heatmap_prior=0.01)
    head.init_weights()
    for task in head.task_heads:
        assert task.heatmap[-1].bias.sigmoid().tolist() == pytest.approx(
            [0.01] * len(task.heatmap[-1].bias))


def test_oriented_gaussians_of_train_cfg():
    """Along a yaw of 0, and the other targets as they are."""
    cfg = config()['train_cfg']
    head = build(train_cfg=dict(cfg, oriented_gaussians=True))
    batch = [instances([box(0.5, 0.5, 12, 2.4, yaw=0.0)], [0])]
    heatmap, *others = head.get_targets(batch)
    column = int(0.5 - X_MIN)
    row = int(0.5 - Y_MIN)
    assert heatmap[0][0, 0, row, column + 4].item() == pytest.approx(
        math.exp(-2**2 / 2))
    assert heatmap[0][0, 0, row + 1, column].item() == pytest.approx(
        math.exp(-(6 / 5)**2 / 2))
    for got, expected in zip(others, build().get_targets(batch)[1:]):
        assert all(x.equal(y) for x, y in zip(got, expected))


@pytest.mark.parametrize('kwargs, words', [
    (dict(class_weights=[1.0] * 9), 'class_weights must have 10.*9'),
    (dict(class_weights=[-1.0] * 10), 'class_weights.*-1'),
    (dict(heatmap_prior=0.0), 'heatmap_prior.*0.0'),
    (dict(heatmap_prior=1), 'heatmap_prior.*1'),
    (dict(ignore_label=3), 'ignore_label.*such as .*is 3'),
])
def test_refused_values(kwargs, words):
    with pytest.raises(ValueError, match=words):
        build(**kwargs)
