"""The page of numerics and its pictures, by the tools that make them."""
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import mpmath
import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = REPOSITORY / 'tools/analysis_tools'
PAGE = REPOSITORY / 'docs/numerics.md'
DTYPES = dict(
    fp16=torch.float16,
    bf16=torch.bfloat16,
    fp32=torch.float32,
    fp64=torch.float64)
BITS = dict(fp16=11, bf16=8, fp32=24, fp64=53)
PICTURES = {
    'curves_sigmoid.png': (950, 1500),
    'curves_focal_loss.png': (1500, 1500),
    'curves_generalized_mean.png': (620, 1500),
}


pytestmark = pytest.mark.usefixtures('tools_on_path')


@pytest.fixture(scope='module')
def report(tools_on_path):
    import report_numerics
    return report_numerics


@pytest.fixture(scope='module')
def curves(tools_on_path):
    import plot_curves
    return plot_curves


def run(tool, *args):
    return subprocess.run(
        [sys.executable, TOOLS / tool, *map(str, args)],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True)


def split_row(line):
    return [cell.strip() for cell in line.strip('|').split(' | ')]


def read_tables(page):
    """The tables of a page, in order, as lists of rows by column."""
    tables = []
    for block in re.findall(r'(?:^\|.*\n)+', page, re.MULTILINE):
        header, _, *rows = map(split_row, block.splitlines())
        assert all(len(row) == len(header) for row in rows)
        tables.append([dict(zip(header, row)) for row in rows])
    return tables


def is_error(column):
    """Whether its numbers depend on the random inputs."""
    return 'error' in column or 'tried' in column


def find_table(page, *columns):
    """The first table with these columns."""
    return next(table for table in read_tables(page)
                if set(columns) <= set(table[0]))


@pytest.fixture(scope='module')
def committed():
    return PAGE.read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    """The page by the tool itself, with small sweeps."""
    out = tmp_path_factory.mktemp('page') / 'new' / 'numerics.md'
    result = run('report_numerics.py', '--values', 1024, '--out', out)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(out)]
    return out.read_text(encoding='utf-8')


def test_the_committed_page_is_what_the_tool_writes(committed, measured):

    def prose(page):
        page = re.sub(r'With PyTorch \S+', '', page)
        return re.sub(r'^\|.*\n', '', page, flags=re.MULTILINE)

    def facts(page):
        return [[{
            key: value
            for key, value in row.items() if not is_error(key)
        } for row in table] for table in read_tables(page)]

    assert prose(measured) == prose(committed)
    assert facts(measured) == facts(committed)


def test_no_error_is_larger_than_committed(committed, measured):
    """Small sweeps find less; another processor may round differently."""

    def value(text):
        return math.inf if text == 'infinite' else float(text.rstrip(' †'))

    checked = 0
    for ours, theirs in zip(read_tables(measured), read_tables(committed)):
        for row, expected in zip(ours, theirs):
            for column, text in row.items():
                if 'error' in column and text != '-':
                    limit = value(expected[column])
                    slack = 0.5 if 'ulp' in column else 0.3 * limit
                    assert value(text) <= limit + slack, (row, column)
                    checked += 1
    assert checked > 100


@pytest.mark.parametrize(('tool', 'args', 'message'), [
    ('report', ['--values', '10'], '--values must be at least 1024, got 10'),
    ('curves', ['--out-dir', 'new', '--only', 'x.png'], "choice: 'x.png'"),
    ('curves', [], 'arguments are required: --out-dir'),
])
def test_usage_errors(request, tmp_path, monkeypatch, capsys, tool, args,
                      message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [tool, *args])
    with pytest.raises(SystemExit) as error:
        request.getfixturevalue(tool).main()
    assert error.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bounds_on_the_page(committed):
    """Against the format of the dtype."""
    for row in find_table(committed, 'bounds of ours'):
        bits = BITS[row['dtype']]
        assert row['significant bits'] == str(bits)
        gap = 2.0**-bits
        assert float(row['largest value below 1'].split()[-1]) == (
            pytest.approx(gap, rel=1e-5))
        half = row['dtype'] in ('fp16', 'bf16')
        assert (row['`1 - 1e-4` becomes'] == 'exactly 1') == half
        assert row['bounds of mmdet3d'].endswith('exactly 1') == half
        low, high = row['bounds of ours'].split(', 1 - ')
        assert float(high) == pytest.approx(gap if half else 1e-4, rel=2e-4)
        assert float(low) == pytest.approx(1e-4, rel=2e-3)


