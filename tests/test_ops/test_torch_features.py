"""Each operation in each mode under each of PyTorch's transformations."""
import copy
import pickle
import shutil

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from sigplug.ops import (
    clip_sigmoid,
    gaussian_focal_loss_with_logits,
    gem_pool,
    generalized_mean,
    segment_generalized_mean,
)

from .cases import CASES, MODULES

every_case = pytest.mark.parametrize('name', CASES)
every_module = pytest.mark.parametrize('name', MODULES)
WIDE = torch.float64


def value_and_grads(function, inputs, constants):
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs, *constants)
    # Weights tell outputs apart that a sum would mix up.
    weight = torch.linspace(0.5, 1.5, max(y.numel(), 1), dtype=y.dtype)
    grads = torch.autograd.grad(
        y, inputs, weight[:y.numel()].view(y.shape).to(y.device))
    return y.detach(), grads


def scalar(function):
    return lambda *tensors: function(*tensors).square().sum()


class Wrapper(nn.Module):
    """What ``torch.export`` takes."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def batches(case, n=3):
    """Inputs with a leading batch dim, and the constants."""
    inputs, constants = case.tensors(WIDE)
    scale = torch.linspace(0.9, 1.1, n, dtype=WIDE)
    return [torch.stack([s * x for s in scale]) for x in inputs], constants


# --- gradients ------------------------------------------------------------


@every_case
def test_gradcheck(name):
    """Reverse and forward mode against finite differences."""
    case = CASES[name]
    inputs, constants = case.tensors(WIDE)
    inputs = [x.requires_grad_() for x in inputs]
    assert gradcheck(
        lambda *x: case.function(*x, *constants), inputs,
        check_forward_ad=True, check_batched_grad=True,
        check_batched_forward_grad=True)


@every_case
def test_gradgradcheck(name):
    case = CASES[name]
    inputs, constants = case.tensors(WIDE)
    inputs = [x.requires_grad_() for x in inputs]
    assert gradgradcheck(
        lambda *x: case.function(*x, *constants), inputs,
        check_fwd_over_rev=True)


# All forms on the same sets: the rows of a matrix.
FORMS = {
    'dense': lambda x, p, eps: generalized_mean(x, p, 1, eps=eps),
    'masked': lambda x, p, eps: generalized_mean(
        x, p, 1, eps=eps, mask=torch.ones_like(x, dtype=torch.bool)),
    'windows': lambda x, p, eps: gem_pool(
        x.reshape(1, 1, -1), p, (x.shape[1], ), eps=eps),
    'segments': lambda x, p, eps: segment_generalized_mean(
        x.flatten(), torch.arange(x.numel()) // x.shape[1], len(x), p,
        eps=eps),
}
every_form = pytest.mark.parametrize('form', FORMS)
every_dtype = pytest.mark.parametrize('dtype', [
    torch.float16, torch.bfloat16, torch.float32, torch.float64])


@every_form
@every_dtype
@pytest.mark.parametrize('p', [1.0, 3.0, torch.tensor([3.0])], ids=str)
def test_kink_at_the_clamp(form, dtype, p):
    """Passed at equality, as ``torch.clamp`` does; nothing one step below."""
    at = torch.tensor(0.5, dtype=dtype)
    below = torch.nextafter(at, torch.zeros_like(at))
    x = torch.stack([at, below]).expand(2, 2).contiguous().requires_grad_()
    dx, = torch.autograd.grad(FORMS[form](x, p, 0.5).sum(), x)
    assert dx.tolist() == [[0.5, 0.0]] * 2


@every_form
@every_dtype
@pytest.mark.parametrize('p', [1.0, 3.0, torch.tensor([3.0])], ids=str)
def test_kink_at_a_clamp_that_the_dtype_rounds(form, dtype, p):
    """What is raised to ``eps`` has no influence, also if it rounds to it."""
    for eps in (1e-6, 1e-3, 0.3):
        x = torch.tensor([[eps, eps]], dtype=dtype, requires_grad=True)
        dx, = torch.autograd.grad(FORMS[form](x, p, eps).sum(), x)
        # eps as the computing dtype holds it, which x can lie below.
        held = torch.tensor(eps, dtype=torch.promote_types(
            dtype, torch.float32)).item()
        assert (dx[0, 0] > 0) == (x[0, 0].item() >= held)


@every_form
@pytest.mark.parametrize('p', [float('inf'), torch.tensor([float('inf')])],
                         ids=str)
def test_ties_of_the_maximum_share_its_gradient(form, p):
    """The limit of the closed form for a growing ``p``."""
    x = torch.tensor([[3., 1., 3., 2.], [4., 4., 4., 4.]],
                     requires_grad=True)
    dx, = torch.autograd.grad(FORMS[form](x, p, 1e-6).sum(), x)
    assert dx.tolist() == [[0.5, 0.0, 0.5, 0.0], [0.25] * 4]


@every_form
@pytest.mark.parametrize('p', [1.0, torch.tensor([1.0])], ids=str)
def test_zeros_have_a_share_of_the_mean(form, p):
    x = torch.tensor([[3., 0., 0., 2.]], requires_grad=True)
    dx, = torch.autograd.grad(FORMS[form](x, p, None).sum(), x)
    assert dx.tolist() == [[0.25] * 4]


@pytest.mark.parametrize('name', [
    name for name, case in CASES.items() if len(case.inputs) > 1])
def test_each_gradient_alone(name):
    """A frozen input changes nothing for the other."""
    case = CASES[name]
    inputs, constants = case.tensors()
    y, grads = value_and_grads(case.function, inputs, constants)
    for i, expected in enumerate(grads):
        def one(x, i=i):
            return case.function(*inputs[:i], x, *inputs[i + 1:], *constants)

        alone, (grad, ) = value_and_grads(one, [inputs[i]], [])
        assert alone.equal(y) and grad.equal(expected)


@every_case
def test_without_gradient(name):
    case = CASES[name]
    inputs, constants = case.tensors()
    y, _ = value_and_grads(case.function, inputs, constants)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert case.function(*inputs, *constants).equal(y)


# --- torch.func -----------------------------------------------------------


@every_case
def test_func_grad(name):
    case = CASES[name]
    inputs, constants = case.tensors(WIDE)
    got = torch.func.grad(scalar(case.function), tuple(range(len(inputs))))(
        *inputs, *constants)
    leaves = [x.clone().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(
        scalar(case.function)(*leaves, *constants), leaves)
    assert_close(got, expected)


@every_case
def test_func_vmap(name):
    """Over the inputs, over the first alone, and over the constants too."""
    case = CASES[name]
    inputs, constants = batches(case)
    shared = [None] * len(constants)

    def check(inputs, constants, in_dims):
        got = torch.func.vmap(case.function, in_dims)(*inputs, *constants)
        expected = torch.stack([case.function(*[
            t if d is None else t[i]
            for t, d in zip((*inputs, *constants), in_dims)])
            for i in range(3)])
        assert_close(got, expected)

    check(inputs, constants, (*[0] * len(inputs), *shared))
    check([inputs[0], *(x[0] for x in inputs[1:])], constants,
          (0, *[None] * (len(inputs) - 1), *shared))
    if case.batched_constants:
        check(inputs, [torch.stack([c, c.flip(0), c]) for c in constants],
              (0, ) * (len(inputs) + len(constants)))


@every_case
def test_func_vmap_of_grad(name):
    """Gradients per sample."""
    case = CASES[name]
    inputs, constants = batches(case)
    argnums = tuple(range(len(inputs)))
    in_dims = (*[0] * len(inputs), *[None] * len(constants))
    gradient = torch.func.grad(scalar(case.function), argnums)
    got = torch.func.vmap(gradient, in_dims)(*inputs, *constants)
    each = [gradient(*(x[i] for x in inputs), *constants) for i in range(3)]
    assert_close(got, tuple(map(torch.stack, zip(*each))))


@every_case
def test_func_jvp(name):
    """Forward mode is the transpose of reverse mode."""
    case = CASES[name]
    inputs, constants = case.tensors(WIDE)
    for moved in {1, len(inputs)}:
        def function(*x, moved=moved):
            return case.function(*x, *inputs[moved:], *constants)

        primals = tuple(inputs[:moved])
        tangents = tuple(torch.randn_like(x) for x in primals)
        y, along = torch.func.jvp(function, primals, tangents)
        assert_close(y, function(*primals))
        weight = torch.randn_like(y)
        _, pull = torch.func.vjp(function, *primals)
        assert_close((weight * along).sum(), sum(
            (g * t).sum() for g, t in zip(pull(weight), tangents)))


@every_case
def test_func_hessian(name):
    """Forward over reverse against reverse over reverse."""
    case = CASES[name]
    inputs, constants = case.tensors(WIDE)

    def function(x):
        return scalar(case.function)(x, *inputs[1:], *constants)

    assert_close(torch.func.hessian(function)(inputs[0]),
                 torch.autograd.functional.hessian(function, inputs[0]))


# --- compilers and tracers ------------------------------------------------


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@every_case
def test_compile(name, dynamo):
    case = CASES[name]
    inputs, constants = case.tensors()
    compiled = torch.compile(
        case.function, fullgraph=True, backend='aot_eager')
    assert_close(value_and_grads(compiled, inputs, constants),
                 value_and_grads(case.function, inputs, constants))
    with torch.no_grad():
        assert_close(compiled(*inputs, *constants),
                     case.function(*inputs, *constants))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='needs a C++ compiler')
def test_compile_with_inductor(dynamo):
    """One graph of all operations, since each build takes seconds."""

    def function(x, z, p, t, i):
        return torch.cat([y.flatten() for y in (
            clip_sigmoid(x, grad='straight_through'),
            gaussian_focal_loss_with_logits(x, t),
            generalized_mean(z, p),
            gem_pool(z, p, 2),
            segment_generalized_mean(z[0, 0], i, 3))])

    (x, ), (t, ) = CASES['focal'].tensors()
    (z, p), _ = CASES['generalized_mean channels'].tensors()
    i = torch.tensor([2, 0])
    compiled = torch.compile(function, fullgraph=True)
    assert_close(value_and_grads(compiled, [x, z, p], [t, i]),
                 value_and_grads(function, [x, z, p], [t, i]))


@every_case
def test_export(name):
    case = CASES[name]
    inputs, constants = case.tensors()
    tensors = (*inputs, *constants)
    program = torch.export.export(Wrapper(case.function), tensors)
    assert_close(program.module()(*tensors), case.function(*tensors))


@every_module
def test_export_module_with_a_dynamic_batch(name):
    make, inputs = MODULES[name]
    module, tensors = make(), [x() for x in inputs]
    batch = torch.export.Dim('batch')
    program = torch.export.export(
        module, tuple(tensors),
        dynamic_shapes=tuple({0: batch} for _ in tensors))
    larger = [torch.cat([x, x, x.flip(0)]) for x in tensors]
    assert_close(program.module()(*larger), module(*larger))


@every_case
def test_meta_tensors(name):
    case = CASES[name]
    for dtype in (torch.float32, torch.bfloat16):
        inputs, constants = case.tensors(dtype)
        y, grads = value_and_grads(case.function, inputs, constants)
        meta = value_and_grads(
            case.function, [x.to('meta') for x in inputs],
            [c.to('meta') for c in constants])
        for got, expected in zip((meta[0], *meta[1]), (y, *grads)):
            assert got.is_meta and got.dtype == expected.dtype
            assert got.shape == expected.shape


@every_case
def test_fake_tensors(name):
    case = CASES[name]
    inputs, constants = case.tensors(torch.bfloat16)
    y, grads = value_and_grads(case.function, inputs, constants)
    with FakeTensorMode() as mode:
        fake = value_and_grads(
            case.function, [mode.from_tensor(x) for x in inputs],
            [mode.from_tensor(c) for c in constants])
        for got, expected in zip((fake[0], *fake[1]), (y, *grads)):
            assert got.dtype == expected.dtype
            assert got.shape == expected.shape


# --- autocast, layouts, sizes ---------------------------------------------


@every_case
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_autocast(name, dtype):
    """Neither the dtype nor a bit changes."""
    case = CASES[name]
    inputs, constants = case.tensors(dtype)
    y, grads = value_and_grads(case.function, inputs, constants)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        cast, cast_grads = value_and_grads(case.function, inputs, constants)
    assert cast.dtype == y.dtype and cast.equal(y)
    for got, expected in zip(cast_grads, grads):
        assert got.dtype == expected.dtype and got.equal(expected)


@every_case
def test_not_contiguous(name):
    case = CASES[name]
    inputs, constants = case.tensors()
    expected = value_and_grads(case.function, inputs, constants)

    def spread(x):
        """The same values, transposed in memory and with gaps."""
        if x.dim() == 0:
            return x
        room = x.new_zeros((*x.shape[::-1], 2))[..., 0]
        return room.permute(*range(x.dim())[::-1]).copy_(x)

    inputs, constants = [[spread(x) for x in group]
                         for group in (inputs, constants)]
    assert not inputs[0].is_contiguous()
    assert_close(value_and_grads(case.function, inputs, constants), expected)


def empty_long(*shape):
    return torch.zeros(shape, dtype=torch.int64)


@pytest.mark.parametrize('grad', ['zero', 'straight_through'])
@pytest.mark.parametrize('shape', [(), (0, ), (2, 0, 3)])
def test_clip_sigmoid_of_no_dims_and_no_elements(shape, grad):
    y, (dx, ) = value_and_grads(
        lambda x: clip_sigmoid(x, grad=grad), [torch.zeros(shape)], [])
    assert y.shape == dx.shape == shape
    assert (y == 0.5).all() and (dx == 0.125).all()


@pytest.mark.parametrize('clip', [None, 1e-4])
@pytest.mark.parametrize('shape', [(), (0, ), (2, 0, 3)])
def test_focal_loss_of_no_dims_and_no_elements(shape, clip):
    for reduction, size in (('none', shape), ('sum', ()), ('mean', ())):
        avg_factor = None if reduction == 'sum' else 1.0
        y, (dx, ) = value_and_grads(
            lambda x, r=reduction, a=avg_factor:
            gaussian_focal_loss_with_logits(
                x, torch.zeros(shape), reduction=r, clip=clip, avg_factor=a),
            [torch.zeros(shape)], [])
        assert y.shape == size and dx.shape == shape
        assert y.isfinite().all() and dx.isfinite().all()


@pytest.mark.parametrize('p', [1.0, 3.0, float('inf'), torch.tensor([3.0]),
                               torch.tensor([2.0, 3.0])])
@pytest.mark.parametrize('function, shape, out', [
    (generalized_mean, (0, 2, 4, 4), (0, 2)),
    (lambda x, p: gem_pool(x, p, 2), (0, 2, 4, 4), (0, 2, 2, 2)),
    (lambda x, p: segment_generalized_mean(x, empty_long(0), 3, p),
     (0, 2), (3, 2)),
    (lambda x, p: segment_generalized_mean(x, empty_long(0), 0, p),
     (0, 2), (0, 2)),
])
def test_generalized_means_of_no_elements(function, shape, out, p):
    inputs = [torch.zeros(shape)]
    if isinstance(p, torch.Tensor):
        y, (dx, dp) = value_and_grads(function, [*inputs, p], [])
        assert dp.equal(torch.zeros_like(p))
    else:
        y, (dx, ) = value_and_grads(lambda x: function(x, p), inputs, [])
    assert y.shape == out and (y == 0).all() and dx.shape == shape


# --- modules --------------------------------------------------------------


@every_module
@pytest.mark.parametrize('duplicate', [
    copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))
], ids=['deepcopy', 'pickle'])
def test_copies_of_modules(name, duplicate):
    make, inputs = MODULES[name]
    module, tensors = make(), [x() for x in inputs]
    # A copy in the middle of training has gradients and a changed p.
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.1)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    other = duplicate(module)
    assert other(*tensors).equal(module(*tensors))
    assert repr(other) == repr(module)
    for ours, theirs in zip(module.parameters(), other.parameters()):
        assert ours is not theirs and ours.equal(theirs)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    if list(module.parameters()):
        assert not other(*tensors).equal(module(*tensors))


@every_module
def test_compile_module(name, dynamo):
    make, inputs = MODULES[name]
    module, tensors = make(), [x() for x in inputs]
    compiled = torch.compile(module, fullgraph=True, backend='aot_eager')
    loss, expected = (m(*tensors).sum() for m in (compiled, module))
    assert_close(loss, expected)
    parameters = list(module.parameters())
    if parameters:
        assert_close(torch.autograd.grad(loss, parameters),
                     torch.autograd.grad(expected, parameters))
