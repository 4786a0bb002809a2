"""The focal loss of logits, against mmdet's and against float64."""
import itertools

import pytest
import torch
from mmdet.models.losses import GaussianFocalLoss
from mmdet3d.models.utils import clip_sigmoid as stock_clip_sigmoid

from sigplug.models import GaussianFocalLossWithLogits
from sigplug.ops import gaussian_focal_loss_with_logits

HALF = (torch.float16, torch.bfloat16)


def heatmaps(seed=0, shape=(2, 3, 16, 16), spread=5.0):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(shape, generator=generator)
    target = torch.rand(shape, generator=generator)**3
    target[target > 0.9] = 1
    return logits, target


def float64_loss(logits, target, alpha=2.0, gamma=4.0):
    """The formula, with 1 - sigmoid(x) written as sigmoid(-x)."""
    x, t = logits.double(), target.double()
    q, not_q = torch.sigmoid(x), torch.sigmoid(-x)
    return -(t.eq(1) * not_q**alpha * q.log() +
             (1 - t)**gamma * q**alpha * not_q.log())


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
    got = GaussianFocalLossWithLogits(
        clip=eps, **kwargs)(
            ours, target, avg_factor=avg_factor)
    # The stock activation overwrites its input: hand it a copy.
    expected = GaussianFocalLoss(**kwargs)(
        stock_clip_sigmoid(stock * 1, eps), target, avg_factor=avg_factor)
    got.backward()
    expected.backward()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, stock.grad, rtol=1e-6, atol=0)


def test_weight_and_reductions_equal_mmdet():
    logits, target = heatmaps(1)
    weight = torch.rand_like(logits)
    ours, stock = GaussianFocalLossWithLogits(clip=1e-4), GaussianFocalLoss()
    prob = stock_clip_sigmoid(logits.clone())
    for reduction in ('none', 'mean', 'sum'):
        torch.testing.assert_close(
            ours(logits, target, weight=weight, reduction_override=reduction),
            stock(prob, target, weight=weight, reduction_override=reduction),
            rtol=1e-6,
            atol=0)


@pytest.mark.parametrize('alpha, gamma', [(2.0, 4.0), (0.0, 0.0), (0.5, 1.5)])
def test_exact_loss_and_gradient_equal_float64(alpha, gamma):
    logits, target = heatmaps(2)
    x, x64 = logits.requires_grad_(), logits.detach().double().requires_grad_()
    got = gaussian_focal_loss_with_logits(
        x, target, alpha=alpha, gamma=gamma, reduction='none')
    expected = float64_loss(x64, target, alpha, gamma)
    got.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=1e-9)
    torch.testing.assert_close(
        x.grad.double(), x64.grad, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize('dtype', [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize('clip', [None, 1e-4])
def test_finite_for_every_finite_logit(dtype, clip):
    largest = torch.finfo(dtype).max
    values = [0., 8.5, 9.3, 20., 88., 1e4, largest]
    values += [-value for value in values]
    for alpha, gamma, t in itertools.product((0., 2.), (0., 4.), (0., .5, 1.)):
        x = torch.tensor(values, dtype=dtype, requires_grad=True)
        loss = gaussian_focal_loss_with_logits(
            x,
            torch.full_like(x, t).detach(),
            alpha=alpha,
            gamma=gamma,
            clip=clip,
            reduction='none')
        loss.sum().backward()
        assert loss.isfinite().all() and x.grad.isfinite().all()
        assert loss.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize('dtype', [*HALF, torch.float32])
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
