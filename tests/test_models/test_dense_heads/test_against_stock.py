"""Each head against the stock head that it stands in for."""
import math
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS

from sigplug.models import dense_heads

from .stock_twins import (
    CASES,
    MONO,
    both,
    build,
    change_heatmaps,
    compute_losses,
    cut,
    every_head,
    features,
    flatten,
    focal,
    heatmaps_of,
    instances,
    of_logits,
    predict,
)

EPS = 0.01


def compare(ours, stock, got, expected, rtol=1e-6):
    """Compare losses, and their gradients of all parameters."""
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert value.isfinite()
        torch.testing.assert_close(
            got[key], value, rtol=rtol, atol=0, msg=lambda m, k=key:
            f'{k}: {m}')
    sum(got.values()).backward()
    sum(expected.values()).backward()
    params = dict(stock.named_parameters())
    for key, param in ours.named_parameters():
        grad = params[key].grad
        assert (param.grad is None) == (grad is None), key
        if grad is not None:
            torch.testing.assert_close(
                param.grad, grad, rtol=rtol,
                atol=2 * rtol * grad.abs().max().item(),
                msg=lambda m, k=key: f'{k}: {m}')


# --- construction ---------------------------------------------------------


@every_head
def test_names_and_checkpoints(name):
    stock, ours = both(name)
    assert type(ours) is getattr(dense_heads, name)
    # The bare name is the stock head's.
    assert MODELS.get(name) is None
    assert type(ours) is not type(stock) and isinstance(ours, type(stock))
    assert list(stock.state_dict()) == list(ours.state_dict())
    stock.load_state_dict(ours.state_dict(), strict=True)
    assert type(ours.heatmap_act).__name__ == CASES[name].act


@every_head
@pytest.mark.parametrize('kwargs, error, words', [
    (dict(loss=of_logits, heatmap_act=dict(type='ClipSigmoid')), ValueError,
     ('heatmap_act', 'GaussianFocalLossWithLogits', 'None')),
    (dict(loss=dict(focal, reduction='none')), ValueError,
     ("reduction='mean'", "reduction='none'")),
    (dict(heatmap_act='ClipSigmoid'), TypeError,
     ('heatmap_act', "dict(type='ClipSigmoid')")),
    (dict(heatmap_act=dict(tpye='Sigmoid')), TypeError, ('heatmap_act', )),
    (dict(heatmap_atc=dict(type='ClipSigmoid')), TypeError,
     ('heatmap_atc', )),
])
def test_refused_configs(name, kwargs, error, words):
    with pytest.raises(error) as info:
        build(name, **kwargs)
    for word in (name, *words) if 'reduction' in words[0] else words:
        assert word in str(info.value)


@pytest.mark.parametrize('name, loss', [
    ('CenterNetHead', 'loss_wh'), ('CornerHead', 'loss_offset'),
    ('CentripetalHead', 'loss_guiding_shift'),
    ('CenterNetUpdateHead', 'loss_bbox')])
def test_reduction_of_the_other_losses(name, loss):
    with pytest.raises(ValueError, match=f"{loss} of .*reduction='sum'"):
        build(name, **{loss: dict(type='mmdet.L1Loss', reduction='sum')})


# --- losses ---------------------------------------------------------------


@every_head
def test_losses_and_gradients_equal_the_stock_heads(name):
    stock, ours = both(name)
    x, batch = features(name), instances(name, 5, 3)
    compare(ours, stock, compute_losses(name, ours, ours(x), batch),
            compute_losses(name, stock, stock(x), batch))


def precision(name):
    """A dtype and its tolerance; mmdet3d's camera boxes are of float32."""
    return (torch.float32, 1e-5) if name == MONO else (torch.float64, 1e-7)


@every_head
def test_loss_of_logits_equals_the_stock_head_at_moderate_logits(name):
    dtype, rtol = precision(name)
    stock, ours = both(name, focal, dtype, scale=0.8, loss=of_logits)
    x, batch = features(name, dtype), instances(name, 5, 3, dtype=dtype)
    assert all(x.abs().max() < 8 for x in heatmaps_of(name, ours(x)))
    # Up to the 1e-12 inside of mmdet's logarithms.
    compare(ours, stock, compute_losses(name, ours, ours(x), batch),
            compute_losses(name, stock, stock(x), batch), rtol=rtol)


def clip_stock(name, stock, outs):
    """Give the stock head the bounds of ``ClipSigmoid(EPS)``."""
    if name == 'CenterNetUpdateHead':
        stock.sigmoid_clamp = EPS
        return outs
    # sigmoid(clamp(x)) is clamp(sigmoid(x)).
    limit = math.log((1 - EPS) / EPS)
    bounds = (EPS, 1 - EPS) if name in ('CenterNetHead', MONO) else (
        -limit, limit)
    return change_heatmaps(name, outs, lambda x: x.clamp(*bounds))


@every_head
@pytest.mark.parametrize('clip', [
    dict(heatmap_act=dict(type='ClipSigmoid', eps=EPS)),
    dict(loss=dict(of_logits, clip=EPS))])
