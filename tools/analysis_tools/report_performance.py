"""Write docs/performance.md from the results of the benchmarks.

The results are those of benchmark_ops.py and benchmark_train.py, which also
take their tables and pictures from here; the prose of the page is in
performance_template.md.
"""
import argparse
import csv
import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from report_numerics import Table, markdown

from sigplug.visualization import save_png
from sigplug.visualization.figure import new_figure, style_axes

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE = Path(__file__).with_name('performance_template.md')
PAGE = REPOSITORY / 'docs/performance.md'
OPS, TRAINING = 'ops.json', 'training.json'
UNKNOWN = '*Not measured yet.*'
STOCK_COLOR = '#d1352b'
COLORS = {'torch.compile of stock': '#f59e0b', 'sigplug': '#2563eb',
          'sigplug eager': '#059669'}
# Labels of the axes of the pictures.
CURVES = {
    'loss': 'cells along each side of 4 x 10 heatmaps',
    'boxes': 'boxes drawn into ten maps of 128 x 128 cells',
    'p': 'p, over maps of 4 x 256 x 64 x 64',
}
STAGES = ('voxelise', 'encoder', 'scatter', 'backbone', 'neck', 'head',
          'targets', 'loss', 'backward', 'optimizer', 'other')

Record = dict[str, Any]


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--results', type=Path, default=Path('work_dirs/bench'),
        metavar='DIR', help='folder of the results (default: %(default)s)')
    parser.add_argument(
        '--out', type=Path, default=PAGE, metavar='FILE.md',
        help='the page; its pictures go to images beside it (default: '
        'docs/performance.md of this repository)')
    return parser.parse_args()


# Text --------------------------------------------------------------------


def sig3(value: float | None) -> str:
    """Three digits, or what stands for nothing."""
    if value is None or not math.isfinite(value):
        return '-'
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f'{value:.{max(digits, 0)}f}'


def milliseconds(seconds: float | None) -> str:
    return sig3(None if seconds is None else 1e3 * seconds)


def mebibytes(size: float | None) -> str:
    return sig3(None if size is None else size / 2**20)


def describe(run: Record) -> str:
    """Machine, versions, settings and command of a run."""
    machine = run['machine']
    where = f"{machine['cpu']}, {machine['cores']} cores"
    if 'gpu' in machine:
        where = f"{machine['gpu']}, beside {where}"
    versions = ', '.join(
        f'{name} {text}' for name, text in run['versions'].items())
    kernels = ' and '.join(run['backends']) or 'none'
    return (f"{where}, {machine['system']}; {run['threads']} threads; "
            f"{versions}; kernels of sigplug: {kernels}. Other processes "
            f"kept {sig3(run['load'])} cores busy at the start. Medians of "
            f"{run['repeat']} repetitions, by\n\n"
            f"```bash\n{run['command']}\n```")


def group(rows: list[Record], key: str) -> dict[Any, list[Record]]:
    """The rows by one of their values, in order."""
    groups = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def by_pass(rows: list[Record]) -> dict[str, Record]:
    return {row['pass']: row for row in rows}


def whole(rows: list[Record]) -> Record:
    """The row of forward and backward together, if there is a backward."""
    passes = by_pass(rows)
    return passes.get('both') or next(iter(passes.values()))


def form_name(row: Record) -> str:
    """Italics for another function, and why there is no time."""
    name = row['form'] if row['same_function'] else f"*{row['form']}*"
    return name if row['status'] == 'ok' else f"{name} ({row['status']})"


def case_table(rows: list[Record]) -> str:
    """All forms of one case."""
    forms = group(rows, 'form')
    has_backward = any('both' in by_pass(f) for f in forms.values())
    header = ['form', 'forward, ms']
    header += ['backward, ms', 'both, ms'] if has_backward else []
    header += ['quartiles, ms', 'times stock', 'share of the copy limit, %',
               'extra memory, MiB']
    table: Table = [header]
    for parts in forms.values():
        passes, total = by_pass(parts), whole(parts)
        names = ('forward', 'backward', 'both')[:3 if has_backward else 1]
        spread = '-' if total['median_s'] is None else ' to '.join(
            milliseconds(total[key]) for key in ('q1_s', 'q3_s'))
        share = total['share_of_limit']
        table.append([
            form_name(total),
            *(milliseconds(passes.get(name, {}).get('median_s'))
              for name in names), spread,
            sig3(total['ratio']),
            sig3(None if share is None else 100 * share),
            mebibytes(total['extra_bytes'])
        ])
    return markdown(table)


