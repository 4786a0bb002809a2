"""The C++ kernels of the power mean on what they may stumble over."""
import math

import pytest
import torch

from sigplug.ops import (
    available_backends,
    generalized_mean,
    segment_generalized_mean,
)

pytestmark = pytest.mark.skipif(
    'cpp' not in available_backends(), reason='needs a C++ compiler')


@pytest.fixture(scope='module', autouse=True)
def backend():
    """Backends are named here."""


# Members that a sum, a logarithm or a ratio may stumble over.
SPECIAL = torch.tensor([
    [1, 2, 3, 4], [0, 0, 0, 0], [1, math.inf, 2, 3], [math.nan, 1, 2, 3],
    [1e-40, 2e-40, 0, 1], [1e38, 3e38, 1, 2], [1e-45, 1e-44, 0, 0],
    [1e-35, 1e-33, 0, 1e-34], [2, 2, 1, 2]])
MASK = torch.tensor([[True, True, False, True], [False, True, True, False],
                     [False] * 4]).repeat(3, 1)


@pytest.mark.parametrize('p', [
    0.5, 1.0, 2.5, 20.0, math.inf, torch.tensor(1.0), torch.tensor(3.3),
    torch.tensor(math.inf)])
@pytest.mark.parametrize('eps', [1e-6, None])
@pytest.mark.parametrize('mask', [None, MASK])
@pytest.mark.parametrize('dim', [0, 1])
def test_special_numbers(p, eps, mask, dim):
    """As in the plain form; an infinite set has no finite slope to compare."""
    x = SPECIAL if dim else SPECIAL.t().contiguous()
    if mask is not None and not dim:
        mask = mask.t()
    results = []
    for backend in ('cpp', 'eager'):
        leaf = x.clone().requires_grad_()
        y = generalized_mean(leaf, p, dim, eps=eps, mask=mask,
                             backend=backend)
        grad, = torch.autograd.grad(y, leaf, torch.ones_like(y))
        finite = y.detach().isfinite().unsqueeze(dim).expand_as(grad)
        results.append((y.detach(), grad[finite]))
    torch.testing.assert_close(*results, rtol=2e-6, atol=0,
                               equal_nan=True)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_the_number_of_threads(dtype):
    x = torch.randn(3, 17, 90, 91).to(dtype)
    p = torch.linspace(1.0, 9.0, 17)
    index = torch.randint(0, 500, (len(x.view(-1, 91)), ))
    functions = (
        lambda x: generalized_mean(x, p, backend='cpp'),
        lambda x: generalized_mean(x, 3.0, 1, backend='cpp'),
        lambda x: segment_generalized_mean(
            x.reshape(-1, 91), index, 500, backend='cpp'))

    def run():
        for function in functions:
            leaf = x.clone().requires_grad_()
            y = function(leaf)
            y.float().square().sum().backward()
            yield from (y.detach(), leaf.grad)

    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(list(run()))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
