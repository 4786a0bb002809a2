"""The pages of performance, from the results of ``benchmark.py``."""
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from plots.speedups import COMPILED, OURS, draw_speedups

from sigplug.errors import UserError
from sigplug.visualization import save_png

from . import DOCS, markdown, write_page

PAGE = DOCS / 'performance.md'
RESULTS = Path('work_dirs/bench')
UNKNOWN = '*Not measured yet.*'
# Of the results: operations, iterations and predictions.
PARTS = ('ops', 'train', 'frame')
STAGES = ('voxelise', 'encoder', 'middle encoder', 'backbone', 'neck', 'head',
          'targets', 'loss', 'decode + NMS', 'backward', 'optimizer', 'other',
          'total')
# What a form is measured by, and its column.
PASSES = dict(forward='forward', backward='backward', both='both',
              device='GPU alone', host='host, forward')

Record = dict[str, Any]


def sig3(value: float | None) -> str:
    """Return three significant digits, or a dash for no number."""
    if value is None:
        return '-'
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f'{value:.{max(digits, 0)}f}'


def ms(seconds: float | None) -> str:
    return sig3(None if seconds is None else 1e3 * seconds)


def describe(run: Record) -> str:
    machine = run['machine']
    where = f"{machine['cpu']}, {machine['cores']} cores"
    if 'gpu' in machine:
        where = f"{machine['gpu']}, beside {where}"
    versions = ', '.join(
        f'{name} {text}' for name, text in run['versions'].items())
    kernels = ' and '.join(run['backends']) or 'none'
    return (f"{where}, {machine['system']}; {run['threads']} threads; "
            f'{versions}; kernels of sigplug: {kernels}. Commit '
            f"{run['commit']}, {run['date']}; medians of at most "
            f"{run['repeat']} repetitions, by\n\n"
            f"```bash\n{run['command']}\n```")


def total(row: Record) -> list[float] | None:
    """Return the quartiles of forward and backward together."""
    return row.get('both') or row.get('forward')


def case_table(case: Record) -> str:
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


def operation_table(results: list[Record]) -> str:
    header = ['operation', 'ms', 'times stock', 'times compiled']
    rows = []
    for case in results:
        forms = {row['form']: row for row in case['rows']}
        mine = forms.pop(OURS, {})
        others = next(iter(forms.values()), {}), forms.get(COMPILED, {})
        rows.append(row := [case['case']])
        for find in (total, lambda row: row.get('device')):
            own, *theirs = (times and times[1]
                            for times in map(find, (mine, *others)))
            row += [ms(own), *(sig3(time / own if own and time else None)
                               for time in theirs)]
        host = mine.get('host')
        row.append(sig3(host and 1e6 * host[1]))
    if any('host' in row for case in results for row in case['rows']):
        header += ['GPU alone, ms', *header[2:], 'host, µs']
    return markdown(header, [row[:len(header)] for row in rows])


def stage_table(case: Record) -> str:
    rows = [row for row in case['rows'] if 'stages' in row]
    cells = [[name, *(ms(row['stages'].get(name)) for row in rows)]
             for name in STAGES if any(name in row['stages'] for row in rows)]
    for text, i in (('first quartile', 0), ('third quartile', 2)):
        cells.append([text, *(ms(row['quartiles'][i]) for row in rows)])
    cells.append(['times stock', *map(sig3, times_stock(rows))])
    cells.append(['extra memory, MiB', *(
        sig3(row['extra_bytes'] / 2**20) for row in rows)])
    for name, text in (('loss', 'first loss'), ('boxes', 'boxes')):
        if any(name in row for row in rows):
            cells.append([text, *(f'{row[name]:.6g}' for row in rows)])
    notes = [f"- `{row['config']}` {row['error']}" for row in case['rows']
             if 'error' in row]
    if any(row['waits'] for row in rows):
        cells.append(['waits for the GPU', *(
            str(sum(row['waits'].values())) for row in rows)])
        # Of more, a reader wants no more than the number.
        notes += [f"- `{row['config']}` waits at " + ', '.join(
            f'`{place}`' for place in row['waits'])
            for row in rows if 0 < sum(row['waits'].values()) <= 8]
    table = markdown(['stage, ms', *(row['config'] for row in rows)], cells)
    return '\n'.join([table, '', *notes]).strip()


def times_stock(rows: list[Record]) -> list[float | None]:
    """Return how many times as fast as the stock model each is."""
    totals = [row['stages']['total'] if 'stages' in row else None
              for row in rows]
    stock = totals[0] if rows and rows[0]['config'] == 'stock' else None
    return [stock / own if stock and own else None for own in totals]


def summary_rows(results: list[Record]) -> list[list[str]]:
    """Return a row for each case: milliseconds, and times stock."""
    return [[case['case'], *(
        f"{ms(row['stages']['total'])} ({sig3(times)})" if 'stages' in row
        else 'failed'
        for row, times in zip(case['rows'], times_stock(case['rows'])))]
        for case in results if case['rows']]


def describe_case(case: Record) -> str:
    if 'error' in case:
        table = f"*{case['error']}*"
    else:
        table = (case_table if 'form' in case['rows'][0] else
                 stage_table)(case)
    return f"### {case['case']}\n\n{table}"


def make_texts(parts: dict[str, Record]) -> dict[str, str]:
    texts = dict(runs='\n\n'.join(map(describe, parts.values())))
    if 'ops' in parts:
        results = parts['ops']['results']
        texts |= dict(operations=operation_table(results),
                      cases='\n\n'.join(map(describe_case, results)))
    models = [case for name in ('train', 'frame') if name in parts
              for case in parts[name]['results']]
    if models:
        kinds = max((case['rows'] for case in models), key=len)
        texts |= dict(
            models=markdown(
                ['ms (times stock)', *(row['config'] for row in kinds)],
                summary_rows(models)),
            stages='\n\n'.join(describe_case(case) for case in models
                                if case['case'].endswith('fp32')))
    return texts


def read(results: Path, device: str) -> dict[str, Record]:
    path = results / f'{device}.json'
    parts = json.loads(path.read_text()) if path.is_file() else {}
    return {name: parts[name] for name in PARTS if name in parts}


def write(results: Path = RESULTS, page: Path = PAGE) -> list[Path]:
    """Write a page for each device, which names what was not measured.

    ``page`` is that about the CPU, whose picture goes into a folder ``images``
    beside it; that about a GPU has ``_gpu`` in its name.
    """
    written = []
    for device, name in (('cpu', 'performance'), ('cuda', 'performance_gpu')):
        if parts := read(results, device):
            texts = defaultdict(lambda: UNKNOWN, make_texts(parts))
            if device == 'cpu' and 'ops' in parts:
                run = parts['ops']
                save_png(draw_speedups(
                    run['results'],
                    f"{run['machine']['cpu']}, {run['threads']} threads"),
                    page.parent / 'images/speedups.png')
            written.append(write_page(name, texts, page.with_stem(
                name.replace('performance', page.stem))))
    if not written:
        raise UserError(f'no results in {results}: run benchmark.py first')
    return written
