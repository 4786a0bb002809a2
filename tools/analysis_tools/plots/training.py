"""Curves of a training from the logs that mmengine leaves in a work dir."""
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sigplug.errors import UserError
from sigplug.visualization.figure import INK, new_figure, style_axes

from . import COLORS

# The precision at one matching distance in NuScenesMetric's results.
CLASS_AP = re.compile(r'(?:.*/)?(\w+)_AP_dist_[\d.]+')
LEGEND = dict(fontsize=8, labelcolor=INK, edgecolor='none', framealpha=0.8)


def read_training_log(work_dir: Path) -> tuple[list[dict], list[dict]]:
    """Read the logged values of the training in a work dir.

    Each start of mmengine's runner logs into a folder of its own, named by
    the time. A later one replaces what earlier ones logged from its first
    iteration on. Folders without training are skipped.

    Returns:
        tuple: The records of the training and those of its validations, in
        their order; ``step`` is the iteration, for a validation the last one
        that was logged before it.

    Raises:
        UserError: There is no training log.
    """
    train: list[dict] = []
    val: list[dict] = []
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        start = None
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            # A killed training may leave half a line.
            except ValueError:
                continue
            if 'iter' in record:
                if start is None:
                    start = record['step']
                    train, val = ([r for r in records if r['step'] < start]
                                  for records in (train, val))
                train.append(record)
            elif start is not None:
                # Epoch based loops count the steps of validations in epochs.
                val.append(dict(record, step=train[-1]['step']))
    if not train:
        raise UserError(
            f'No training log in {work_dir}: it must be the work dir of a '
            'training, with <time>/vis_data/scalars.json in it')
    return train, val


def draw_training(train: list[dict], val: list[dict],
                  metrics: Sequence[str] | None = None,
                  title: str = '') -> Figure:
    """Draw the losses, the metrics over time and the last validation.

    The losses of several tasks are added up. The last validation is drawn as
    bars, together with the average precision of each class if it was by
    ``NuScenesMetric``. The ``metrics`` have no prefix; by default they are
    mAP and NDS, where they were logged.

    Raises:
        UserError: No loss, or not one of the ``metrics``, was logged.
    """
    losses = loss_curves(train)
    if not losses:
        raise UserError('the log has no loss, only '
                        f'{sorted(train[0])}')
    curves = metric_curves(val, metrics or ('mAP', 'NDS'))
    if absent := set(metrics or ()) - set(curves):
        logged = {key.split('/')[-1] for record in val for key in record
                  if not CLASS_AP.fullmatch(key)}
        raise UserError(f'metrics: {sorted(absent)} were not logged, only '
                        f'{sorted(logged)}')
    over_time = any(len(rows) > 1 for rows in curves.values())
    bars = {name: rows[-1, 1] for name, rows in curves.items()}
    bars |= last_class_ap(val)

    figure = new_figure((1500, 600))
    axes = iter(figure.subplots(
        1, 1 + over_time + bool(bars), squeeze=False)[0])
    draw_losses(next(axes), losses)
    if over_time:
        ax = next(axes)
        for color, (name, rows) in zip(COLORS, curves.items()):
            ax.plot(*rows.T, 'o-', markersize=4, color=color, label=name)
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        style_axes(ax, 'Validation', 'iteration')
        ax.legend(**LEGEND)
    if bars:
        draw_bars(next(axes), bars, val[-1]['step'])
    figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha='left')
    return figure


def loss_curves(train: list[dict]) -> dict[str, np.ndarray]:
    """Return rows (iteration, value) of each loss, the total first."""
    rows: dict[str, list] = defaultdict(list)
    for record in train:
        sums: dict[str, float] = defaultdict(float)
        for key, value in record.items():
            if 'loss' in key:
                sums[key.split('.')[-1]] += value
        for name, value in sums.items():
            rows[name].append((record['step'], value))
    return {name: np.array(rows[name])
            for name in sorted(rows, key=lambda name: name != 'loss')}


def metric_curves(val: list[dict],
                  metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Return rows (iteration, value) of each metric that was logged."""
    rows = {name: [(record['step'], value) for record in val
                   for key, value in record.items()
                   if key.split('/')[-1] == name] for name in metrics}
    return {name: np.array(found) for name, found in rows.items() if found}


def last_class_ap(val: list[dict]) -> dict[str, float]:
    """Return the AP of each class at the last validation, best first."""
    values: dict[str, list[float]] = defaultdict(list)
    for key, value in (val[-1] if val else {}).items():
        if match := CLASS_AP.fullmatch(key):
            values[f'AP {match[1]}'].append(value)
    means = {name: float(np.mean(found)) for name, found in values.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def draw_losses(ax: Axes, losses: dict[str, np.ndarray]) -> None:
    """Draw the losses over the iterations."""
    for color, (name, rows) in zip((INK, *COLORS * 9), losses.items()):
        ax.plot(*rows.T, color=color, linewidth=1.2,
                label='total' if name == 'loss' else name)
    values = np.concatenate([rows[:, 1] for rows in losses.values()])
    if 0 < 10 * np.nanmin(values) < np.nanmax(values):
        ax.set_yscale('log')
    style_axes(ax, 'Training loss', 'iteration')
    ax.legend(**LEGEND)


def draw_bars(ax: Axes, values: dict[str, float], step: int) -> None:
    """Draw the last validation."""
    bars = ax.barh(list(values), list(values.values()), color=COLORS[0],
                   height=0.7)
    ax.bar_label(bars, fmt='%.3f', padding=3, fontsize=7.5, color=INK)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12 * np.nanmax([1.0, *values.values()]))
    style_axes(ax, f'Last validation, iteration {step}', 'score')
    ax.grid(visible=False, axis='y')
