"""docs/performance.md, from the results of ``benchmark.py``."""
import json
import math
from collections import defaultdict
from pathlib import Path
from string import Template
from typing import Any

from . import markdown

TEMPLATE = Path(__file__).with_suffix('.md')
PAGE = Path(__file__).resolve().parents[3] / 'docs/performance.md'
RESULTS = Path('work_dirs/bench')
UNKNOWN = '*Not measured yet.*'
STAGES = ('voxelise', 'encoder', 'scatter', 'backbone', 'neck', 'head',
          'targets', 'loss', 'backward', 'optimizer', 'other', 'iteration')

Record = dict[str, Any]


def sig3(value: float | None) -> str:
    """Return three significant digits, or a dash for no number."""
    if value is None or not math.isfinite(value):
        return '-'
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f'{value:.{max(digits, 0)}f}'


def ms(seconds: float | None) -> str:
    """Return seconds as milliseconds."""
    return sig3(None if seconds is None else 1e3 * seconds)


def describe(run: Record) -> str:
    """Return machine, versions, settings and command of a run."""
    machine = run['machine']
    where = f"{machine['cpu']}, {machine['cores']} cores"
    if 'gpu' in machine:
        where = f"{machine['gpu']}, beside {where}"
    versions = ', '.join(
        f'{name} {text}' for name, text in run['versions'].items())
    kernels = ' and '.join(run['backends']) or 'none'
    return (f"{where}, {machine['system']}; {run['threads']} threads; "
            f'{versions}; kernels of sigplug: {kernels}. Medians of '
            f"{run['repeat']} repetitions, by\n\n"
            f"```bash\n{run['command']}\n```")


def total(row: Record) -> list[float] | None:
    """Return the quartiles of forward and backward together."""
    return row.get('both') or row.get('forward')


def case_table(case: Record) -> str:
    """Return a table of all forms of a case."""
    rows = case['rows']
    stock = total(rows[0])
    has_backward = any('backward' in row for row in rows)
    passes = ('forward', 'backward', 'both')[:3 if has_backward else 1]
    cells = []
    for row in rows:
        name = row['form'] if row['same_function'] else f"*{row['form']}*"
        times = total(row)
        if times is None:
            cells.append([f"{name} ({row['status']})",
                          *['-'] * (len(passes) + 3)])
            continue
        cells.append([
            name, *(ms(row[key][1] if key in row else None)
                    for key in passes),
            f'{ms(times[0])} to {ms(times[2])}',
            sig3(stock[1] / times[1] if stock else None),
            sig3(row['extra_bytes'] / 2**20)
        ])
    return markdown(['form', *(f'{name}, ms' for name in passes),
                     'quartiles, ms', 'times stock', 'extra memory, MiB'],
                    cells)


def headline_rows(results: list[Record]) -> list[list[str]]:
    """Return the measured ratios beside their goals."""
    from benchmarks.operations import HEADLINES
    medians = {(case['case'], row['form']): total(row)[1]
               for case in results for row in case['rows'] if total(row)}
    rows = []
    for line in HEADLINES:
        mine, other = (medians.get((line.case, name))
                       for name in (line.form, line.against))
        if mine is None or other is None:
            continue
        goal, ratio = '-', other / mine
        against = f'times as fast as {line.against}'
        if line.at_least is not None:
            goal = f'{line.at_least:g} or more'
        if line.at_most is not None:
            goal, ratio = f'{line.at_most:g} or less', mine / other
            against = f'times the cost of {line.against}'
        rows.append([f'{line.case}: {line.form}', against, sig3(ratio), goal])
    return rows


def ops_texts(run: Record) -> dict[str, str]:
    """Return the parts of the page about the operations."""
    return dict(
        headlines=markdown(['what', 'against', 'measured', 'meant to be'],
                           headline_rows(run['results'])),
        ops_run=describe(run),
        cases='\n\n'.join(f"### {case['case']}\n\n{case_table(case)}"
                          for case in run['results']))


def training_table(group: Record) -> str:
    """Return a table of the stages of some models."""
    rows, stages = group['rows'], [row['stages'] for row in group['rows']]
    cells = [[name, *(ms(part.get(name)) for part in stages)]
             for name in STAGES]
    for text, i in (('first quartile of an iteration', 0),
                    ('third quartile', 2)):
        cells.append([text, *(ms(row['quartiles'][i]) for row in rows)])
    cells.append(['times stock', *(
        sig3(stages[0]['iteration'] / part['iteration'])
        for part in stages)])
    return markdown(['stage, ms', *(row['config'] for row in rows)], cells)


def training_texts(run: Record) -> dict[str, str]:
    """Return the parts of the page about a training."""
    return dict(
        training_run=describe(run),
        training='\n\n'.join(
            f"### {group['title']}\n\n{group['input']}\n\n"
            f'{training_table(group)}' for group in run['results']))


TEXTS = dict(ops=ops_texts, train=training_texts)


def write_page(results: Path = RESULTS, page: Path = PAGE) -> Path:
    """Write the page, which names the parts that were not measured.

    Args:
        results (Path): Folder of the results.
        page (Path): The file.

    Raises:
        SystemExit: The folder has no results.
    """
    texts = defaultdict(lambda: UNKNOWN)
    for name, make in TEXTS.items():
        path = results / f'{name}.json'
        if path.is_file():
            texts |= make(json.loads(path.read_text()))
    if not texts:
        raise SystemExit(f'error: no results in {results}: run benchmark.py '
                         'first')
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(Template(TEMPLATE.read_text()).substitute(texts))
    return page
