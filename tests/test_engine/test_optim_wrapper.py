"""Mixed precision on the CPU."""
import torch
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from sigplug.engine.cli import CPU_AMP


def test_trains_in_bfloat16_with_float32_weights():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    wrapper = OPTIM_WRAPPERS.build(
        dict(
            type=CPU_AMP,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            accumulative_counts=1,
            clip_grad=dict(max_norm=10)))
    inputs = torch.randn(64, 4)
    target = inputs.sum(dim=1, keepdim=True)
    losses = []
    for _ in range(50):
        with wrapper.optim_context(model):
            out = model(inputs)
            loss = (out - target).square().mean()
        assert out.dtype == torch.bfloat16
        wrapper.update_params(loss)
        losses.append(loss.item())
    assert model.weight.dtype == torch.float32
    assert losses[-1] < 0.01 * losses[0]
    torch.testing.assert_close(
        model.weight.data, torch.ones(1, 4), rtol=0, atol=0.05)
    with torch.no_grad():
        assert model(inputs).dtype == torch.float32