def curve_table(rows: list[Record]) -> str:
    """The times of all forms over what a curve runs over."""
    names = list(group(rows, 'form'))
    table: Table = [[rows[0]['curve'], *(f'{name}, ms' for name in names)]]
    for x, points in group(rows, 'x').items():
        forms = group(points, 'form')
        table.append([
            str(x), *(milliseconds(whole(forms[name])['median_s'])
                      if name in forms else '-' for name in names)
        ])
    return markdown(table)


def case_texts(rows: list[Record]) -> str:
    """The tables of the cases that are not points of a curve."""
    return '\n\n'.join(
        f'### {name}\n\n{case_table(part)}'
        for name, part in group(
            [row for row in rows if row['curve'] is None], 'case').items())


def headline_table(headlines: list[Record]) -> str:
    """The figures that the operations are meant to reach."""
    table: Table = [('what', 'against', 'measured', 'meant to be')]
    for line in headlines:
        table.append((line['what'], line['against'], sig3(line['ratio']),
                      line['goal']))
    return markdown(table) if len(table) > 1 else UNKNOWN


def first_call_table(run: Record) -> str:
    """What each form takes for its first call, compilation included."""
    table: Table = [('case', 'form', 'first call, s', 'median, ms')]
    for row in run['first_calls']:
        table.append((row['case'], row['form'], sig3(row['first_call_s']),
                      milliseconds(row['median_s'])))
    return markdown(table) if len(table) > 1 else UNKNOWN


def ops_texts(run: Record) -> dict[str, str]:
    """What benchmark_ops.py adds to the page."""
    rows = run['rows']
    curves = group([row for row in rows if row['curve']], 'curve')
    return dict(
        ops_run=describe(run),
        bandwidth=sig3(run['copy_bytes_per_s'] / 1e9),
        headlines=headline_table(run['headlines']),
        cases=case_texts(rows) or UNKNOWN,
        first_calls=first_call_table(run),
        **{
            f'curve_{name}':
            curve_table(curves[name]) if name in curves else UNKNOWN
            for name in CURVES
        })


def training_texts(run: Record) -> dict[str, str]:
    """What benchmark_train.py adds to the page."""
    parts = []
    for pair, models in group(run['rows'], 'pair').items():
        header = ['stage, ms', *(row['config'] for row in models)]
        table: Table = [header]
        for stage in (*STAGES, 'iteration'):
            cells = [milliseconds(row['stages'].get(stage)) for row in models]
            table.append([stage, *cells])
        for key, text in (('q1_s', 'first quartile of an iteration'),
                          ('q3_s', 'third quartile')):
            table.append([text, *(milliseconds(row[key]) for row in models)])
        table.append(['times stock', *(sig3(row['ratio']) for row in models)])
        parts.append(f'### {pair}\n\n{models[0]["input"]}\n\n'
                     f'{markdown(table)}')
    return dict(training_run=describe(run), training='\n\n'.join(parts))


# Pictures ----------------------------------------------------------------


def draw_curve(rows: list[Record]) -> Figure:
    """Median and quartiles of each form over what the curve runs over."""
    figure = new_figure((1200, 700))
    ax = figure.subplots()
    values = list(group(rows, 'x'))
    # A trained p has no place on an axis of numbers.
    numeric = all(isinstance(x, (int, float)) for x in values)
    places = values if numeric else range(len(values))
    place = dict(zip(values, places))
    for name, points in group(rows, 'form').items():
        color = COLORS.get(name, STOCK_COLOR)
        # The same row order as the values.
        cells = [whole(part) for part in group(points, 'x').values()]
        cells = [row for row in cells if row['median_s'] is not None]
        if not cells:
            continue
        x = [place[row['x']] for row in cells]
        low, middle, high = ([1e3 * row[key] for row in cells]
                             for key in ('q1_s', 'median_s', 'q3_s'))
        ax.plot(x, middle, 'o-', color=color, label=name, linewidth=1.6,
                markersize=4)
        ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    ax.set_yscale('log')
    if numeric:
        ax.set_xscale('log')
    ax.set_xticks(list(places), [f'{x:g}' if numeric else str(x)
                                 for x in values])
    ax.minorticks_off()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter('{x:g}')
    style_axes(ax, '', xlabel=CURVES[rows[0]['curve']], ylabel='ms')
    ax.legend(fontsize=8, frameon=False)
    return figure


