"""Mixed precision on the CPU."""
import pytest
import torch
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from sigplug.cli.prepare import CPU_AMP


def make(model, **kwargs):
    return OPTIM_WRAPPERS.build(
        dict(
            type=CPU_AMP,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            **kwargs))


@pytest.mark.parametrize('dtype, expected', [
    ({}, torch.bfloat16),
    (dict(dtype='float16'), torch.float16),
])
def test_trains_with_float32_weights(dtype, expected):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    wrapper = make(
        model, accumulative_counts=1, clip_grad=dict(max_norm=10), **dtype)
    inputs = torch.randn(64, 4)
    target = inputs.sum(dim=1, keepdim=True)
    losses = []
    for _ in range(50):
        with wrapper.optim_context(model):
            out = model(inputs)
            loss = (out - target).square().mean()
        assert out.dtype == expected
        wrapper.update_params(loss)
        losses.append(loss.item())
    assert model.weight.dtype == torch.float32
    assert losses[-1] < 0.01 * losses[0]
    torch.testing.assert_close(
        model.weight.data, torch.ones(1, 4), rtol=0, atol=0.05)
    with torch.no_grad():
        assert model(inputs).dtype == torch.float32


def backward(wrapper, model, factor):
    """Of a product whose inner gradient is ``factor``."""
    with wrapper.optim_context(model):
        loss = model(torch.ones(1, 1)).float().sum() * factor
    wrapper.backward(loss)


def test_float16_scales_the_loss():
    """1e-8 is 0 in float16, and 1e-3 with the scale."""
    assert torch.tensor(1e-8).half() == 0
    model = nn.Linear(1, 1, bias=False)
    wrapper = make(model, dtype='float16')
    backward(wrapper, model, 1e-8)
    wrapper.loss_scaler.unscale_(wrapper.optimizer)
    assert model.weight.grad.item() == pytest.approx(1e-8, rel=1e-2)


def test_float16_skips_a_step_that_overflows_and_lowers_the_scale():
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    wrapper, resumed = (make(model, dtype='float16') for _ in range(2))
    backward(wrapper, model, 1e3)
    wrapper.step()
    assert model.weight.item() == before
    assert wrapper.loss_scaler.get_scale() == 2**15
    # It makes its state with the first step.
    backward(resumed, model, 0)
    resumed.load_state_dict(wrapper.state_dict())
    assert resumed.loss_scaler.get_scale() == 2**15


def test_other_dtypes():
    with pytest.raises(ValueError, match="dtype.*'float32'"):
        make(nn.Linear(1, 1), dtype='float32')


def test_float16_with_a_torch_that_has_none(monkeypatch):
    monkeypatch.delattr(torch.amp, 'GradScaler')
    with pytest.raises(ValueError, match="torch 2.3.*use 'bfloat16'"):
        make(nn.Linear(1, 1), dtype='float16')