def next_value(value, dtype):
    """The smallest value of a half type that is above a number."""
    x = torch.tensor(value, dtype=torch.float64).to(dtype)
    if x.double() <= value:
        x = torch.nextafter(x, torch.full_like(x, math.inf))
    return x.item()


@pytest.mark.parametrize('name', ['fp16', 'bf16'])
def test_limits_of_half_types_on_the_page(committed, name):
    """Against where the exact sigmoid is rounded to 1, or to the bound."""
    bits, dtype = BITS[name], DTYPES[name]
    becomes_one = next_value(math.log(2.0**(bits + 1) - 1), dtype)
    reaches_bound = next_value(math.log(2.0**bits - 1), dtype)
    below = next_value(math.log(1e4 - 1), dtype)
    row, = (row for row in find_table(committed, "ours, `grad='zero'`")
            if row['dtype'] == name)
    for column, above in (('mmdet3d', becomes_one),
                          ("ours, `grad='zero'`", reaches_bound)):
        assert row[column] == f'{-below:.5g}, {above:.5g}'
    stock, composed, clipped, exact = (
        row for row in find_table(committed, 'a missed peak learns until')
        if row['dtype'] == name)
    column = 'a wrong background cell learns until'
    last = torch.tensor(becomes_one, dtype=dtype).view(torch.int16) - 1
    last = last.view(dtype).item()
    assert stock[column] == (f'{last:.5g}, then ' +
                             ('NaN' if name == 'fp16' else '0'))
    assert float(composed[column].split(',')[0]) < reaches_bound
    assert 9 < float(clipped[column].split(',')[0]) < below


def test_claims_of_the_examples(committed):
    """The failures that the page opens with."""
    cells = find_table(committed, 'cell', 'logit')
    stock = {(row['dtype'], row['cell']): row['mmdet3d, mmdet']
             for row in cells}
    assert stock == {
        ('fp16', 'background'): 'loss inf, gradient NaN',
        ('fp16', 'peak'): 'loss NaN, gradient NaN',
        ('bf16', 'background'): 'loss 27.62, gradient 0',
        ('fp32', 'background'): 'loss 9.208, gradient 0',
        ('fp32', 'peak'): 'loss 9.208, gradient 0',
    }
    for row in cells:
        x = float(row['logit'])
        wrong = x if row['cell'] == 'background' else -x
        q = 1 / (1 + math.exp(-wrong))
        loss = q**2 * (wrong + math.log1p(math.exp(-wrong)))
        value = float(re.match(r'loss (\S+),', row['ours, `clip=None`'])[1])
        assert value == pytest.approx(loss, rel=1e-3)
    for row in find_table(committed, 'constant 8 x 8 map of'):
        value, gradient = row['ours'].split(', gradient ')
        assert value == row['constant 8 x 8 map of']
        assert float(gradient) == pytest.approx(1 / 64, rel=1e-3)
        assert float(row['textbook'].split(',')[0]) != pytest.approx(
            float(value), rel=0.5)


def test_overflow_of_the_textbook_on_the_page(committed):
    """Against the p-th root of the largest value."""
    for row in find_table(committed, 'textbook is right'):
        p = float(row['`p`'])
        if row['dtype'] == 'bf16' or not 1 < p < math.inf:
            continue
        largest = torch.finfo(DTYPES[row['dtype']]).max
        # The wider types lose another factor of 64 to the sum.
        lowest = (largest / 64)**(1 / p)
        end = float(row['textbook is right'].split(' to ')[1])
        assert 0.99 * lowest < end < 1.01 * largest**(1 / p)


