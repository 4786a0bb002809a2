"""The forms that the tools measure against are those of the packages."""
import pytest
import stock_forms
import torch
from test_models.detectors import mmpretrain_gem


def test_sigmoid_and_loss_are_the_originals():
    """Bit for bit, with their gradients."""
    from mmdet.models.losses import GaussianFocalLoss
    from mmdet3d.models.utils import clip_sigmoid
    loss = GaussianFocalLoss(reduction='none')
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = (20 * torch.randn(10000)).to(dtype)
        t = torch.rand(len(x)).round(decimals=1)
        results = []
        for activate, criterion in (
            (lambda x: clip_sigmoid(x.clone()), loss),
            (stock_forms.clip_sigmoid, stock_forms.gaussian_focal_loss)):
            leaf = x.clone().requires_grad_()
            y = activate(leaf)
            value = criterion(y, t)
            value.sum().backward()
            results.append((y.detach(), value.detach(), leaf.grad))
        for expected, actual in zip(*results):
            torch.testing.assert_close(
                actual, expected, rtol=0, atol=0, equal_nan=True)


def test_textbook_gem_is_that_of_mmpretrain():
    x, p = torch.randn(2, 3, 5, 7), torch.tensor([3.5])
    assert stock_forms.gem(x, p).equal(mmpretrain_gem().gem(x, p))


def test_power_mean_of_segments_is_that_of_pytorch_geometric():
    aggregation = pytest.importorskip('torch_geometric.nn.aggr')
    x, index = 0.2 + torch.rand(20, 3), torch.randint(4, (20, ))
    layer = aggregation.PowerMeanAggregation(p=2.5, learn=True)
    torch.testing.assert_close(
        stock_forms.power_mean_aggregation(x, layer.p, index, 4),
        layer(x, index, dim_size=4), rtol=0, atol=0)
