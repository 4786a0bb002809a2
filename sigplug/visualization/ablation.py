"""A picture of configs that were trained with several seeds each."""
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .bev import CLASS_COLORS
from .figure import INK, MUTED, check_title, new_figure, style_axes

_ROW = 44  # pixels
_SEEDS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')


def draw_ablation(names: Sequence[str],
                  values: Mapping[str, np.ndarray],
                  *,
                  metrics: Sequence[str] = ('mAP', 'NDS'),
                  title: str = '') -> Figure:
    """Draw the results of several configs, trained with the same seeds.

    One panel for each of the main metrics: a mark for each seed, a line at
    the mean, and a band of one standard deviation about the mean of the first
    config. A last panel gives the mean AP of each class as the difference
    from the first config.

    Args:
        names (Sequence[str]): The configs; the first is the baseline.
        values (Mapping[str, np.ndarray]): For each metric an array of shape
            (configs, seeds), NaN where a run is missing. Those called
            ``AP/...`` belong to a class.
        metrics (Sequence[str]): The main metrics.
        title (str): Text above the picture.

    Returns:
        Figure: The picture.

    Raises:
        ValueError: A metric is missing, or an array has another shape.
    """
    check_title(title)
    for metric in metrics:
        if metric not in values:
            raise ValueError(f'metrics: {metric!r} is not among the values '
                             f'({", ".join(values)})')
    values = {key: np.asarray(value) for key, value in values.items()}
    for key, value in values.items():
        if value.ndim != 2 or len(value) != len(names):
            raise ValueError(
                f'values[{key!r}] must have the shape (configs, seeds) with '
                f'{len(names)} configs, but has {value.shape}')
    classes = [key for key in values if key.startswith('AP/')]
    figure = new_figure((1800, 200 + _ROW * max(len(names), 5)))
    if title:
        figure.suptitle(title, x=0.01, ha='left', fontsize=11, color=INK)
    panels = figure.subplots(
        1, len(metrics) + bool(classes), sharey=True, squeeze=False,
        width_ratios=[1] * len(metrics) + [1.6] * bool(classes))[0]
    rows = np.arange(len(names))
    for ax, metric in zip(panels, metrics):
        _draw_metric(ax, values[metric], metric)
    if classes:
        _draw_classes(figure, panels[-1], values, classes)
    panels[0].set_yticks(rows, names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    panels[0].tick_params(axis='y', labelsize=9, labelcolor=INK)
    return figure


def _draw_metric(ax, value: np.ndarray, metric: str) -> None:
    style_axes(ax, metric, '')
    known = value[0][~np.isnan(value[0])]
    if len(known) > 1:
        mean, spread = known.mean(), known.std(ddof=1)
        ax.axvspan(mean - spread, mean + spread, color='#e5e7eb', zorder=0)
    for seed, column in enumerate(value.T):
        ax.plot(column, range(len(value)), _SEEDS[seed % len(_SEEDS)],
                color=CLASS_COLORS[0], markersize=4, alpha=0.7,
                linestyle='none', label=f'seed {seed}')
    for row, results in enumerate(value):
        if not np.isnan(results).all():
            ax.plot([np.nanmean(results)] * 2, [row - 0.3, row + 0.3],
                    color=INK, linewidth=1.5)
    ax.legend(fontsize=7, labelcolor=MUTED, edgecolor='none', loc='best',
              framealpha=0.7)


def _draw_classes(figure: Figure, ax, values: Mapping[str, np.ndarray],
                  classes: Sequence[str]) -> None:
    mean = np.stack([np.nanmean(values[key], axis=1) for key in classes], 1)
    change = mean - mean[0]
    limit = max(np.nanmax(np.abs(change)), 0.01)
    ax.imshow(change, cmap='RdBu', vmin=-limit, vmax=limit, aspect='auto')
    style_axes(ax, 'AP of each class: first row, and difference from it', '')
    ax.grid(False)
    ax.set_xticks(
        range(len(classes)),
        [key[3:].replace('_', ' ') for key in classes], fontsize=7,
        rotation=30, ha='right', rotation_mode='anchor')
    for row, column in np.ndindex(change.shape):
        text = (f'{mean[row, column]:.2f}' if row == 0 else
                f'{change[row, column]:+.2f}')
        dark = abs(change[row, column]) > 0.6 * limit
        ax.text(column, row, text, ha='center', va='center', fontsize=7,
                color='white' if dark else INK)
