"""What holds for every operation, in each of its modes.

The plain form in float64 specifies an operation; the tests of each operation
hold it against mathematics. Here are the dtypes, layouts and sizes that all
of them take, with and without kernels, and PyTorch's transformations, which
take the plain form.
"""
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from sigplug import ops
from sigplug.ops import (
    clip_sigmoid,
    gaussian_focal_loss_with_logits,
    gem_pool,
    generalized_mean,
    segment_generalized_mean,
)

from .cases import CASES, Function

every_case = pytest.mark.parametrize('name', CASES)
WIDE = torch.float64


@pytest.fixture(params=['eager', 'auto'])
def backend(request, monkeypatch) -> None:
    """Of a single test, as transformations take the plain form."""
    monkeypatch.setenv(ops.backends.VARIABLE, request.param)


@pytest.fixture
def cpp(monkeypatch) -> None:
    """The kernels for CPUs."""
    if 'cpp' not in ops.available_backends():
        pytest.skip('needs a C++ compiler')
    monkeypatch.setenv(ops.backends.VARIABLE, 'auto')


def value_and_grads(function, inputs, constants):
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs, *constants)
    # Weights tell outputs apart that a sum would mix up.
    weight = torch.linspace(0.5, 1.5, y.numel()).view(y.shape).to(y)
    return y.detach(), torch.autograd.grad(y, inputs, weight)


def scalar(function):
    return lambda *tensors: function(*tensors).square().sum()


# --- dtypes, layouts, sizes: by the plain form and by kernels --------------


def with_gaps(x):
    """The same values, transposed in memory and with gaps."""
    if x.dim() == 0:
        return x
    room = x.new_zeros((*x.shape[::-1], 2))[..., 0]
    return room.permute(*range(x.dim())[::-1]).copy_(x)


LAYOUTS = {
    'contiguous': lambda x: x,
    'with gaps': with_gaps,
    'channels last': lambda x: x.movedim(1, -1).contiguous().movedim(
        -1, 1) if x.dim() > 1 else x,
}
# Two roundings of a half-precision result; float32 adds up a few of its own.
CLOSE = {
    torch.float16: dict(rtol=2**-9, atol=2**-23),
    torch.bfloat16: dict(rtol=2**-6, atol=1e-12),
    torch.float32: dict(rtol=1e-5, atol=1e-9),
}


@every_case
@pytest.mark.parametrize('dtype', CLOSE, ids=str)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_equals_the_plain_form_in_float64(name, dtype, layout, backend):
    case = CASES[name]
    inputs, constants = case.tensors(dtype)
    y, grads = value_and_grads(
        case.function, map(LAYOUTS[layout], inputs),
        [LAYOUTS[layout](c) for c in constants])
    # The numbers that the half-precision inputs hold.
    expected, slopes = value_and_grads(
        case.function, [x.double() for x in inputs],
        [c.double() if c.is_floating_point() else c for c in constants])
    upcast = name.startswith('focal')
    assert y.dtype == (torch.promote_types(dtype, torch.float32)
                       if upcast else dtype)
    close = dict(CLOSE[dtype])
    if 'clip' in name or upcast:
        # 1 - y cancels, and so do the two terms of a peak if gamma is 0.
        close['atol'] = 2**-22
    assert_close(y.double(), expected, **close)
    for x, got, slope in zip(inputs, grads, slopes):
        assert got.dtype == dtype and got.shape == x.shape
        if name.startswith('clip_sigmoid'):
            # Half-precision bounds lie further inside.
            slope = torch.where(got == 0, 0, slope)
        assert_close(got.double(), slope, **close)


@every_case
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_no_bit(name, dtype, backend):
    case = CASES[name]
    inputs, constants = case.tensors(dtype)
    y, grads = value_and_grads(case.function, inputs, constants)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        cast, cast_grads = value_and_grads(case.function, inputs, constants)
    assert cast.dtype == y.dtype and cast.equal(y)
    assert all(map(torch.equal, cast_grads, grads))


@every_case
def test_without_gradient_and_each_gradient_alone(name, backend):
    """And no input is overwritten."""
    case = CASES[name]
    inputs, constants = case.tensors()
    before = [x.clone() for x in inputs]
    y, grads = value_and_grads(case.function, inputs, constants)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert_close(case.function(*inputs, *constants), y)
    for i, expected in enumerate(grads):
        def one(x, i=i):
            return case.function(*inputs[:i], x, *inputs[i + 1:], *constants)

        alone, (grad, ) = value_and_grads(one, [inputs[i]], [])
        assert_close(alone, y)
        assert_close(grad, expected)
    assert all(map(torch.equal, inputs, before))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize('name', [
    # Windows are held as they are, a straight slope is autograd's.
    name for name in CASES if not re.search('gem_pool|straight', name)])
