"""Curves of a training from the logs that mmengine leaves in a work dir."""
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from .bev import CLASS_COLORS
from .figure import INK, MUTED, new_figure, style_axes

# The precision at one matching distance in NuScenesMetric's results.
_CLASS_AP = re.compile(r'(?:.*/)?(\w+)_AP_dist_[\d.]+')
# A loss that falls by more than this factor is drawn on a log scale.
_LOG_SCALE_FROM = 10.0
_DEFAULT_METRICS = ('mAP', 'NDS')
_BAR_COLOR = '#aab4c0'
_LEGEND = dict(
    fontsize=8, labelcolor=INK, edgecolor='none', framealpha=0.8)


@dataclass
class TrainingLog:
    """What was logged, in the order of the iterations.

    Attributes:
        train (list[dict]): The training records; ``step`` is the iteration.
        val (list[dict]): The validation records; ``step`` is the last logged
            iteration before the validation.
        resumed (list[int]): First logged iterations after a resumption.
    """
    train: list[dict] = field(default_factory=list)
    val: list[dict] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)


def read_training_log(work_dir: str | os.PathLike) -> TrainingLog:
    """Read the logged values of the training in a work dir.

    Each start of mmengine's runner logs into a folder of its own, named by
    the time. A later one replaces what earlier ones logged from its first
    iteration on: a resumed training becomes one curve, and one that was
    started anew stands alone. Folders without training, of a test for
    instance, are passed over.

    Args:
        work_dir (str | PathLike): The work dir, or one of its folders.

    Returns:
        TrainingLog: The joined log, with at least one training record.

    Raises:
        FileNotFoundError: No training log is there.
        ValueError: A log is damaged.
    """
    if not isinstance(work_dir, (str, os.PathLike)):
        raise TypeError(f'work_dir must be a path, but is {work_dir!r}')
    work_dir = Path(work_dir)
    log = TrainingLog()
    for folder in sorted(work_dir.glob('*/vis_data')) or [
            work_dir / 'vis_data'
    ]:
        run = _read_run(folder)
        if not run.train:
            continue
        start = run.train[0]['step']
        train = [r for r in log.train if r['step'] < start]
        log = TrainingLog(
            train + run.train,
            [r for r in log.val if r['step'] < start] + run.val,
            [s for s in log.resumed if s < start] + [start] * bool(train))
    if not log.train:
        raise FileNotFoundError(
            f'No training log in {work_dir}: it must be the work dir of a '
            'training, with <time>/vis_data/scalars.json in it')
    return log


def _read_run(folder: Path) -> TrainingLog:
    """Read one start of the runner; ``scalars.json`` and its twin agree."""
    files = [folder / 'scalars.json', folder / f'{folder.parent.name}.json']
    path = next((path for path in files if path.is_file()), None)
    run = TrainingLog()
    for record in _read_json_lines(path) if path else []:
        if 'iter' in record:
            run.train.append(record)
        elif run.train:
            # Epoch based loops count the steps of validations in epochs.
            run.val.append({**record, 'step': run.train[-1]['step']})
    return run


def _read_json_lines(path: Path) -> list[dict]:
    lines = path.read_text(encoding='utf-8').splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            # A killed training may leave half a line, but only as the last.
            if number < len(lines):
                raise ValueError(f'{path}, line {number} is damaged: {error}'
                                 ) from error
    return records


def draw_training(log: TrainingLog,
                  *,
                  metrics: Sequence[str] | None = None,
                  title: str = '',
                  size: tuple[int, int] = (1500, 600)) -> Figure:
    """Draw the losses, the metrics over time and the last validation.

    The losses of several tasks are added up. Their scale is logarithmic if
    they span more than a factor of ten. The last validation is drawn as
    bars, together with the average precision of each class if it was by
    ``NuScenesMetric`` (the mean over its matching distances). What was not
    logged is left out, and the metrics over time if there is one validation.

    Args:
        log (TrainingLog): See :func:`read_training_log`.
        metrics (Sequence[str], optional): Names of the metrics to draw,
            without the prefix that ends in a slash. Defaults to mAP and NDS,
            where they were logged.
        title (str): Title of the picture.
        size (tuple[int, int]): Width and height in pixels.

    Returns:
        Figure: The drawing, for :func:`sigplug.visualization.save_png`.

    Raises:
        ValueError: No loss, or not one of the ``metrics``, was logged.
    """
    if not isinstance(log, TrainingLog):
        raise TypeError('log must be what read_training_log returns, but is '
                        f'{log!r}')
    if metrics is not None and not isinstance(metrics, (tuple, list)):
        raise TypeError('metrics must be a tuple or list of names, but is '
                        f'{metrics!r}')
    losses = _losses(log.train)
    if not losses:
        raise ValueError('the log holds no loss, only '
                         f'{sorted(log.train[0]) if log.train else "nothing"}')
    curves = _metric_curves(log.val, metrics or _DEFAULT_METRICS)
    absent = set(metrics or ()) - set(curves)
    if absent:
        logged = {
            key.split('/')[-1]
            for record in log.val for key in record
            if not _CLASS_AP.fullmatch(key)
        }
        raise ValueError(f'metrics: {sorted(absent)} were not logged, only '
                         f'{sorted(logged)}')
    over_time = any(len(rows) > 1 for rows in curves.values())
    final = {name: rows[-1, 1] for name, rows in curves.items()}
    class_ap = _class_ap(log.val)

    figure = new_figure(size)
    panels = 1 + over_time + bool(final or class_ap)
    axes = iter(figure.subplots(1, panels, squeeze=False)[0])
    _draw_losses(next(axes), losses, log.resumed)
    if over_time:
        _draw_metrics(next(axes), curves)
    if final or class_ap:
        _draw_last(next(axes), final, class_ap, log.val[-1]['step'])
    if title:
        figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha='left')
    return figure