def draw_training(run: Record) -> Figure:
    """One bar per model, made up of its stages."""
    pairs = list(group(run['rows'], 'pair').values())
    figure = new_figure((1500, 260 + 240 * len(pairs)))
    axes = figure.subplots(len(pairs), squeeze=False)[:, 0]
    for ax, models in zip(axes, pairs):
        left = [0.0] * len(models)
        for i, stage in enumerate(STAGES):
            widths = [row['stages'].get(stage, 0.0) for row in models]
            ax.barh([row['config'] for row in models], widths, left=left,
                    label=stage, color=STAGE_COLORS[i], height=0.6)
            left = [a + b for a, b in zip(left, widths)]
        ax.invert_yaxis()
        style_axes(ax, models[0]['pair'], xlabel='seconds per iteration')
    axes[0].legend(fontsize=7, frameon=False, ncols=len(STAGES) // 2 + 1,
                   loc='lower center', bbox_to_anchor=(0.5, 1.12))
    return figure


# Light and dark in turn, so that neighbours differ.
STAGE_COLORS = ('#94a3b8', '#d1352b', '#fca5a5', '#334155', '#64748b',
                '#a5b4fc', '#f59e0b', '#2563eb', '#93c5fd', '#059669',
                '#d1d5db')


def save_pictures(run: Record, folder: Path) -> list[Path]:
    """Draw what a run has to show."""
    if 'pair' in run['rows'][0]:
        figures = {'performance_training.png': draw_training(run)}
    else:
        curves = group([row for row in run['rows'] if row['curve']], 'curve')
        figures = {f'performance_{name}.png': draw_curve(rows)
                   for name, rows in curves.items()}
    for name, figure in figures.items():
        save_png(figure, folder / name)
    return [folder / name for name in figures]


# Files -------------------------------------------------------------------


def write_results(run: Record, texts: dict[str, str], out: Path,
                  name: str) -> list[Path]:
    """The results of one tool: JSON, CSV, Markdown and pictures."""
    out.mkdir(parents=True, exist_ok=True)
    stem = Path(name).stem
    paths = [out / f'{stem}{suffix}' for suffix in ('.json', '.csv', '.md')]
    paths[0].write_text(json.dumps(run, indent=1) + '\n', encoding='utf-8')
    with paths[1].open('w', newline='', encoding='utf-8') as file:
        rows = [flatten(row) for row in run['rows']]
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    paths[2].write_text('\n\n'.join(texts.values()) + '\n', encoding='utf-8')
    return [*paths, *save_pictures(run, out)]


def flatten(row: Record) -> Record:
    """A row whose entries are values."""
    flat = {}
    for key, value in row.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat


def fill_page(results: Path) -> str:
    """The page from the results in a folder; a part may be missing."""
    template = Template(TEMPLATE.read_text(encoding='utf-8'))
    texts = defaultdict(lambda: UNKNOWN)
    for name, make in SOURCES.items():
        if (results / name).is_file():
            texts |= make(json.loads((results / name).read_text('utf-8')))
    return template.substitute(texts)


SOURCES: dict[str, Callable[[Record], dict[str, str]]] = {
    OPS: ops_texts,
    TRAINING: training_texts,
}


def write_page(results: Path, page: Path = PAGE) -> list[Path]:
    """Write the page and its pictures.

    Raises:
        SystemExit: The folder holds no results.
    """
    found = [name for name in SOURCES if (results / name).is_file()]
    if not found:
        raise SystemExit(f'error: no {OPS} and no {TRAINING} in {results}: '
                         'run benchmark_ops.py or benchmark_train.py first')
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(fill_page(results), encoding='utf-8')
    pictures = []
    for name in found:
        run = json.loads((results / name).read_text('utf-8'))
        pictures += save_pictures(run, page.parent / 'images')
    return [page, *pictures]


def main() -> None:
    """Write and say what was written."""
    args = parse_args()
    for path in write_page(args.results, args.out):
        print(path)


if __name__ == '__main__':
    main()