@pytest.mark.parametrize('name', DTYPES)
def test_edge_finds_neighbours(report, name):
    dtype = DTYPES[name]
    three = torch.tensor(3.0, dtype=dtype)
    before = torch.nextafter(three, torch.zeros_like(three)).item()
    assert report.edge(lambda x: x >= 3, dtype) == (before, 3.0)
    assert report.edge(lambda x: x <= -3, dtype, sign=-1) == (-before, -3.0)
    after = torch.nextafter(three, torch.full_like(three, 9)).item()
    found = report.edge(lambda x: x <= 3, dtype, start=100.0, stop=0.0)
    assert found == (after, 3.0)
    assert report.edge(lambda x: x < 0, dtype) is None
    assert report.edge(lambda x: x >= 0, dtype) == (0.0, 0.0)


def test_sweep_of_a_half_type_is_complete(report):
    for dtype in (torch.float16, torch.bfloat16):
        found = torch.cat(list(report.sweep(dtype, 1024)))
        every = torch.arange(-2**15, 2**15).to(torch.int16).view(dtype)
        assert found.isfinite().all()
        assert len(found) == every.isfinite().sum()
        assert len(found.view(torch.int16).unique()) == len(found)


@pytest.mark.parametrize('name', ['fp32', 'fp64'])
def test_sweep_of_a_wide_type(report, name):
    dtype = DTYPES[name]
    found = torch.cat(list(report.sweep(dtype, 4096)))
    info = torch.finfo(dtype)
    assert found.isfinite().all() and len(found) > 4096
    assert found.max() == info.max and found.min() == -info.max
    assert (found == 0).any() and (found.abs() == info.smallest_normal).any()
    kink = math.log(1 / 1e-4 - 1)
    near = found[(found - kink).abs() < 4 * kink * info.eps]
    assert len(near.unique()) >= 4


def test_worst_counts_units_in_the_last_place(report):
    """Against numpy's spacing."""
    for name, kind in (('fp16', np.float16), ('fp32', np.float32)):
        for value in (1.0, 1.5, 3e-5, 1e-7, 1000.0):
            exact = float(kind(value))
            unit = float(np.spacing(kind(value)))
            worst = report.Worst()
            worst.add(
                torch.tensor([exact], dtype=DTYPES[name]),
                np.array([exact + 0.25 * unit]))
            assert worst.ulp == pytest.approx(0.25) and worst.tried == 1
    worst = report.Worst()
    worst.add(torch.tensor([1.0, math.nan]), np.array([1.5, 1.0]))
    assert worst.ulp == worst.relative == math.inf
    worst = report.Worst()
    worst.add(torch.tensor([1.0]), np.array([1.25]), np.array([10.0]))
    assert worst.relative == pytest.approx(0.025)


REFERENCE_TYPES = [np.float64, np.longdouble]


def assert_equals(array, expected, digits):
    """Compare one element; mpmath cannot read a long double."""
    high = float(array)
    value = mpmath.mpf(high) + mpmath.mpf(float(array - type(array)(high)))
    assert mpmath.almosteq(value, expected, rel_eps=digits, abs_eps=0)


@pytest.mark.parametrize('kind', REFERENCE_TYPES)
@pytest.mark.parametrize('clip', [None, 1e-4])
@pytest.mark.parametrize('target', [0.0, 0.5, 1.0])
def test_focal_reference(report, kind, clip, target):
    """Against mmdet's formula in 60 digits, derived numerically."""
    digits = 100 * float(np.finfo(kind).eps)
    bounds = clip and (clip, 1 - clip)

    def formula(x):
        q = 1 / (1 + mpmath.exp(-x))
        guard = 0
        if clip:
            low, high = map(mpmath.mpf, bounds)
            q = min(max(q, low), high)
            guard = mpmath.mpf(1e-12)
        if target == 1:
            return -(1 - q)**2 * mpmath.log(q + guard)
        return -(1 - target)**4 * q**2 * mpmath.log(1 - q + guard)

    with mpmath.workdps(60):
        for x in (-30.0, -9.5, -2.0, 0.0, 0.3, 5.0, 9.0, 20.0):
            loss, gradient = report.focal_reference(
                np.array([x], kind), kind(target), bounds)
            assert_equals(loss[0], formula(mpmath.mpf(x)), digits)
            assert_equals(gradient[0], mpmath.diff(formula, x), digits)


