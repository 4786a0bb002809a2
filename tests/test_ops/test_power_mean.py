"""The generalised mean in all its forms: dense, masked, segments, windows."""
import math

import pytest
import torch

from sigplug.ops import gem_pool, generalized_mean, segment_generalized_mean

pytestmark = pytest.mark.usefixtures('backend')

# The same sets, the rows of a matrix.
FORMS = {
    'dense': lambda x, p, eps: generalized_mean(x, p, 1, eps=eps),
    'masked': lambda x, p, eps: generalized_mean(
        x, p, 1, eps=eps, mask=torch.ones_like(x, dtype=torch.bool)),
    'segments': lambda x, p, eps: segment_generalized_mean(
        x.flatten(), torch.arange(x.numel()) // x.shape[1], len(x), p,
        eps=eps),
    'windows': lambda x, p, eps: gem_pool(
        x.reshape(1, 1, 1, -1), p, (1, x.shape[1]), eps=eps),
}
every_form = pytest.mark.parametrize('form', FORMS)


def slopes(form, x, p, eps):
    x.requires_grad_()
    dx, = torch.autograd.grad(FORMS[form](x, p, eps).sum(), x)
    return dx.tolist()


@every_form
@pytest.mark.parametrize('dtype', [
    torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('p', [1.0, 3.0, torch.tensor([3.0])], ids=str)
def test_kink_at_the_clamp(form, dtype, p):
    """Passed at equality, as ``torch.clamp`` does; nothing one step below."""
    at = torch.tensor(0.5, dtype=dtype)
    below = torch.nextafter(at, torch.zeros_like(at))
    x = torch.stack([at, below]).expand(2, 2).contiguous()
    assert slopes(form, x, p, 0.5) == [[0.5, 0.0]] * 2


@pytest.mark.parametrize('form', ['dense', 'masked', 'segments'])
@pytest.mark.parametrize('p', [math.inf, torch.tensor([math.inf])], ids=str)
def test_ties_of_the_maximum_share_its_gradient(form, p):
    """The limit of the closed form for a growing ``p``."""
    x = torch.tensor([[3., 1., 3., 2.], [4., 4., 4., 4.]])
    assert slopes(form, x, p, 1e-6) == [[0.5, 0.0, 0.5, 0.0], [0.25] * 4]


@every_form
@pytest.mark.parametrize('p', [1.0, torch.tensor([1.0])], ids=str)
def test_zeros_have_a_share_of_the_mean(form, p):
    x = torch.tensor([[3., 0., 0., 2.]])
    assert slopes(form, x, p, None) == [[0.25] * 4]


@every_form
@pytest.mark.parametrize('p', [0.5, 1.0, 3.0, 8.0])
def test_all_zero_without_clamp(form, p):
    """There is no slope at 0, but no NaN either."""
    x, power = torch.zeros(2, 5, requires_grad=True), torch.tensor(
        p, requires_grad=True)
    y = FORMS[form](x, power, None)
    assert (y == 0).all()
    dx, dp = torch.autograd.grad(y.sum(), [x, power])
    assert dx.isfinite().all() and dp == 0


@pytest.mark.parametrize('p', [1.0, 3.0, math.inf, torch.tensor([3.0]),
                               torch.tensor([2.0, 3.0])], ids=str)
@pytest.mark.parametrize('function, shape, out', [
    (generalized_mean, (0, 2, 4, 4), (0, 2)),
    (lambda x, p: gem_pool(x, p, 2), (0, 2, 4, 4), (0, 2, 2, 2)),
    (lambda x, p: segment_generalized_mean(
        x, torch.zeros(0, dtype=torch.int64), 3, p), (0, 2), (3, 2)),
    (lambda x, p: segment_generalized_mean(
        x, torch.zeros(0, dtype=torch.int64), 0, p), (0, 2), (0, 2)),
])
def test_no_elements(function, shape, out, p):
    x = torch.zeros(shape, requires_grad=True)
    trained = isinstance(p, torch.Tensor)
    leaves = [x, p.requires_grad_()] if trained else [x]
    y = function(x, p)
    assert y.shape == out and (y == 0).all()
    dx, *dp = torch.autograd.grad(y.sum(), leaves)
    assert dx.shape == shape and all((grad == 0).all() for grad in dp)


# Members that a sum, a logarithm or a ratio may stumble over.
SPECIAL = torch.tensor([
    [1, 2, 3, 4], [0, 0, 0, 0], [1, math.inf, 2, 3], [math.nan, 1, 2, 3],
    [1e-40, 2e-40, 0, 1], [1e38, 3e38, 1, 2], [1e-45, 1e-44, 0, 0],
    [1e-35, 1e-33, 0, 1e-34], [2, 2, 1, 2]])
MASK = torch.tensor([[True, True, False, True], [False, True, True, False],
                     [False] * 4]).repeat(3, 1)


@pytest.mark.parametrize('p', [
    0.5, 1.0, 2.5, 20.0, math.inf, torch.tensor(1.0), torch.tensor(3.3),
    torch.tensor(math.inf)], ids=str)
@pytest.mark.parametrize('eps', [1e-6, None])
@pytest.mark.parametrize('mask', [None, MASK], ids=['all', 'masked'])
def test_kernels_treat_special_numbers_as_the_plain_form(p, eps, mask):
    """Along both dims; an infinite set has no finite slope to compare."""
    for dim, x, members in ((1, SPECIAL, mask), (
            0, SPECIAL.t().contiguous(), None if mask is None else mask.t())):
        results = []
        for backend in ('auto', 'eager'):
            leaf = x.clone().requires_grad_()
            y = generalized_mean(leaf, p, dim, eps=eps, mask=members,
                                 backend=backend)
            grad, = torch.autograd.grad(y, leaf, torch.ones_like(y))
            finite = y.detach().isfinite().unsqueeze(dim).expand_as(grad)
            results.append((y.detach(), grad[finite]))
        torch.testing.assert_close(*results, rtol=2e-6, atol=0,
                                   equal_nan=True)


@pytest.fixture
def restore():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('columns', [1, 16])
@pytest.mark.parametrize('p', [1.0, 3.0, math.inf, torch.tensor([2.5])],
                         ids=str)
def test_segments_give_equal_bits_in_every_run(p, columns, restore):
    """With many ties, and where determinism is demanded.

    From one number of threads to another PyTorch's own pow may differ by an
    ulp, as the ends of the shares of the threads are computed without SIMD.
    """
    torch.use_deterministic_algorithms(True)
    x = torch.randn(40000, columns).mul(4).round().abs() + torch.randn(
        40000, 1).clamp(min=0)
    x.requires_grad_()
    # Few segments: their rows are spread over all threads.
    index = torch.randint(0, 7, (40000, ))

    def run():
        y = segment_generalized_mean(x, index, 8, p)
        return y.detach(), *torch.autograd.grad(
            y, x, torch.linspace(1, 2, y.numel()).view(y.shape))

    for threads in (4, 3, 1):
        torch.set_num_threads(threads)
        first, second = run(), run()
        assert all(map(torch.equal, first, second))


def test_many_gradients_at_once():
    x = torch.rand(2, 3, 4, 5, requires_grad=True)
    p = torch.tensor(2.5, requires_grad=True)
    y = generalized_mean(x, p)
    many = torch.rand(4, *y.shape)
    expected = [torch.autograd.grad(y, (x, p), one, retain_graph=True)
                for one in many]
    torch.testing.assert_close(
        torch.autograd.grad(y, (x, p), many, is_grads_batched=True),
        tuple(map(torch.stack, zip(*expected))))


def test_a_result_can_be_changed_in_place():
    x = torch.rand(2, 3, 4, 5, requires_grad=True)
    y = generalized_mean(x, backend='eager')
    expected = 2 * y
    assert y.mul_(2).equal(expected)
