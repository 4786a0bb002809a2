"""Windowed pooling under the real compiler, at several sizes."""
import pytest
import torch

from sigplug.models import GeM


@pytest.mark.slow
def test_windows_compile_at_several_sizes():
    layer = GeM(kernel_size=3, stride=2, padding=1)
    compiled = torch.compile(layer)
    for size in (9, 12, 15):
        x = torch.rand(2, 3, size, size + 1, requires_grad=True)
        results = []
        for function in (layer, compiled):
            y = function(x)
            results.append((y, *torch.autograd.grad(
                y.square().sum(), (x, layer.p))))
        torch.testing.assert_close(*results, rtol=2e-5, atol=1e-6)
