"""What holds for every module: copies, compilers, exporters, tracers."""
import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sigplug.models import (
    ClipSigmoid,
    GaussianFocalLossWithLogits,
    GeM,
    GeMNeck,
    TokenGeM,
)

from .detectors import features

IMAGE = (2, 3, 6, 5)
MODULES = {
    'ClipSigmoid': lambda: ClipSigmoid(1e-3, grad='straight_through'),
    'GeM': GeM,
    'GeM fixed': lambda: GeM(4.0, p_trainable=False),
    'GeM fixed channels': lambda: GeM(
        [1.0, 2.0, math.inf], channels=3, p_trainable=False),
    'GeM windows': lambda: GeM(
        [2.0, 3.0, 4.0], channels=3, kernel_size=(3, 2), stride=(1, 2),
        padding=(1, 1)),
    'GeM adaptive': lambda: GeM(
        [2.0, 3.0, 4.0], channels=3, output_size=(3, 2)),
    'GeMNeck': GeMNeck,
    'GeMNeck strips': lambda: GeMNeck(
        [2.0, 3.0, 4.0], channels=3, bins=(1, 2, 3)),
    'TokenGeM': lambda: nn.Sequential(
        nn.Flatten(2), TokenGeM([2.0, 3.0, 4.0], groups=3)),
    'GaussianFocalLossWithLogits': lambda: GaussianFocalLossWithLogits(
        clip=1e-4, loss_weight=0.5),
}
every_module = pytest.mark.parametrize('name', MODULES)


def build(name):
    """The module and its inputs."""
    x = features(*IMAGE)
    return MODULES[name](), [x, torch.rand(IMAGE)] if 'Loss' in name else [x]


@every_module
@pytest.mark.parametrize('duplicate', [
    copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))
], ids=['deepcopy', 'pickle'])
def test_copies(name, duplicate):
    """Also in the middle of a training, with gradients and a changed p."""
    module, inputs = build(name)
    for parameter in module.parameters():
        parameter.data.mul_(1.1)
        parameter.grad = torch.ones_like(parameter)
    other = duplicate(module)
    assert other(*inputs).equal(module(*inputs))
    assert repr(other) == repr(module)
    for parameter in other.parameters():
        parameter.data.mul_(2)
    if list(module.parameters()):
        assert not other(*inputs).equal(module(*inputs))


# Those of the operations: test_contract.py; with more open sizes:
# test_ops/test_onnx.py.
@pytest.mark.parametrize('name', [
    'GeM', 'GeMNeck strips', 'TokenGeM', 'GaussianFocalLossWithLogits'])
def test_compile_and_export(name):
    """One graph, forward and backward, and one of any batch."""
    torch._dynamo.reset()
    module, inputs = build(name)
    compiled = torch.compile(module, fullgraph=True, backend='aot_eager')
    loss, expected = (m(*inputs).sum() for m in (compiled, module))
    assert_close(loss, expected)
    if parameters := list(module.parameters()):
        assert_close(torch.autograd.grad(loss, parameters),
                     torch.autograd.grad(expected, parameters))
    batch = torch.export.Dim('batch')
    program = torch.export.export(
        module, tuple(inputs), dynamic_shapes=tuple({0: batch}
                                                    for _ in inputs))
    larger = [torch.cat([x, x, x.flip(0)]) for x in inputs]
    assert_close(program.module()(*larger), module(*larger))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@every_module
def test_trace(name):
    """The graph does not depend on whether gradients are enabled."""
    module, inputs = build(name)
    traced = torch.jit.trace(module.eval(), inputs)
    larger = [torch.cat([x, x, x.flip(0)]) for x in inputs]
    assert_close(traced(*larger), module(*larger))


@pytest.mark.parametrize('name', [
    'ClipSigmoid', 'GeM', 'GeM fixed', 'GeM fixed channels', 'GeM windows',
    'GeM adaptive'])
def test_symbolic_trace(name):
    """The operation is one node, which sees any size."""
    module, inputs = build(name)
    traced = torch.fx.symbolic_trace(module)
    assert traced(*inputs).equal(module(*inputs))
