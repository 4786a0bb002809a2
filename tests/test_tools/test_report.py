"""The page of numerics, by the tool that writes it."""
import math
import re
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / 'docs/numerics.md'
DTYPES = dict(fp16=torch.float16, bf16=torch.bfloat16, fp32=torch.float32,
              fp64=torch.float64)
BITS = dict(fp16=11, bf16=8, fp32=24, fp64=53)

pytestmark = pytest.mark.usefixtures('tools_on_path')


@pytest.fixture(scope='module')
def values(tools_on_path):
    from pages import values
    return values


@pytest.fixture(scope='module')
def references(tools_on_path):
    from pages import references
    return references


def read_tables(page):
    """The tables of a page, in order, as lists of rows by column."""
    tables = []
    for block in re.findall(r'(?:^\|.*\n)+', page, re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip('|').split(
            ' | ')] for line in block.splitlines())
        assert all(len(row) == len(header) for row in rows)
        tables.append([dict(zip(header, row)) for row in rows])
    return tables


@pytest.fixture(scope='module')
def committed():
    return read_tables(PAGE.read_text())


def find_table(tables, *columns):
    return next(table for table in tables if set(columns) <= set(table[0]))


@pytest.mark.slow
def test_the_committed_page_holds(committed, tmp_path, run_here):
    """Limits are the same; small sweeps find no larger errors."""
    code, printed = run_here(
        'analysis_tools/report.py', 'numerics', '--values', 1024, '--out',
        'new/numerics.md', cwd=tmp_path)
    assert code == 0, printed.err
    assert printed.out == 'new/numerics.md\n'
    measured = read_tables((tmp_path / 'new/numerics.md').read_text())
    checked = 0
    for ours, theirs in zip(measured, committed, strict=True):
        for row, expected in zip(ours, theirs, strict=True):
            for column, text in row.items():
                if 'error' not in column:
                    assert text == expected[column]
                    continue
                # Another processor may round differently.
                limit = float(expected[column])
                slack = 0.5 if 'ulp' in column else 0.3 * limit
                assert float(text) <= limit + slack, (row, column)
                checked += 1
    assert checked > 80


def test_usage_errors(tmp_path, run_here):
    code, printed = run_here('analysis_tools/report.py', 'numerics',
                             '--values', 10, cwd=tmp_path)
    assert code == 2
    assert '--values must be at least 1024, got 10' in printed.err


# -- What the page says ------------------------------------------------------


def test_bounds(committed):
    """Against the format of the dtype."""
    for row in find_table(committed, 'bounds, ours'):
        gap = 2.0**-BITS[row['dtype']]
        assert float(row['largest value below 1'].split()[-1]) == (
            pytest.approx(gap, rel=1e-5))
        half = row['dtype'] in ('fp16', 'bf16')
        assert (row['`1 - 1e-4` becomes'] == 'exactly 1') == half
        assert row['bounds, mmdet3d'].endswith('exactly 1') == half
        low, high = row['bounds, ours'].split(', 1 - ')
        assert float(high) == pytest.approx(gap if half else 1e-4, rel=2e-4)
        assert float(low) == pytest.approx(1e-4, rel=2e-3)


def next_value(value, dtype):
    """The smallest value of a dtype that is above a number."""
    x = torch.tensor(value, dtype=torch.float64).to(dtype)
    if x.double() <= value:
        x = torch.nextafter(x, torch.full_like(x, math.inf))
    return x.item()


@pytest.mark.parametrize('name', ['fp16', 'bf16'])
def test_limits_in_half_precision(committed, name):
    """Against where the exact sigmoid is rounded to 1, or to the bound."""
    bits, dtype = BITS[name], DTYPES[name]
    becomes_one = next_value(math.log(2.0**(bits + 1) - 1), dtype)
    reaches_bound = next_value(math.log(2.0**bits - 1), dtype)
    below = next_value(math.log(1e4 - 1), dtype)
    row, = (row for row in find_table(committed, "ours, `grad='zero'`")
            if row['dtype'] == name)
    assert row['mmdet3d'] == f'{-below:.5g}, {becomes_one:.5g}'
    assert row["ours, `grad='zero'`"] == f'{-below:.5g}, {reaches_bound:.5g}'
    _, composed, clipped, exact = (
        row['a wrong background cell learns until']
        for row in find_table(committed, 'a missed peak learns until')
        if row['dtype'] == name)
    assert float(composed.split(',')[0]) < reaches_bound
    assert 9 < float(clipped.split(',')[0]) < below
    assert exact == 'always'


