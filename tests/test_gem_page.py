"""The snippets of docs/gem.md against the formulas of their originals."""
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import page_snippet
from mmengine.registry import MODELS

snippet = partial(page_snippet, 'gem.md')
assert_close = partial(torch.testing.assert_close, rtol=1e-10, atol=0)


def positive(*shape):
    return torch.rand(shape, dtype=torch.float64) + 0.01


@pytest.fixture
def checkpoint():
    """What the originals store: one power."""
    return dict(p=torch.full((1, ), 4.25))


def test_adaptive_windows_of_fast_reid(checkpoint):
    pool, x = snippet('Adaptive windows')['pool'], positive(2, 3, 9, 5)
    pool.load_state_dict(checkpoint, strict=True)
    assert_close(pool.double()(x), F.adaptive_avg_pool2d(
        x**4.25, (4, 2))**(1 / 4.25))


def test_parts_of_opengait(checkpoint):
    neck, x = MODELS.build(snippet('Parts')['neck']), positive(2, 3, 64, 11)
    assert neck.p.tolist() == [6.5]
    neck.load_state_dict(checkpoint, strict=True)
    assert_close(neck.double()(x), (x**4.25).mean(3)**(1 / 4.25))


def test_tokens_masks_and_groups():
    found = snippet('Tokens, masks and groups')
    x = positive(2, 197, 768)
    pool, mask = found['pool'].double(), torch.ones(2, 197).bool()
    powers = torch.linspace(1, 6.5, 12)
    pool.load_state_dict(dict(p=powers), strict=True)
    mask[1, 120:] = False
    p = powers.double().repeat_interleave(64)
    assert_close(pool(x, mask), torch.stack([
        (x[0]**p).mean(0)**(1 / p), (x[1, :120]**p).mean(0)**(1 / p)]))
    cells, occupied = found['sparse_map'], found['occupied']
    for y, cell, taken in zip(found['descriptor'], cells, occupied):
        alone = cell[:, taken].double()
        torch.testing.assert_close(
            y.double(), (alone**3).mean(1)**(1 / 3), rtol=1e-6, atol=0)


def test_signed_values_of_superglobal():
    x = torch.randn(3, 2, 16, dtype=torch.float64)
    y = snippet('Signed values')['signed_gem'](x)
    gamma = x.min()
    assert_close(y, (x - gamma).pow(10).mean(0).pow(0.1) + gamma, rtol=1e-9)
    assert (y < 0).any()


def test_regional_of_superglobal():
    x = positive(2, 3, 7, 9)
    pooled = F.lp_pool2d(
        F.pad(x, [2] * 4, mode='reflect') / 25**(1 / 2.5), 2.5, 5, 1)
    assert_close(snippet('Regional')['regional_gem'](x), (pooled + x) / 2)


@pytest.mark.parametrize('name, pack', [
    ('MinkGeM', lambda x, at: SimpleNamespace(F=x, C=at)),
    ('SpconvGeM', lambda x, at: SimpleNamespace(
        features=x, indices=at, batch_size=3))])
def test_sparse_tensors(name, pack, checkpoint):
    """Coordinates are integers of 32 bits in both packages."""
    pool = snippet('Sparse tensors')[name]()
    pool.load_state_dict(checkpoint, strict=True)
    x, at = positive(9, 4), torch.randint(0, 50, (9, 4)).int()
    at[:, 0] = torch.tensor([0, 0, 2, 1, 2, 0, 1, 2, 2])
    assert_close(pool.double()(pack(x, at)), torch.stack([
        (x[at[:, 0] == i]**4.25).mean(0)**(1 / 4.25) for i in range(3)]))


def test_graphs():
    """Where PyTorch Geometric's own does not cut off."""
    nn = pytest.importorskip('torch_geometric.nn')
    cls = snippet('Graphs')['GeMAggregation']
    x, index = positive(9, 4), torch.tensor([0, 3, 1, 0, 1, 1, 3, 0, 0])
    ours = cls(2.5).double()
    theirs = nn.PowerMeanAggregation(2.5, learn=True).double()
    assert_close(ours(x, index)[[0, 1, 3]], theirs(x, index)[[0, 1, 3]])
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours(1e3 * x, index)[0].gt(100).any()
    assert theirs(1e3 * x, index).max() < 100
    assert ours(x, index, dim_size=6).shape == (6, 4)
    # Inside of a layer.
    conv = nn.GCNConv(4, 2, aggr=cls()).double()
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    conv(x, edges).sum().backward()
    assert conv.aggr_module.p.grad.isfinite().all()
