"""What the heads share: the activation and the logits that it replaces."""
import pytest
import torch
from torch import nn

from sigplug.models import ClipSigmoid, GaussianFocalLossWithLogits
from sigplug.models.dense_heads.heatmap_act import (
    HeatmapLogits,
    build_heatmap_act,
)

DEFAULT = dict(type='Sigmoid')


def test_activation_of_a_loss_of_probabilities():
    for loss in (nn.MSELoss(), None):
        assert type(build_heatmap_act(None, loss, DEFAULT)) is nn.Sigmoid
        act = build_heatmap_act(
            dict(type='ClipSigmoid', eps=0.1, inplace=True), loss, DEFAULT)
        assert type(act) is ClipSigmoid
        assert act.min_val == 0.1 and act.inplace is False


def test_loss_of_logits_takes_no_activation():
    loss = GaussianFocalLossWithLogits()
    assert type(build_heatmap_act(None, loss, DEFAULT)) is nn.Identity
    with pytest.raises(ValueError) as info:
        build_heatmap_act(dict(type='ClipSigmoid'), loss, DEFAULT)
    for word in ('heatmap_act', 'ClipSigmoid', 'GaussianFocalLossWithLogits',
                 'None'):
        assert word in str(info.value)


@pytest.mark.parametrize('dtype, used', [
    (torch.float16, torch.float32), (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_sigmoid_is_the_activation(dtype, used):
    """On the way of mmdet's CenterNetUpdateHead, level by level."""
    levels = [torch.randn(2, 3, size, 4).to(dtype) for size in (4, 2)]
    logits = [HeatmapLogits(x, torch.tanh) for x in levels]
    assert logits[0].size(0) == 2 and logits[1].size()[-2:] == (2, 4)
    got = torch.cat([
        x.permute(0, 2, 3, 1).reshape(-1, 3) for x in logits]).sigmoid()
    expected = torch.cat([
        x.permute(0, 2, 3, 1).reshape(-1, 3) for x in levels]).to(used).tanh()
    assert got.dtype == used and got.equal(expected)


@pytest.mark.parametrize('use', [
    torch.sigmoid, torch.exp, lambda x: x + 1, lambda x: x.exp(),
    lambda x: torch.stack([x, x]), lambda x: torch.zeros(3) * x])
def test_any_other_use_fails(use):
    with pytest.raises((TypeError, AttributeError)):
        use(HeatmapLogits(torch.zeros(3), torch.tanh))
