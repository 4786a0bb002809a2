"""Exported operations and layers: in onnxruntime, against float64 maths."""
import io
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sigplug.models import ClipSigmoid, GeM, GeMNeck
from sigplug.ops import generalized_mean, segment_generalized_mean

from .cases import Function
from .pooling import reference
from .tolerances import assert_close

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

INF = float('inf')
POWERS = [1.0, 1.5, 2.0, 3.0, 4.5, 6.5, 20.0, 50.0]
AXES = {0: 'batch', 2: 'height', 3: 'width'}


def export(module, tensors, axes):
    """The model, which holds standard operators and nothing in float64."""
    file = io.BytesIO()
    names = [f'x{i}' for i in range(len(tensors))]
    torch.onnx.export(
        module, tensors, file, input_names=names, output_names=['y'],
        opset_version=18, dynamo=True, dynamic_shapes=axes, verbose=False)
    model = onnx.load_from_string(file.getvalue())
    onnx.checker.check_model(model, full_check=True)
    assert [entry.domain for entry in model.opset_import] == ['']
    assert not model.functions
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.type.tensor_type.elem_type for value in
             (*graph.input, *graph.output, *graph.value_info)}
    types |= {tensor.data_type for tensor in graph.initializer}
    assert onnx.TensorProto.DOUBLE not in types
    return model


def run(model, tensors):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=['CPUExecutionProvider'])
    y, = session.run(
        None, {f'x{i}': x.numpy() for i, x in enumerate(tensors)})
    return torch.from_numpy(y)


def operators(model):
    return [node.op_type for node in model.graph.node]


def power_mean(x, p, dims, eps=1e-6):
    """With the clamp as float32 holds it, and powers of the channels."""
    p = torch.as_tensor(p, dtype=torch.float64)
    return reference(
        x, p.view(-1, 1, 1) if p.dim() else p, dims,
        None if eps is None else np.float32(eps).item(), keepdim=True)


def windows(x, p, eps=1e-6):
    """Those of 3x3 cells in steps of two, with a border of zeros."""
    c = F.pad(x.double().clamp(min=eps), (1, ) * 4)
    c = c.unfold(2, 3, 2).unfold(3, 3, 2)
    return (c**p).mean((-2, -1))**(1 / p)


every_dtype = pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float16], ids=str)


@pytest.mark.parametrize('dtype, grad', [
    (torch.float32, 'zero'), (torch.float16, 'straight_through')], ids=str)
def test_clip_sigmoid(dtype, grad):
    model = export(
        ClipSigmoid(grad=grad).eval(), (torch.zeros(2, 3, 4, 5, dtype=dtype),),
        (AXES, ))
    casts = ['Cast'] if dtype == torch.float16 else []
    assert operators(model) == [*casts, 'Sigmoid', 'Clip', *casts]
    x = torch.cat([
        torch.tensor([-6e4, 6e4, -INF, INF, -9.3, 9.3, -9.1, 9.1, -7, 7, 0]),
        torch.linspace(-12, 12, 85)]).view(1, 3, 8, 4).to(dtype)
    y = run(model, (x, ))
    # Inwards: to the grid of float16, whose largest value below 1 that is.
    low, high = ((0.00010001659393310547, 1 - 2**-11)
                 if dtype == torch.float16 else
                 (np.float32(1e-4).item(), np.float32(1 - 1e-4).item()))
    assert ((y > 0) & (y < 1)).all()
    assert y.min().item() == low and y.max().item() == high
    wanted = torch.sigmoid(x.double()).clamp(low, high)
    if dtype == torch.float16:
        assert_close(y, wanted)
    # That of onnxruntime is exact to a few steps at 1, not at 0.
    torch.testing.assert_close(
        y.double(), wanted, rtol=2**-10, atol=1e-7)