@pytest.mark.parametrize('kind', REFERENCE_TYPES)
@pytest.mark.parametrize('p', [1.0, 3.0, 6.5, 20.0])
def test_mean_reference(report, kind, p):
    values = [1e-6, 0.3, 2.0, 2.5, 1e20]
    digits = 200 * float(np.finfo(kind).eps)

    def formula(*c_and_p):
        *c, power = c_and_p
        return (sum(v**power for v in c) / len(c))**(1 / power)

    with mpmath.workdps(300):
        c = np.array([values], kind)
        y, dx, dp, scale = report.mean_reference(c, p)
        point = (*map(mpmath.mpf, values), mpmath.mpf(p))
        assert_equals(y[0], formula(*point), digits)
        assert_equals(scale[0], formula(*point) / p, digits)
        for i in (2, 4, 5):
            order = tuple(int(i == j) for j in range(6))
            derivative = mpmath.diff(formula, point, order)
            assert_equals(dx[0, i] if i < 5 else dp[0], derivative, digits)


def test_stock_forms_are_the_originals():
    """Bit for bit, with their gradients."""
    pytest.importorskip('mmdet3d')
    import stock_forms
    from mmdet.models.losses import GaussianFocalLoss
    from mmdet3d.models.utils import clip_sigmoid
    loss = GaussianFocalLoss(reduction='none')
    for dtype in DTYPES.values():
        if dtype.itemsize == 2:
            x = torch.arange(-2**15, 2**15).to(torch.int16).view(dtype)
        else:
            x = (20 * torch.randn(10000)).to(dtype)
        t = torch.rand(len(x)).round(decimals=1)
        results = []
        for activate, criterion in (
            (lambda x: clip_sigmoid(x.clone()), loss),
            (stock_forms.clip_sigmoid, stock_forms.gaussian_focal_loss)):
            leaf = x.clone().requires_grad_()
            y = activate(leaf)
            value = criterion(y, t)
            value.sum().backward()
            results.append((y.detach(), value.detach(), leaf.grad))
        for expected, actual in zip(*results):
            torch.testing.assert_close(
                actual, expected, rtol=0, atol=0, equal_nan=True)


def test_textbook_gem():
    import stock_forms
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64) - 0.2
    c = np.maximum(x.numpy(), 1e-6)
    expected = np.mean(c**6.5, axis=(2, 3), keepdims=True)**(1 / 6.5)
    np.testing.assert_allclose(stock_forms.gem(x, 6.5), expected, rtol=1e-12)


def test_plot_curves(tmp_path):
    name = 'curves_generalized_mean.png'
    result = run('plot_curves.py', '--out-dir', tmp_path / 'new', '--only',
                 name)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(tmp_path / 'new' / name)]
    assert [path.name for path in (tmp_path / 'new').iterdir()] == [name]
    picture = matplotlib.image.imread(tmp_path / 'new' / name)
    assert picture.shape[:2] == PICTURES[name]
    # Few colours, but the curves keep theirs.
    for color in ((0.15, 0.39, 0.92), (0.82, 0.21, 0.17)):
        assert (np.abs(picture[..., :3] - color).max(-1) < 0.1).any()


def test_committed_pictures(curves, committed):
    assert set(curves.PICTURES) == set(PICTURES)
    for name, shape in PICTURES.items():
        path = REPOSITORY / 'docs/images' / name
        assert f'(images/{name})' in committed
        assert path.stat().st_size < 150_000
        assert matplotlib.image.imread(path).shape[:2] == shape