def test_examples(committed):
    """The failures that the page opens with, and the exact loss."""
    cells = find_table(committed, 'cell', 'logit')
    assert [row['mmdet3d, mmdet'] for row in cells] == [
        'loss inf, gradient NaN', 'loss NaN, gradient NaN',
        'loss 27.62, gradient 0', 'loss 9.208, gradient 0',
        'loss 9.208, gradient 0']
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


def test_overflow_of_the_textbook(committed):
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


# -- How it is measured ------------------------------------------------------


@pytest.mark.parametrize('name', DTYPES)
def test_edge_finds_neighbours(values, name):
    dtype = DTYPES[name]
    three = torch.tensor(3.0, dtype=dtype)
    before = torch.nextafter(three, torch.zeros_like(three)).item()
    assert values.edge(lambda x: x >= 3, dtype) == (before, 3.0)
    assert values.edge(lambda x: x <= -3, dtype, sign=-1) == (-before, -3.0)
    after = torch.nextafter(three, torch.full_like(three, 9)).item()
    found = values.edge(lambda x: x <= 3, dtype, start=100.0, stop=0.0)
    assert found == (after, 3.0)
    assert values.edge(lambda x: x < 0, dtype) is None
    assert values.edge(lambda x: x >= 0, dtype) == (0.0, 0.0)


def test_sweeps(values):
    for dtype in (torch.float16, torch.bfloat16):
        found = torch.cat(list(values.sweep(dtype, 1024)))
        every = torch.arange(-2**15, 2**15).to(torch.int16).view(dtype)
        assert found.isfinite().all()
        assert len(found.view(torch.int16).unique()) == (
            len(found)) == every.isfinite().sum()
    found = torch.cat(list(values.sweep(torch.float32, 4096)))
    info = torch.finfo(torch.float32)
    assert found.isfinite().all() and len(found) > 4096
    assert found.max() == info.max and found.min() == -info.max
    kink = math.log(1 / 1e-4 - 1)
    near = found[(found - kink).abs() < 4 * kink * info.eps]
    assert len(near.unique()) >= 4


def test_worst_counts_units_in_the_last_place(references):
    """Against numpy's spacing."""
    for name, kind in (('fp16', np.float16), ('fp32', np.float32)):
        for value in (1.0, 1.5, 3e-5, 1e-7, 1000.0):
            exact = float(kind(value))
            unit = float(np.spacing(kind(value)))
            worst = references.Worst()
            worst.add(torch.tensor([exact], dtype=DTYPES[name]),
                      np.array([exact + 0.25 * unit]))
            assert worst.ulp == pytest.approx(0.25)
    worst = references.Worst()
    worst.add(torch.tensor([1.0, math.nan]), np.array([1.5, 1.0]))
    assert worst.ulp == worst.relative == math.inf
    worst = references.Worst()
    worst.add(torch.tensor([1.0]), np.array([1.25]), np.array([10.0]))
    assert worst.relative == pytest.approx(0.025)


@pytest.mark.parametrize('clip', [None, 1e-4])
@pytest.mark.parametrize('target', [0.0, 0.5, 1.0])
def test_focal_reference(references, clip, target):
    """Against mmdet's formula in 60 digits, derived numerically."""
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
            loss, gradient = references.focal_reference(
                np.array([x]), target, bounds)
            assert loss[0] == pytest.approx(
                float(formula(mpmath.mpf(x))), rel=2e-14, abs=0)
            assert gradient[0] == pytest.approx(
                float(mpmath.diff(formula, x)), rel=2e-14, abs=0)


@pytest.mark.parametrize('p', [1.0, 3.0, 6.5, 20.0])
def test_mean_reference(references, p):
    values = [1e-6, 0.3, 2.0, 2.5, 1e20]

    def formula(*c_and_p):
        *c, power = c_and_p
        return (sum(v**power for v in c) / len(c))**(1 / power)

    y, dx, dp, scale = references.mean_reference(np.array([values]), p)
    found = dict.fromkeys(range(6), 0) | {2: dx[0, 2], 4: dx[0, 4], 5: dp[0]}
    with mpmath.workdps(300):
        point = (*map(mpmath.mpf, values), mpmath.mpf(p))
        assert y[0] == pytest.approx(float(formula(*point)), rel=4e-14)
        assert scale[0] == y[0] / p
        for i in (2, 4, 5):
            order = tuple(int(i == j) for j in range(6))
            assert found[i] == pytest.approx(float(
                mpmath.diff(formula, point, order)), rel=4e-14, abs=0)
