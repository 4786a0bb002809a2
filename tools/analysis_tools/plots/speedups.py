"""A picture of how many times as fast as others the operations are."""
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sigplug.visualization.figure import INK, MUTED, new_figure, style_axes

from . import COLORS, WIDTH

OURS, COMPILED = 'sigplug', 'torch.compile of stock'
TICKS = (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def read_ratios(results: Sequence[dict[str, Any]],
                form: str) -> dict[str, float]:
    """Return how many times as fast as the first form of a case one is.

    By the medians of ``both`` passes, or of ``forward`` alone; without the
    cases in which one of the two was not timed.
    """
    ratios = {}
    for case in results:
        times = {row['form']: row.get('both') or row.get('forward')
                 for row in case['rows']}
        first = next(iter(times.values()), None)
        if first and times.get(form):
            ratios[case['case']] = first[1] / times[form][1]
    return ratios


def draw_speedups(results: Sequence[dict[str, Any]], title: str) -> Figure:
    """Draw a bar for each operation, the fastest first.

    Bars that point to the left of 1 are losses. A mark is the stock form,
    compiled.
    """
    ours = read_ratios(results, OURS)
    names = sorted(ours, key=lambda name: -ours[name])
    values = np.array([ours[name] for name in names])
    figure = new_figure((WIDTH, 170 + 52 * len(names)))
    ax = figure.add_subplot()
    style_axes(ax, '', 'times as fast as the stock form')
    figure.suptitle(title, x=0.01, ha='left', fontsize=11, color=INK)
    ax.grid(axis='y', visible=False)
    ax.set_xscale('log')
    for wins, color in ((True, COLORS[0]), (False, COLORS[1])):
        rows = np.flatnonzero((values >= 1) == wins)
        ax.barh(rows, values[rows] - 1, left=1, height=0.6, color=color)
    compiled = read_ratios(results, COMPILED)
    for row, (name, value) in enumerate(zip(names, values)):
        # Beside the mark, where that is next to the end of the bar.
        mark = compiled.get(name, value)
        end = mark if 1 <= value < mark < 2 * value else value
        ax.annotate(f'{value:.3g}', (end, row),
                    (4 if value >= 1 else -4, 0), textcoords='offset points',
                    ha='left' if value >= 1 else 'right', va='center',
                    fontsize=9.5, color=INK)
    marked = [row for row, name in enumerate(names) if name in compiled]
    ax.plot([compiled[names[row]] for row in marked], marked, 'd',
            color=INK, markersize=5, linestyle='none', label=COMPILED)
    ax.axvline(1, color=MUTED, linewidth=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    low, high = 0.25 * values.min(initial=1.0), 2 * values.max(initial=1.0)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    ax.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
    ax.minorticks_off()
    ax.set_xlim(low, high)
    ax.legend(loc='lower right', fontsize=9.5, frameon=False)
    return figure
