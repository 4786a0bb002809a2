"""docs/performance.md, from the results of ``benchmark.py``."""
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from sigplug.errors import UserError

from . import DOCS, markdown, write_page

PAGE = DOCS / 'performance.md'
RESULTS = Path('work_dirs/bench')
UNKNOWN = '*Not measured yet.*'
STAGES = ('voxelise', 'encoder', 'scatter', 'backbone', 'neck', 'head',
          'targets', 'loss', 'backward', 'optimizer', 'other', 'iteration')
# What a form is measured by, and its column.
PASSES = dict(forward='forward', backward='backward', both='both',
              device='GPU alone')

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
    passes = [name for name in PASSES if any(name in row for row in rows)]
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
    return markdown(['form', *(f'{PASSES[name]}, ms' for name in passes),
                     'quartiles, ms', 'times stock', 'extra memory, MiB'],
                    cells)


def headline_rows(results: list[Record]) -> list[list[str]]:
    """Return the measured ratios beside their goals."""
    from benchmarks.operations import CASES
    measured = {case['case']: {row['form']: total(row)[1]
                               for row in case['rows'] if total(row)}
                for case in results}
    rows = []
    for case in CASES:
        medians = measured.get(case.name, {})
        for goal in case.goals:
            if not {goal.form, goal.against} <= medians.keys():
                continue
            text, against = '-', f'times as fast as {goal.against}'
            ratio = medians[goal.against] / medians[goal.form]
            if goal.at_least is not None:
                text = f'{goal.at_least:g} or more'
            if goal.at_most is not None:
                text = f'{goal.at_most:g} or less'
                against = f'times the cost of {goal.against}'
                ratio = 1 / ratio
            rows.append([f'{case.name}: {goal.form}', against, sig3(ratio),
                         text])
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


def write(results: Path = RESULTS, page: Path = PAGE) -> Path:
    """Write the page, which names the parts that were not measured.

    Args:
        results (Path): Folder of the results.
        page (Path): The file.

    Raises:
        UserError: The folder has no results.
    """
    texts = defaultdict(lambda: UNKNOWN)
    for name, make in TEXTS.items():
        path = results / f'{name}.json'
        if path.is_file():
            texts |= make(json.loads(path.read_text()))
    if not texts:
        raise UserError(f'no results in {results}: run benchmark.py first')
    return write_page('performance', texts, page)
