"""The page of numerics, by the tool that writes it."""
import math
import re
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / 'docs/numerics.md'
FP64 = torch.float64
DTYPES = dict(fp16=torch.float16, bf16=torch.bfloat16, fp32=torch.float32,
              fp64=FP64)

pytestmark = pytest.mark.usefixtures('tools_on_path')


@pytest.fixture(scope='module')
def measure(tools_on_path):
    from pages import measure
    return measure


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


# -- How it is measured ------------------------------------------------------


def test_sweep_of_all_values(measure):
    for dtype in (torch.float16, torch.bfloat16):
        found = torch.cat(list(measure.sweep(dtype, 1024)))
        every = torch.arange(-2**15, 2**15).to(torch.int16).view(dtype)
        assert found.isfinite().all()
        assert len(found.view(torch.int16).unique()) == (
            len(found)) == every.isfinite().sum()


@pytest.mark.parametrize('dtype', DTYPES.values())
def test_edge_is_between_neighbours(measure, dtype):
    """Upwards, downwards, among negative values, and nowhere."""
    third = torch.tensor(1 / 3, dtype=dtype)
    above = torch.nextafter(third, torch.tensor(1.0, dtype=dtype)).item()
    third = third.item()
    assert measure.edge(lambda x: x > third, dtype) == (third, above)
    assert measure.edge(lambda x: x <= third, dtype, 1.0, 0.0) == (
        above, third)
    assert measure.edge(lambda x: x < -third, dtype, sign=-1) == (
        -third, -above)
    assert measure.edge(lambda x: x < 0, dtype) is None


def test_worst_counts_units_in_the_last_place(measure):
    """Against numpy's spacing."""
    for name, kind in (('fp16', np.float16), ('fp32', np.float32)):
        for value in (1.0, 1.5, 3e-5, 1e-7, 1000.0):
            exact = float(kind(value))
            unit = float(np.spacing(kind(value)))
            worst = measure.Worst()
            worst.add(torch.tensor([exact], dtype=DTYPES[name]),
                      torch.tensor([exact + 0.25 * unit], dtype=FP64))
            assert worst.ulp == pytest.approx(0.25)
    for result in (math.nan, math.inf):
        worst = measure.Worst()
        worst.add(torch.tensor([1.0, result]),
                  torch.tensor([1.5, 1.0], dtype=FP64))
        assert worst.ulp == worst.relative == math.inf


# float32, whose relative errors are about 1e-7, is measured against the
# references.
ACCURACY = dict(rel=1e-11, abs=0)


@pytest.mark.parametrize('clip', [None, 1e-4])
@pytest.mark.parametrize('target', [0.0, 0.5, 1.0])
def test_focal_reference(measure, clip, target):
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

    points = [-30.0, -9.5, -2.0, 0.0, 0.3, 5.0, 9.0, 20.0]
    found = measure.with_gradient(
        lambda x: measure.focal_reference(x, target, bounds),
        torch.tensor(points, dtype=FP64))
    with mpmath.workdps(60):
        for x, loss, gradient in zip(points, *(t.tolist() for t in found)):
            assert loss == pytest.approx(
                float(formula(mpmath.mpf(x))), **ACCURACY)
            assert gradient == pytest.approx(
                float(mpmath.diff(formula, x)), **ACCURACY)


@pytest.mark.parametrize('p', [1.0, 6.5, 20.0])
def test_mean_reference(measure, p):
    values = [1e-6, 0.3, 2.0, 2.5, 1e20]

    def formula(*c_and_p):
        *c, power = c_and_p
        return (sum(v**power for v in c) / len(c))**(1 / power)

    x = torch.tensor([values], dtype=FP64)
    y, dx = measure.with_gradient(
        lambda x: measure.mean_reference(x, p, 1e-9), x)
    _, dp = measure.with_gradient(
        lambda p: measure.mean_reference(x, p, 1e-9),
        torch.tensor(p, dtype=FP64))
    with mpmath.workdps(300):
        point = (*map(mpmath.mpf, x[0].tolist()), mpmath.mpf(p))
        assert y.item() == pytest.approx(float(formula(*point)), **ACCURACY)
        for i, found in ((2, dx[0, 2]), (4, dx[0, 4]), (5, dp)):
            order = tuple(int(i == j) for j in range(6))
            assert found.item() == pytest.approx(float(
                mpmath.diff(formula, point, order)), **ACCURACY)
