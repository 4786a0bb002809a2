"""Curves of a training from the logs that mmengine leaves in a work dir."""
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sigplug.errors import UserError
from sigplug.visualization.figure import INK, MUTED, new_figure, style_axes

from . import COLORS

# The precision at one matching distance in NuScenesMetric's results.
CLASS_AP = re.compile(r'(?:.*/)?(\w+)_AP_dist_[\d.]+')
LEGEND = dict(fontsize=8, labelcolor=INK, edgecolor='none', framealpha=0.8)


@dataclass
class TrainingLog:
    """Logged values, in the order of the iterations.

    Attributes:
        train (list[dict]): The training records; ``step`` is the iteration.
        val (list[dict]): The validation records; ``step`` is the last logged
            iteration before the validation.
        resumed (list[int]): First logged iterations after a resumption.
    """
    train: list[dict] = field(default_factory=list)
    val: list[dict] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)


def read_training_log(work_dir: Path) -> TrainingLog:
    """Read the logged values of the training in a work dir.

    Each start of mmengine's runner logs into a folder of its own, named by
    the time. A later one replaces what earlier ones logged from its first
    iteration on. Folders without training are skipped.

    Args:
        work_dir (Path): The work dir.

    Raises:
        UserError: There is no training log, or a damaged one.
    """
    log = TrainingLog()
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        run = read_run(path)
        if not run.train:
            continue
        start = run.train[0]['step']
        train = [r for r in log.train if r['step'] < start]
        log = TrainingLog(
            train + run.train,
            [r for r in log.val if r['step'] < start] + run.val,
            [s for s in log.resumed if s < start] + [start] * bool(train))
    if not log.train:
        raise UserError(
            f'No training log in {work_dir}: it must be the work dir of a '
            'training, with <time>/vis_data/scalars.json in it')
    return log


def read_run(path: Path) -> TrainingLog:
    """Read one start of the runner."""
    run = TrainingLog()
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            # A killed training may leave half a line, but only as the last.
            if number < len(lines):
                raise UserError(f'{path}, line {number} is damaged: {error}'
                                ) from error
            break
        if 'iter' in record:
            run.train.append(record)
        elif run.train:
            # Epoch based loops count the steps of validations in epochs.
            run.val.append(dict(record, step=run.train[-1]['step']))
    return run


def draw_training(log: TrainingLog,
                  metrics: Sequence[str] | None = None,
                  title: str = '') -> Figure:
    """Draw the losses, the metrics over time and the last validation.

    The losses of several tasks are added up. The last validation is drawn as
    bars, together with the average precision of each class if it was by
    ``NuScenesMetric``.

    Args:
        log (TrainingLog): The log.
        metrics (Sequence[str], optional): Names of the metrics to draw,
            without the prefix that ends in a slash. Defaults to mAP and NDS,
            where they were logged.
        title (str): Title of the picture.

    Raises:
        UserError: No loss, or not one of the ``metrics``, was logged.
    """
    losses = loss_curves(log.train)
    if not losses:
        raise UserError('the log has no loss, only '
                        f'{sorted(log.train[0])}')
    curves = metric_curves(log.val, metrics or ('mAP', 'NDS'))
    if absent := set(metrics or ()) - set(curves):
        logged = {key.split('/')[-1] for record in log.val for key in record
                  if not CLASS_AP.fullmatch(key)}
        raise UserError(f'metrics: {sorted(absent)} were not logged, only '
                        f'{sorted(logged)}')
    over_time = any(len(rows) > 1 for rows in curves.values())
    bars = {name: rows[-1, 1] for name, rows in curves.items()}
    bars |= last_class_ap(log.val)

    figure = new_figure((1500, 600))
    axes = iter(figure.subplots(
        1, 1 + over_time + bool(bars), squeeze=False)[0])
    draw_losses(next(axes), losses, log.resumed)
    if over_time:
        ax = next(axes)
        for color, (name, rows) in zip(COLORS, curves.items()):
            ax.plot(*rows.T, 'o-', markersize=4, color=color, label=name)
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        style_axes(ax, 'Validation', 'iteration')
        ax.legend(**LEGEND)
    if bars:
        draw_bars(next(axes), bars, log.val[-1]['step'])
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


def draw_losses(ax: Axes, losses: dict[str, np.ndarray],
                resumed: Sequence[int]) -> None:
    """Draw the losses over the iterations."""
    for color, (name, rows) in zip((INK, *COLORS * 9), losses.items()):
        ax.plot(*rows.T, color=color, linewidth=1.2,
                label='total' if name == 'loss' else name)
    for step in resumed:
        ax.axvline(step, color=MUTED, linewidth=0.8, linestyle='--',
                   label='resumed' if step == resumed[0] else None)
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
