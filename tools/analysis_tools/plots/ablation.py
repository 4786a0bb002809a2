"""A picture of configs that were trained with several seeds each."""
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sigplug.visualization.figure import INK, new_figure, style_axes

from . import COLORS, WIDTH


def draw_ablation(names: Sequence[str],
                  values: Mapping[str, np.ndarray]) -> Figure:
    """Draw the results of several configs, trained with the same seeds.

    A panel for each main metric, with a band of one standard deviation about
    the mean of the first config, and below the mean AP of each class as the
    difference from the first config. Names and values are those of
    ``comparison.gather``.
    """
    figure = new_figure((WIDTH, 420 + 90 * max(len(names), 4)))
    grid = figure.add_gridspec(2, 2)
    panels = [figure.add_subplot(place)
              for place in (grid[0, 0], grid[0, 1], grid[1, :])]
    for ax, metric in zip(panels, ('mAP', 'NDS')):
        draw_metric(ax, values[metric], metric)
    draw_classes(panels[-1], {key[3:]: value.mean(1) for key, value in
                              values.items() if key.startswith('AP/')})
    for ax in panels:
        ax.set_yticks(np.arange(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
    panels[1].tick_params(labelleft=False)
    figure.legend(
        handles=panels[0].get_legend_handles_labels()[0],
        loc='outside lower left', ncols=6, fontsize=9.5, frameon=False)
    return figure


def draw_metric(ax: Axes, value: np.ndarray, metric: str) -> None:
    style_axes(ax, metric, '')
    if value.shape[1] > 1:
        mean, spread = value[0].mean(), value[0].std(ddof=1)
        ax.axvspan(mean - spread, mean + spread, color='#e5e7eb', zorder=0)
    for seed, column in enumerate(value.T):
        ax.plot(column, range(len(value)), 'os^DvPX*'[seed % 8],
                color=COLORS[0], markersize=4, alpha=0.7, linestyle='none',
                label=f'seed {seed}')
    for row, mean in enumerate(value.mean(1)):
        ax.plot([mean] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=1.5)


def draw_classes(ax: Axes, means: Mapping[str, np.ndarray]) -> None:
    """Draw the AP of each class as a table of differences."""
    mean = np.stack(list(means.values()), 1)
    change = mean - mean[0]
    limit = max(np.abs(change).max(), 0.01)
    ax.imshow(change, cmap='RdBu', vmin=-limit, vmax=limit, aspect='auto')
    style_axes(ax, 'AP of each class: first row, and difference from it', '')
    ax.grid(False)
    ax.set_xticks(
        range(len(means)), [name.replace('_', ' ') for name in means],
        fontsize=9.5, rotation=30, ha='right', rotation_mode='anchor')
    for row, column in np.ndindex(change.shape):
        text = (f'{mean[row, column]:.2f}' if row == 0 else
                f'{change[row, column]:+.2f}')
        dark = abs(change[row, column]) > 0.6 * limit
        ax.text(column, row, text, ha='center', va='center', fontsize=9.5,
                color='white' if dark else INK)