def _losses(train: list[dict]) -> dict[str, np.ndarray]:
    """Rows (iteration, value) of each loss, the total first."""
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for record in train:
        sums: dict[str, float] = defaultdict(float)
        for key, value in record.items():
            name = key.split('.')[-1]
            if 'loss' in name:
                sums[name] += value
        for name, value in sums.items():
            rows[name].append((record['step'], value))
    order = sorted(rows, key=lambda name: name != 'loss')
    return {name: np.array(rows[name]) for name in order}


def _metric_curves(val: list[dict],
                   metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows (iteration, value) of each metric."""
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for record in val:
        for key, value in record.items():
            name = key.split('/')[-1]
            if name in metrics:
                rows[name].append((record['step'], value))
    return {name: np.array(rows[name]) for name in metrics if name in rows}


def _class_ap(val: list[dict]) -> dict[str, float]:
    """Average precision of each class at the last validation."""
    values = defaultdict(list)
    for key, value in (val[-1] if val else {}).items():
        match = _CLASS_AP.fullmatch(key)
        if match:
            values[match[1]].append(value)
    return {name: float(np.mean(values[name])) for name in values}


def _draw_losses(ax: Axes, losses: dict[str, np.ndarray],
                 resumed: Sequence[int]) -> None:
    parts = [name for name in losses if name != 'loss']
    colors = {'loss': INK, **_colors(parts)}
    for name, rows in losses.items():
        ax.plot(
            *rows.T,
            color=colors[name],
            linewidth=1.8 if name == 'loss' else 1.2,
            label='total' if name == 'loss' else name)
    for step in resumed:
        ax.axvline(
            step,
            color=MUTED,
            linewidth=0.8,
            linestyle=(0, (3, 2)),
            label='resumed' if step == resumed[0] else None)
    values = np.concatenate([rows[:, 1] for rows in losses.values()])
    values = values[np.isfinite(values)]
    if len(values) and 0 < _LOG_SCALE_FROM * values.min() < values.max():
        ax.set_yscale('log')
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter('{x:g}')
        ax.yaxis.set_minor_formatter(NullFormatter())
    style_axes(ax, 'Training loss', xlabel='iteration')
    ax.legend(**_LEGEND)


def _draw_metrics(ax: Axes, curves: dict[str, np.ndarray]) -> None:
    colors = _colors(curves)
    for name, rows in curves.items():
        ax.plot(
            *rows.T,
            marker='o',
            markersize=4,
            linewidth=1.8,
            color=colors[name],
            label=name)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    style_axes(ax, 'Validation', xlabel='iteration')
    ax.legend(**_LEGEND)


def _draw_last(ax: Axes, final: dict[str, float], class_ap: dict[str, float],
               step: int) -> None:
    """Bars from the top: the metrics, then the classes, the best first."""
    classes = sorted(class_ap, key=class_ap.__getitem__, reverse=True)
    names = [*final, *(f'AP {name}' for name in classes)]
    values = [*final.values(), *(class_ap[name] for name in classes)]
    colors = [*_colors(final).values(), *[_BAR_COLOR] * len(classes)]
    bars = ax.barh(names, values, color=colors, height=0.7)
    ax.bar_label(bars, fmt='%.3f', padding=3, fontsize=7.5, color=INK)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12 * np.nanmax([1.0, *values]))
    style_axes(ax, f'Last validation, iteration {step}', xlabel='score')
    ax.grid(visible=False, axis='y')
    ax.tick_params(axis='y', length=0, labelcolor=INK)


def _colors(names: Iterable[str]) -> dict[str, str]:
    return dict(zip(names, cycle(CLASS_COLORS)))
