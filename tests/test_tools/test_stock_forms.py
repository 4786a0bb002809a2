"""The forms that the tools measure against are those of the packages."""
import importlib
import sys
from types import ModuleType

import pytest
import stock_forms
import torch


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


def test_textbook_gem_is_that_of_mmpretrain(monkeypatch):
    """Imported alone: mmpretrain as a whole wants a torchvision as well."""
    spec = importlib.util.find_spec('mmpretrain')
    for name in ('', '.models', '.models.necks'):
        package = ModuleType(f'mmpretrain{name}')
        package.__path__ = [spec.submodule_search_locations[0] +
                            name.replace('.', '/')]
        monkeypatch.setitem(sys.modules, package.__name__, package)
    gem = importlib.import_module('mmpretrain.models.necks.gem').gem
    for name in [name for name in sys.modules if 'mmpretrain.' in name]:
        monkeypatch.delitem(sys.modules, name)
    x, p = torch.randn(2, 3, 5, 7), torch.tensor([3.5])
    assert stock_forms.gem(x, p).equal(gem(x, p))


def test_power_mean_of_segments_is_that_of_pytorch_geometric():
    aggregation = pytest.importorskip('torch_geometric.nn.aggr')
    x, index = 0.2 + torch.rand(20, 3), torch.randint(4, (20, ))
    layer = aggregation.PowerMeanAggregation(p=2.5, learn=True)
    torch.testing.assert_close(
        stock_forms.power_mean_aggregation(x, layer.p, index, 4),
        layer(x, index, dim_size=4), rtol=0, atol=0)