LAYERS = {
    'shared': (lambda: GeM(4.5), lambda x: power_mean(x, 4.5, (2, 3))),
    'channels': (lambda: GeM(POWERS, channels=8),
                 lambda x: power_mean(x, POWERS, (2, 3))),
    'mean': (lambda: GeM(1.0, p_trainable=False),
             lambda x: power_mean(x, 1.0, (2, 3))),
    'maximum': (lambda: GeM(INF, p_trainable=False),
                lambda x: power_mean(x, INF, (2, 3))),
    'fixed channels': (
        lambda: GeM([*POWERS[:7], INF], channels=8, p_trainable=False),
        lambda x: power_mean(x, [*POWERS[:7], INF], (2, 3))),
    'no clamp': (lambda: GeM(clamp=False),
                 lambda x: power_mean(x, 3.0, (2, 3), None)),
    'rows': (lambda: GeM(kernel_size=(1, None)),
             lambda x: power_mean(x, 3.0, 3)),
    'windows': (lambda: GeM(20.0, kernel_size=3, stride=2, padding=1),
                lambda x: windows(x, 20.0)),
    # Both sizes of the maps are open, but the number of windows is not.
    'adaptive': (lambda: GeM(output_size=(2, 3)),
                 lambda x: F.adaptive_avg_pool2d(
                     x.double().clamp(min=1e-6)**3, (2, 3))**(1 / 3)),
    'neck': (GeMNeck, lambda x: power_mean(x, 3.0, (2, 3)).flatten(1)),
    'strips': (
        lambda: GeMNeck(bins=(1, 2)),
        lambda x: torch.cat([
            power_mean(part, 3.0, (2, 3)).flatten(1) for part in
            (x, x[:, :, :(x.shape[2] + 1) // 2], x[:, :, x.shape[2] // 2:])
        ], 1)),
}


def maps(*shape, dtype, signed=True):
    """Of all magnitudes; a channel below the clamp, one close to overflow."""
    x = torch.rand(shape) * torch.logspace(-3, 3, shape[1]).view(-1, 1, 1)
    if signed:
        x = torch.where(torch.rand(shape) < 0.3, -x, x)
        x[:, 0] = -x[:, 0].abs()
    else:
        x[:, 0] = 0
    x[:, -1] += 5e4
    return x.to(dtype)


@cache
def exported(name, dtype):
    """The program of a layer with open sizes, and the model made of it."""
    x = maps(2, 8, 12, 16, dtype=dtype, signed=name != 'no clamp')
    program = torch.export.export(
        LAYERS[name][0]().to(dtype).eval(), (x, ),
        dynamic_shapes=({dim: torch.export.Dim.DYNAMIC for dim in AXES}, ))
    return program.module(), export(program, (x, ), None)


@pytest.mark.parametrize('name, dtype', [
    *((name, torch.float32) for name in LAYERS),
    ('shared', torch.float16), ('channels', torch.float16)], ids=str)
def test_gem(name, dtype):
    program, model = exported(name, dtype)
    for shape in [(2, 8, 12, 16), (3, 8, 7, 9), (1, 8, 21, 4)]:
        x = maps(*shape, dtype=dtype, signed=name != 'no clamp')
        with torch.no_grad():
            for y in run(model, (x, )), program(x):
                assert y.dtype == dtype
                assert_close(y, LAYERS[name][1](x))


@every_dtype
def test_graph_of_gem(dtype):
    """Few nodes, a constant power, and no trace of a size."""
    _, model = exported('shared', dtype)
    casts = ['Cast'] if dtype == torch.float16 else []
    assert operators(model) == [
        *casts, 'Clip', 'ReduceMax', 'Clip', 'Div', 'Pow', 'ReduceMean',
        'Pow', 'Mul', *casts]
    known = {tensor.name: onnx.numpy_helper.to_array(tensor)
             for tensor in model.graph.initializer}
    powers = [known[node.input[1]].item() for node in model.graph.node
              if node.op_type == 'Pow']
    assert powers == [4.5, np.float32(1 / 4.5).item()]


def test_windows_are_slices():
    """No shape is computed, and no element is gathered by an index."""
    names = operators(exported('windows', torch.float32)[1])
    assert not {'Shape', 'Gather', 'Range', 'Loop'} & set(names)
    assert len(names) <= 48


@every_dtype
def test_masked(dtype):
    model = export(
        Function(lambda x, mask: generalized_mean(x, 3.0, mask=mask)),
        (maps(2, 8, 12, 16, dtype=dtype), torch.rand(2, 1, 12, 16) > 0.5),
        ((AXES, AXES), ))
    x = maps(3, 8, 7, 9, dtype=dtype)
    mask = torch.rand(3, 1, 7, 9) > 0.5
    mask[0] = False
    c = x.double().clamp(min=np.float32(1e-6).item())
    mean = (c**3 * mask).sum((2, 3)) / mask.sum((2, 3)).clamp(min=1)
    assert_close(run(model, (x, mask)), mean**(1 / 3))


@pytest.mark.parametrize('p, dtype', [
    (1.0, torch.float32), (3.0, torch.float16), (INF, torch.float32),
    (torch.linspace(1, 8, 4), torch.float32)], ids=str)
def test_segments(p, dtype):
    """Standard operators too, for which a runtime needs ScatterElements."""
    model = export(
        Function(lambda x, index: segment_generalized_mean(x, index, 5, p)),
        (torch.rand(20, 4, dtype=dtype), torch.arange(20) % 5),
        (({0: 'rows'}, {0: 'rows'}), ))
    x = (100 * torch.rand(300, 4)).to(dtype)
    index = torch.arange(300) % 7 % 4
    wanted = torch.zeros(5, 4, dtype=torch.float64)
    for i in range(4):
        wanted[i] = reference(x[index == i], p, 0)
    assert_close(run(model, (x, index)), wanted)


def test_gradient_of_an_exported_program():
    """It may be trained: a set of zeros has a gradient of 0."""
    layer = GeM(clamp=False)
    x = maps(2, 8, 6, 5, dtype=torch.float32, signed=False).requires_grad_()
    program = torch.export.export(layer, (x, )).module()
    grads = [torch.autograd.grad(function(x).sum(), x)[0]
             for function in (program, layer)]
    assert (grads[0][:, 0] == 0).all()
    torch.testing.assert_close(*grads)
