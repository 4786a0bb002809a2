"""A picture of where the time of an iteration goes."""
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sigplug.visualization.figure import INK, new_figure, style_axes

from . import COLORS, WIDTH

NETWORK = ('encoder', 'middle encoder', 'backbone', 'neck')


def merge(stages: dict[str, float]) -> dict[str, float]:
    """Return stages without their total, those of the network as one."""
    merged: dict[str, float] = {}
    for name, seconds in stages.items():
        name = 'network' if name in NETWORK else name
        merged[name] = merged.get(name, 0.0) + seconds
    merged.pop('total')
    return merged


def draw_stages(groups: Sequence[dict[str, Any]]) -> Figure:
    """Draw the stages of models as bars, those of a case together.

    Rows without stages have failed.
    """
    groups = [dict(group, rows=rows) for group in groups
              if (rows := [dict(row, stages=merge(row['stages']),
                                total=row['stages']['total'])
                           for row in group['rows'] if 'stages' in row])]
    bars = sum(len(group['rows']) for group in groups)
    figure = new_figure((WIDTH, 130 * len(groups) + 80 * bars))
    names = list(dict.fromkeys(
        name for group in groups for row in group['rows']
        for name in row['stages']))
    colors = dict(zip((name for name in names if name != 'other'),
                      COLORS * len(names)), other='#9ca3af')
    panels = figure.subplots(
        len(groups), 1, squeeze=False,
        height_ratios=[len(group['rows']) for group in groups])[:, 0]
    for ax, group in zip(panels, groups):
        style_axes(ax, group['case'], 'ms')
        ax.grid(axis='y', visible=False)
        left = np.zeros(len(group['rows']))
        for name in names:
            width = 1e3 * np.array([row['stages'].get(name, 0)
                                    for row in group['rows']])
            ax.barh(range(len(left)), width, left=left, height=0.6,
                    color=colors[name])
            left += width
        # The median of all, which is not the sum of those of the stages.
        for place, (end, row) in enumerate(zip(left, group['rows'])):
            ax.text(end, place, f' {1e3 * row["total"]:.3g}', va='center',
                    fontsize=9, color=INK)
        ax.set_yticks(range(len(left)), [r['config'] for r in group['rows']])
        ax.set_ylim(len(left) - 0.5, -0.5)
        ax.set_xlim(0, 1.08 * left.max())
    figure.legend(
        handles=[figure.axes[0].barh([0], [0], color=colors[name], label=name)
                 for name in names],
        loc='outside lower left', ncols=3, fontsize=10, frameon=False)
    return figure
