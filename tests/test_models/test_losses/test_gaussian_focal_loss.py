"""Peaks by index, against mmdet's loss and float64.

The loss of heatmaps: test_ops/test_gaussian_focal_loss.py.
"""
import inspect

import pytest
import torch
from mmdet.models.losses import GaussianFocalLoss

from sigplug.models import GaussianFocalLossWithLogits

ROWS, CLASSES = 40, 5
WEIGHTS = dict(pos_weight=0.25, neg_weight=0.75, loss_weight=2.0)


def case(num_peaks=12, dtype=torch.float64, spread=2.0):
    """Logits, targets and peaks, one of which comes twice."""
    logits = (spread * torch.randn(ROWS, CLASSES)).to(dtype)
    target = torch.rand(ROWS, CLASSES).to(dtype)**3
    rows = torch.randint(ROWS, (num_peaks, ))
    labels = torch.randint(CLASSES, (num_peaks, ))
    if num_peaks > 1:
        rows[1], labels[1] = rows[0], labels[0]
        # A target of 1 that is no peak weighs nothing.
        target[rows[0]] = 1
    return logits.requires_grad_(), target, rows, labels


def test_arguments_come_in_the_order_of_mmdet():
    ours, stock = (
        list(inspect.signature(cls.forward).parameters.values())
        for cls in (GaussianFocalLossWithLogits, GaussianFocalLoss))
    assert [(p.name, p.default) for p in ours] == [
        (p.name, p.default) for p in stock]


@pytest.mark.parametrize('reduction, avg_factor', [
    ('mean', None), ('mean', 7.0), ('mean', torch.tensor(3.0)),
    ('sum', None)])
@pytest.mark.parametrize('settings', [{}, dict(alpha=1.5, gamma=0.0)])
def test_peaks_by_index_equal_mmdet(reduction, avg_factor, settings):
    settings = dict(settings, **WEIGHTS)
    logits, *others = case()
    options = dict(avg_factor=avg_factor, reduction_override=reduction)
    got = GaussianFocalLossWithLogits(**settings)(logits, *others, **options)
    expected = GaussianFocalLoss(**settings)(
        logits.sigmoid(), *others, **options)
    # mmdet adds 1e-12 inside of its logarithms.
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, logits)[0] for loss in (got, expected)),
        rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('num_peaks', [0, 1, 12, ROWS])
def test_losses_of_the_cells_hold_those_of_their_peaks(num_peaks):
    """Mmdet adds M peaks to N rows as they stand, which fits no cell."""
    logits, target, rows, labels = case(num_peaks)
    loss = GaussianFocalLossWithLogits(**WEIGHTS)
    cells = loss(logits, target, rows, labels, reduction_override='none')
    q = logits.sigmoid()
    expected = -0.75 * (1 - target)**4 * q**2 * (1 - q).log()
    for row, label in zip(rows.tolist(), labels.tolist()):
        p = q[row, label]
        expected[row, label] = expected[row, label] - (
            0.25 * (1 - p)**2 * p.log())
    torch.testing.assert_close(cells, 2 * expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(
        cells.sum(), loss(logits, target, rows, labels,
                          reduction_override='sum'))


@pytest.mark.parametrize('kwargs', [
    dict(pos_labels=None), dict(weight=torch.ones(ROWS, CLASSES)),
    dict(pred=torch.zeros(2, 3, 4, 4))])
def test_peaks_by_index_need_rows(kwargs):
    logits, target, rows, labels = case()
    arguments = dict(pred=logits, target=target, pos_inds=rows,
                     pos_labels=labels)
    with pytest.raises(ValueError, match='pos_inds .*pos_labels.*weight'):
        GaussianFocalLossWithLogits()(**dict(arguments, **kwargs))
