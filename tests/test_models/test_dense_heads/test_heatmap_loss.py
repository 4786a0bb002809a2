"""What the heads share: the activation and the loss of their heatmaps."""
import pytest
import torch
from torch import nn

from sigplug.models import ClipSigmoid, GaussianFocalLossWithLogits
from sigplug.models.dense_heads.heatmap_loss import (
    build_heatmap_act,
    check_reductions,
    count_peaks,
    heatmap_loss,
)


def test_activation_of_a_loss_of_probabilities():
    for loss in (nn.MSELoss(), None):
        assert type(build_heatmap_act(None, loss, 'Sigmoid')) is nn.Sigmoid
        act = build_heatmap_act(
            dict(type='ClipSigmoid', eps=0.1, inplace=True), loss, 'Sigmoid')
        assert type(act) is ClipSigmoid
        assert act.min_val == 0.1 and act.inplace is False


def test_loss_of_logits_takes_no_activation():
    loss = GaussianFocalLossWithLogits()
    assert type(build_heatmap_act(None, loss, 'Sigmoid')) is nn.Identity
    with pytest.raises(ValueError) as info:
        build_heatmap_act(dict(type='ClipSigmoid'), loss, 'Sigmoid')
    for word in ('heatmap_act', 'ClipSigmoid', 'GaussianFocalLossWithLogits',
                 'None'):
        assert word in str(info.value)


@pytest.mark.parametrize('value', [
    'ClipSigmoid', 5, {}, [{}], True, dict(tpye='A')])
def test_activation_that_is_no_config(value):
    with pytest.raises(TypeError, match='heatmap_act must be a config like'):
        build_heatmap_act(value, nn.MSELoss(), 'Sigmoid')


@pytest.mark.parametrize('dtype, used', [
    (torch.float16, torch.float32), (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_heatmap_loss(dtype, used):
    logits, target = torch.randn(2, 3).to(dtype), torch.rand(2, 3)
    before = logits.clone()

    def loss(pred, target, avg_factor):
        assert pred.dtype == used
        return (pred - target).sum() / avg_factor

    got = heatmap_loss(torch.tanh, loss, logits, target, avg_factor=2)
    torch.testing.assert_close(
        got, (logits.to(used).tanh() - target).sum() / 2)
    assert logits.equal(before)


def test_peaks_are_cells_of_value_one():
    assert count_peaks(torch.tensor([1.0, 0.999, 1.0, 0.0])) == 2
    assert count_peaks(torch.zeros(2, 3)) == 1


def test_reductions():
    head = nn.Module()
    head.loss_cls, head.loss_own = nn.MSELoss(), nn.Identity()
    head.loss_none, head.loss_bbox = None, nn.MSELoss(reduction='none')
    check_reductions(head, 'loss_cls', 'loss_own', 'loss_none')
    with pytest.raises(ValueError, match="loss_bbox of .*reduction='none'"):
        check_reductions(head, 'loss_cls', 'loss_bbox')