def test_other_bounds_equal_the_stock_head_with_them(name, clip):
    dtype, rtol = precision(name)
    stock, ours = both(
        name, focal, dtype, scale=6, **dict(dict(loss=focal), **clip))
    x, batch = features(name, dtype), instances(name, 5, 3, dtype=dtype)
    assert all((x.sigmoid() < EPS).any() and (x.sigmoid() > 1 - EPS).any()
               for x in heatmaps_of(name, ours(x)) if x.numel() > 300)
    compare(ours, stock, compute_losses(name, ours, ours(x), batch),
            compute_losses(name, stock, clip_stock(name, stock, stock(x)),
                           batch), rtol=rtol)


@every_head
def test_activation_and_loss_run_as_configured(name):
    """The loss gets what the activation makes of the logits; hooks work."""
    head = build(name, heatmap_act=dict(type='ClipSigmoid', eps=0.3))
    seen: list[Any] = []
    loss = getattr(head, CASES[name].loss)
    loss.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    outs = head(features(name))
    compute_losses(name, head, outs, instances(name, 5, 3))
    got = torch.cat([x.flatten() for x in seen]).sort()[0]
    logits = torch.cat([x.flatten() for x in heatmaps_of(name, outs)])
    torch.testing.assert_close(
        got, logits.sigmoid().clamp(0.3, 0.7).sort()[0])


@every_head
@pytest.mark.parametrize('dtype, autocast', [
    (torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True)])
def test_half_precision_logits_of_confident_cells(name, dtype, autocast):
    """In float32; half-precision dtypes round these scores to 1."""
    head = build(name)
    outs = cut(name, head(features(name)), lambda x: x.fill_(12).to(dtype))
    batch = instances(name, 5, 3)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        losses = compute_losses(name, head, outs, batch)
    assert all(loss.isfinite() and loss.dtype == torch.float32
               for loss in losses.values())
    sum(losses.values()).backward()
    assert all(x.grad.dtype == dtype and x.grad.isfinite().all()
               for x in heatmaps_of(name, outs))
    exact = compute_losses(
        name, head, cut(name, outs, torch.Tensor.float), batch)
    torch.testing.assert_close(losses, exact, rtol=0.02, atol=0)


# The deformable convolutions of CentripetalHead know no bfloat16 on a CPU.
@pytest.mark.parametrize('name', [
    name for name in CASES if name != 'CentripetalHead'])
def test_forward_and_losses_under_autocast(name):
    head = build(name)
    x, batch = features(name), instances(name, 5, 3)
    exact = compute_losses(name, head, head(x), batch)
    with torch.autocast('cpu', torch.bfloat16):
        outs = head(x)
        losses = compute_losses(name, head, outs, batch)
    assert heatmaps_of(name, outs)[0].dtype == torch.bfloat16
    for key in (key for key in losses if CASES[name].loss[5:] in key
                or 'heatmap' in key or 'det' in key):
        assert losses[key].dtype == torch.float32
        torch.testing.assert_close(losses[key], exact[key], rtol=0.05, atol=0)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters()
               if p.grad is not None)


@every_head
@pytest.mark.parametrize('inplace', [False, True])
def test_outputs_are_not_overwritten(name, inplace):
    head = build(name, heatmap_act=dict(type='ClipSigmoid', inplace=inplace))
    batch = instances(name, 5, 3)
    for no_grad in (False, True):
        with torch.set_grad_enabled(not no_grad):
            outs = head(features(name))
            before = [x.clone() for x in flatten(outs)]
            first = compute_losses(name, head, outs, batch)
            second = compute_losses(name, head, outs, batch)
        for x, kept in zip(flatten(outs), before, strict=True):
            assert x.equal(kept)
        assert all(first[key].equal(second[key]) for key in first)


@pytest.mark.parametrize('name', [
    name for name in CASES if name != 'CenterNetUpdateHead'])
@pytest.mark.parametrize('counts', [(0, 0), (0, 4)])
def test_samples_without_boxes(name, counts):
    stock, ours = both(name)
    x, batch = features(name), instances(name, *counts)
    if name == MONO and not any(counts):
        # The stock head has no loss then.
        losses = compute_losses(name, ours, ours(x), batch)
        sum(losses.values()).backward()
        q = stock(x)[0][0]
        expected = -(q**2 * (1 - q).log()).sum()
        torch.testing.assert_close(losses['loss_cls.0'], expected)
        assert losses['loss_bbox.0'] == 0
        return
    compare(ours, stock, compute_losses(name, ours, ours(x), batch),
            compute_losses(name, stock, stock(x), batch))


# --- predictions ----------------------------------------------------------


@every_head
@pytest.mark.parametrize('act', [None, dict(type='ClipSigmoid', eps=0.3)])
def test_predictions_equal_the_stock_heads(name, act):
    """With any activation: the clip is there for the loss."""
    stock, ours = both(name, scale=1.4, heatmap_act=act)
    x = features(name)
    found = []
    for head in (stock, ours):
        # With the statistics of the batch, as no others have been learnt.
        with torch.no_grad():
            outs = head(x)
            # The loss comes first, as in a validation that also logs it.
            if head is ours:
                compute_losses(name, head, outs, instances(name, 5, 3))
            if name == 'CentripetalHead':
                # Untrained shifts bring no two corners together.
                torch.manual_seed(1)
                for out in outs[6:]:
                    out[:] = [3 * torch.rand_like(x) for x in out]
            found.append(predict(name, head, outs))
    for expected, got in zip(*found, strict=True):
        # Some of them beyond the bounds of the activation.
        assert 0.7 < expected[0].max() < 1
        assert all(x.equal(y) for x, y in zip(got, expected, strict=True))