def lines_of(ax):
    """The curves of axes by their labels, without markers."""
    return {
        line.get_label(): line.get_xydata()
        for line in ax.lines if not line.get_label().startswith('_')
    }


def test_curves_of_the_sigmoid(curves):
    axes = np.reshape(curves.draw_sigmoids().axes, (2, 3))
    assert [ax.get_title(loc='left') for ax in axes[0]] == [
        'float32', 'float16', 'bfloat16'
    ]
    stock, ours = "mmdet3d's clip_sigmoid", "ClipSigmoid(grad='zero')"
    for ax, limit in zip(axes[0], (None, 8.32, 6.25)):
        lines = lines_of(ax)
        x, y = lines['sigmoid'].T
        inner = np.abs(x) < 4
        np.testing.assert_allclose(y[inner], x[inner], atol=0.3)
        assert lines[ours][:, 1].max() < curves.ONE_AT
        x, y = lines[stock].T
        assert (y == curves.ONE_AT).any() == (limit is not None)
        if limit:
            assert x[y == curves.ONE_AT].min() == pytest.approx(limit, abs=.04)
    for ax in axes[1]:
        through, zero = (
            line.get_xydata() for line in (ax.lines[1], ax.lines[2]))
        x, y = through.T
        np.testing.assert_allclose(
            y, 0.25 / np.cosh(x / 2)**2, rtol=5e-3)
        x, y = zero.T
        assert (y[np.abs(x) > 9.3] == curves.ZERO_AT).all()
        assert (y[np.abs(x) < 5.4] > curves.ZERO_AT).all()


def test_curves_of_the_focal_loss(curves):
    axes = np.reshape(curves.draw_focal_losses().axes, (4, 3))
    for ax in axes.T.flat:
        lines = lines_of(ax)
        assert list(lines)[:2] == ['ours, clip=None', 'ours, clip=1e-4']
        assert all(np.isfinite(lines[name]).all() for name in list(lines)[:2])
    for row, wrong, slope in ((0, 1, 1), (2, -1, -1)):
        for loss_ax, gradient_ax in zip(axes[row], axes[row + 1]):
            x, loss = lines_of(loss_ax)['ours, clip=None'].T
            gradient = lines_of(gradient_ax)['ours, clip=None'][:, 1]
            far = wrong * x > 9
            np.testing.assert_allclose(loss[far], np.abs(x[far]), rtol=2e-3)
            np.testing.assert_allclose(gradient[far], slope, rtol=1e-2)
            clipped = lines_of(gradient_ax)['ours, clip=1e-4'][:, 1]
            assert (clipped[wrong * x > 9.3] == 0).all()
    # The texts say where mmdet's form breaks in float16.
    texts = [[text.get_text() for text in ax.texts] for ax in axes[:, 1]]
    assert texts == [['inf from\n8.32'], *[['NaN from\n8.32']] * 3]
    assert [text.get_text() for text in axes[0, 2].texts] == ['27.6 ↑']


def test_curves_of_the_mean(curves):
    for ax in curves.draw_means().axes:
        mean, maximum = (float(line.get_ydata()[0]) for line in ax.lines[:2])
        lines = lines_of(ax)
        for name in ('ours, float64', 'ours, float16'):
            p, y = lines[name].T
            assert p[0] <= 1 < 100 <= p[-1] + 1e-9
            # As many roundings as float16 needs.
            assert (np.diff(y) >= 0).all()
            assert np.interp(1.0, p, y) == pytest.approx(mean, rel=2e-3)
            # The maximum alone carries n**(-1/p).
            assert maximum * 64**(-1 / 100) * 0.999 < y[-1] < maximum
        text, = (text.get_text() for text in ax.texts if 'from' in
                 text.get_text())
        p, y = lines['textbook GeM, float16'].T
        lost = float(text.split('p = ')[1])
        assert np.isfinite(y[p < lost - 0.1]).all()
        after = y[p > lost + 0.1]
        assert (after == 0).all() or np.isinf(after).all()
