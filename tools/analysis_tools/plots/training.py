"""Curves of a training from the logs that mmengine leaves in a work dir."""
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sigplug.errors import UserError
from sigplug.visualization.figure import INK, new_figure, style_axes

from . import COLORS

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
                  metrics: Sequence[str] | None, title: str) -> Figure:
    """Draw the losses, those of several tasks added up, and the metrics.

    The ``metrics`` have no prefix; None is mAP and NDS, if they were logged.
    """
    curves = metric_curves(val, metrics or ('mAP', 'NDS'))
    if missing := set(metrics or ()) - set(curves):
        raise UserError(f'metrics: {sorted(missing)} were not logged.')
    figure = new_figure((1500, 600))
    axes = figure.subplots(1, 1 + bool(curves), squeeze=False)[0]
    draw_losses(axes[0], loss_curves(train))
    if curves:
        for color, (name, rows) in zip(COLORS, curves.items()):
            axes[1].plot(*rows.T, 'o-', markersize=4, color=color, label=name)
        axes[1].set_xlim(left=0)
        axes[1].set_ylim(bottom=0)
        style_axes(axes[1], 'Validation', 'iteration')
        axes[1].legend(**LEGEND)
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


def draw_losses(ax: Axes, losses: dict[str, np.ndarray]) -> None:
    for color, (name, rows) in zip((INK, *COLORS * 9), losses.items()):
        ax.plot(*rows.T, color=color, linewidth=1.2,
                label='total' if name == 'loss' else name)
    values = np.concatenate([rows[:, 1] for rows in losses.values()])
    if 0 < 10 * np.nanmin(values) < np.nanmax(values):
        ax.set_yscale('log')
    style_axes(ax, 'Training loss', 'iteration')
    ax.legend(**LEGEND)
