"""The page of numerics, by the tool that writes it."""
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import measure

PAGE = Path(__file__).resolve().parents[2] / 'docs/numerics.md'
FP64 = torch.float64
DTYPES = dict(fp16=torch.float16, bf16=torch.bfloat16, fp32=torch.float32,
              fp64=FP64)


def read_tables(page):
    """The tables of a page, in order, as lists of rows by column."""
    tables = []
    for block in re.findall(r'(?:^\|.*\n)+', page, re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip('|').split(
            ' | ')] for line in block.splitlines())
        assert all(len(row) == len(header) for row in rows)
        tables.append([dict(zip(header, row)) for row in rows])
    return tables


@pytest.mark.slow
def test_the_committed_page_holds(tmp_path, succeed):
    """Limits are the same; small sweeps find no larger errors."""
    assert succeed(
        'analysis_tools/report.py', 'numerics', '--values', 1024, '--out',
        'new/numerics.md', cwd=tmp_path) == 'new/numerics.md\n'
    measured = read_tables((tmp_path / 'new/numerics.md').read_text())
    committed, checked = read_tables(PAGE.read_text()), 0
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


@pytest.mark.parametrize('dtype', DTYPES.values())
def test_edge_is_between_neighbours(dtype):
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


def test_worst_counts_units_in_the_last_place():
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
