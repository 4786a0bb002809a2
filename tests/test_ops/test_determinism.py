"""The segment form on the CPU: the same bits in every run."""
import pytest
import torch

from sigplug.ops import segment_generalized_mean


@pytest.fixture
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize('columns', [1, 16])
@pytest.mark.parametrize('p', [1.0, 3.0, float('inf'), torch.tensor([2.5])],
                         ids=str)
def test_segments_give_equal_bits(p, columns, restore_threads):
    """For each number of threads, and with many ties.

    From one number to another PyTorch's own pow may differ by an ulp, as the
    ends of the shares of the threads are computed without SIMD.
    """
    x = torch.randn(40000, columns).mul(4).round().abs() + torch.randn(
        40000, 1).clamp(min=0)
    # Few segments: their rows are spread over all threads.
    index = torch.randint(0, 7, (40000, ))

    def run():
        leaf = x.clone().requires_grad_()
        y = segment_generalized_mean(leaf, index, 8, p)
        grad, = torch.autograd.grad(
            y, leaf, torch.linspace(1, 2, y.numel()).view(y.shape))
        return y.detach(), grad

    for threads in (4, 2, 1, 3):
        torch.set_num_threads(threads)
        y, grad = run()
        for _ in range(3):
            again, grad_again = run()
            assert again.equal(y) and grad_again.equal(grad)


@pytest.mark.parametrize('p', [1.0, 3.0, float('inf')])
def test_segments_are_allowed_where_determinism_is_demanded(p):
    x = torch.rand(30, 3, requires_grad=True)
    try:
        torch.use_deterministic_algorithms(True)
        segment_generalized_mean(
            x, torch.randint(0, 4, (30, )), 4, p).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert x.grad.isfinite().all()
