"""The focal loss against mmdet's; against float64: test_properties.py."""
import itertools
import math

import pytest
import torch
from mmdet.models.losses import GaussianFocalLoss
from mmdet3d.models.utils import clip_sigmoid as stock_clip_sigmoid

from sigplug.models import GaussianFocalLossWithLogits
from sigplug.ops import gaussian_focal_loss_with_logits

from .tolerances import DTYPES

pytestmark = pytest.mark.usefixtures('backend')


def heatmaps():
    logits = 5 * torch.randn(2, 3, 16, 16)
    target = torch.rand(2, 3, 16, 16)**3
    target[target > 0.9] = 1
    return logits, target


@pytest.mark.parametrize('kwargs', [
    dict(),
    dict(alpha=1.5, gamma=0.0),
    dict(alpha=0.0, gamma=2.0, pos_weight=2.0, neg_weight=0.5),
    dict(loss_weight=3.0, reduction='sum'),
])
@pytest.mark.parametrize('eps', [1e-4, 1e-2])
def test_clip_equals_clip_sigmoid_and_mmdet_loss(kwargs, eps):
    logits, target = heatmaps()
    avg_factor = None if kwargs.get('reduction') == 'sum' else 7.0
    ours, stock = (logits.clone().requires_grad_() for _ in range(2))
    got = GaussianFocalLossWithLogits(clip=eps, **kwargs)(
        ours, target, avg_factor=avg_factor)
    # The stock activation overwrites its input: hand it a copy.
    expected = GaussianFocalLoss(**kwargs)(
        stock_clip_sigmoid(stock * 1, eps), target, avg_factor=avg_factor)
    got.backward()
    expected.backward()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, stock.grad, rtol=1e-6, atol=0)


def test_weight_and_reductions_equal_mmdet():
    logits, target = heatmaps()
    weight = torch.rand_like(logits)
    ours, stock = GaussianFocalLossWithLogits(clip=1e-4), GaussianFocalLoss()
    prob = stock_clip_sigmoid(logits.clone())
    for reduction in ('none', 'mean', 'sum'):
        torch.testing.assert_close(
            ours(logits, target, weight=weight, reduction_override=reduction),
            stock(prob, target, weight=weight, reduction_override=reduction),
            rtol=1e-6, atol=0)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('clip', [None, 1e-4])
def test_finite_for_every_finite_logit(dtype, clip):
    positive = torch.tensor([0, 8.5, 9.3, 20, 88, 1e4, math.inf]).to(
        dtype).clamp(max=torch.finfo(dtype).max)
    x = torch.cat((positive, -positive)).requires_grad_()
    for alpha, gamma, t in itertools.product((0., 2.), (0., 4.), (0., .5, 1.)):
        loss = gaussian_focal_loss_with_logits(
            x, torch.full(x.shape, t), alpha=alpha, gamma=gamma, clip=clip,
            reduction='none')
        grad, = torch.autograd.grad(loss.sum(), x)
        assert loss.isfinite().all() and grad.isfinite().all()
        assert loss.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize('dtype', DTYPES)
def test_a_confidently_wrong_cell_keeps_its_gradient(dtype):
    x = torch.tensor([-6e4, 6e4], dtype=dtype, requires_grad=True)
    gaussian_focal_loss_with_logits(
        x, torch.tensor([1., 0.]), reduction='sum').backward()
    assert x.grad.tolist() == [-1, 1]


@pytest.mark.parametrize('kwargs, message', [
    (dict(alpha='2'), "alpha must be a number, but got '2'"),
    (dict(clip='1e-4'), "clip must be a number, but got '1e-4'"),
    (dict(alpha=-1.0), 'alpha must be at least 0 and finite, but got -1.0'),
    (dict(gamma=float('nan')), 'gamma must be .* finite, but got nan'),
    (dict(clip=0.5), 'clip must lie between 0 and 0.5'),
    (dict(reduction='max'), "reduction must be one of .* but got 'max'"),
])
def test_bad_arguments(kwargs, message):
    logits, target = heatmaps()
    with pytest.raises((TypeError, ValueError), match=message):
        gaussian_focal_loss_with_logits(logits, target, **kwargs)
    with pytest.raises((TypeError, ValueError), match=message):
        GaussianFocalLossWithLogits(**kwargs)


def test_bad_tensors():
    logits, target = heatmaps()
    with pytest.raises(ValueError, match='target must have the shape'):
        gaussian_focal_loss_with_logits(logits, target[0])
    with pytest.raises(ValueError, match='avg_factor does not go with'):
        gaussian_focal_loss_with_logits(
            logits, target, reduction='sum', avg_factor=2.0)