def test_saves_its_inputs_and_little_more(name, dtype, cpp):
    """Elementwise at most one map, else a few tensors of the result's size."""
    case = CASES[name]
    inputs, constants = case.tensors(dtype)
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        # The tensor is kept: a freed address may be used again.
        sizes[storage.data_ptr()] = (
            storage.nbytes() // tensor.element_size(), tensor)
        return tensor

    inputs = [x.requires_grad_() for x in inputs]
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = case.function(*inputs, *constants)
    assert y.requires_grad and sizes
    for x in (*inputs, *constants):
        sizes.pop(x.untyped_storage().data_ptr(), None)
    elementwise = name.startswith(('clip', 'focal'))
    assert sum(size for size, _ in sizes.values()) <= (
        inputs[0].numel() if elementwise else 2 * y.numel())


# --- derivatives of all kinds ----------------------------------------------


@every_case
def test_gradcheck(name):
    """Reverse and forward mode, once and twice, by finite differences."""
    case = CASES[name]
    inputs, constants = case.tensors(WIDE)
    inputs = [x.requires_grad_() for x in inputs]

    def function(*x):
        return case.function(*x, *constants)

    assert gradcheck(function, inputs, check_forward_ad=True,
                     check_batched_grad=True, check_batched_forward_grad=True)
    # Along random directions, which is quicker.
    assert gradgradcheck(
        function, inputs, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize('name', CASES)
def test_second_derivative_behind_kernels(name, cpp):
    """The plain form goes on from the gradient that a kernel gave."""
    case = CASES[name]
    inputs, constants = case.tensors()

    def second(inputs, constants):
        inputs = [x.detach().requires_grad_() for x in inputs]
        y = case.function(*inputs, *constants)
        grads = torch.autograd.grad(
            y.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(
            sum(g.square().sum() for g in grads), inputs, allow_unused=True,
            materialize_grads=True)

    exact = second([x.double() for x in inputs],
                   [c.double() if c.is_floating_point() else c
                    for c in constants])
    for got, expected in zip(second(inputs, constants), exact):
        assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


@every_case
def test_func(name):
    """``grad``, ``vmap`` and gradients per sample."""
    case = CASES[name]
    inputs, constants = case.tensors(WIDE)
    argnums = tuple(range(len(inputs)))
    gradient = torch.func.grad(scalar(case.function), argnums)
    leaves = [x.clone().requires_grad_() for x in inputs]
    assert_close(
        gradient(*inputs, *constants),
        torch.autograd.grad(scalar(case.function)(*leaves, *constants),
                            leaves))

    scale = torch.linspace(0.9, 1.1, 3, dtype=WIDE)
    batches = [torch.stack([s * x for s in scale]) for x in inputs]
    in_dims = (*[0] * len(inputs), *[None] * len(constants))
    assert_close(
        torch.func.vmap(case.function, in_dims)(*batches, *constants),
        torch.stack([case.function(*(x[i] for x in batches), *constants)
                     for i in range(3)]))
    each = [gradient(*(x[i] for x in batches), *constants) for i in range(3)]
    assert_close(torch.func.vmap(gradient, in_dims)(*batches, *constants),
                 tuple(map(torch.stack, zip(*each))))


# --- compilers and tracers ---------------------------------------------------


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@every_case
def test_compile_and_export(name, dynamo):
    """One graph; the backward is derived by the compiler."""
    case = CASES[name]
    inputs, constants = case.tensors()
    compiled = torch.compile(
        case.function, fullgraph=True, backend='aot_eager')
    assert_close(value_and_grads(compiled, inputs, constants),
                 value_and_grads(case.function, inputs, constants))
    tensors = (*inputs, *constants)
    program = torch.export.export(Function(case.function), tensors)
    assert_close(program.module()(*tensors), case.function(*tensors))


@pytest.mark.slow
def test_inductor_at_several_sizes(dynamo):
    """From the second size on, sizes are open to the real compiler."""
    def function(x, z, p, t, i):
        return torch.cat([y.flatten() for y in (
            clip_sigmoid(x, grad='straight_through'),
            gaussian_focal_loss_with_logits(x, t, clip=1e-4),
            generalized_mean(z, p),
            gem_pool(z, p, 3, 2, 1),
            segment_generalized_mean(z[0].flatten(1).T, i, 3))])

    compiled = torch.compile(function, fullgraph=True)
    for size in (6, 9, 14):
        x, t = torch.randn(2, 3, size, size), torch.rand(2, 3, size, size)
        z, p = t + 0.1, torch.tensor([1.5, 3.0, 6.5])
        i = torch.arange(size * size) % 3
        assert_close(value_and_grads(compiled, [x, z, p], [t, i]),
                     value_and_grads(function, [x, z, p], [t, i]))


@every_case
def test_meta_and_fake_tensors(name):
    case = CASES[name]
    inputs, constants = case.tensors(torch.bfloat16)
    y, grads = value_and_grads(case.function, inputs, constants)
    found = [value_and_grads(
        case.function, [x.to('meta') for x in inputs],
        [c.to('meta') for c in constants])]
    with FakeTensorMode() as mode:
        found.append(value_and_grads(
            case.function, [mode.from_tensor(x) for x in inputs],
            [mode.from_tensor(c) for c in constants]))
        for value, slopes in found:
            for got, expected in zip((value, *slopes), (y, *grads)):
                assert got.dtype == expected.dtype
                assert got.shape == expected.shape


# --- arguments that all operations take --------------------------------------


@pytest.mark.parametrize('function', [
    clip_sigmoid, generalized_mean, gem_pool,
    lambda x: gaussian_focal_loss_with_logits(x, torch.zeros(2)),
    lambda x: segment_generalized_mean(x, torch.tensor([0]), 1)])
@pytest.mark.parametrize('x, got', [
    (torch.zeros(2, dtype=torch.int64), 'int64'),
    (torch.zeros(2, dtype=torch.complex64), 'complex64'),
    ([0.0, 1.0], r'list: make one by torch\.tensor\('),
])
def test_input_that_is_no_floating_point_tensor(function, x, got):
    with pytest.raises(TypeError, match=rf'^(x|logits) must .*{got}'):
        function(x)
