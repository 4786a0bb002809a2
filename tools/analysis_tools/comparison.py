"""Comparison of configs that were trained with the same seeds."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t

from sigplug.engine.results import TP_ERRORS

MAIN_METRICS = ('mAP', 'NDS')
CONFIDENCE = 0.95

# For each metric an array of shape (configs, seeds).
Values = dict[str, np.ndarray]


def flatten(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a run under the names ``mAP``, ``AP/car``..."""
    return dict(
        {name: result[name] for name in MAIN_METRICS},
        **{f'AP/{name}': ap for name, ap in result['class_AP'].items()},
        **{name: result['TP_errors'][name] for name in TP_ERRORS})


def gather(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], Values]:
    """Gather runs by config and seed.

    Args:
        results (Sequence[Mapping]): For each run its ``name``, its ``seed``
            and what ``summarize_nuscenes`` returns.

    Returns:
        tuple: The names of the configs in the order of their first runs, and
        for each metric an array of shape ``(configs, seeds)``.

    Raises:
        ValueError: A run is missing, or is there twice.
    """
    names = list(dict.fromkeys(result['name'] for result in results))
    seeds = sorted({result['seed'] for result in results})
    runs = {(result['name'], result['seed']): flatten(result)
            for result in results}
    if not len(results) == len(runs) == len(names) * len(seeds):
        raise ValueError(f'each of {", ".join(names)} needs one run with each '
                         f'of the seeds {seeds}')
    return names, {
        metric: np.array([[runs[name, seed][metric] for seed in seeds]
                          for name in names])
        for metric in flatten(results[0])}


def difference(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Return how far each config is from the first one, seed by seed.

    With :math:`d_i` the difference at seed :math:`i` of :math:`n > 1`, the
    mean :math:`\bar d` and the half width :math:`t_{n-1} \, s_d / \sqrt n` of
    its confidence interval (paired t-test): the same seed gives both the same
    order of samples.

    Args:
        values (np.ndarray): Shape ``(configs, seeds)``.

    Returns:
        tuple[np.ndarray, np.ndarray]: Mean and half width, shape
        ``(configs, )``.
    """
    change, n = values - values[0], values.shape[1]
    return change.mean(1), (
        t.ppf((1 + CONFIDENCE) / 2, n - 1) * change.std(1, ddof=1) /
        np.sqrt(n))


def format_tables(names: Sequence[str], values: Values) -> str:
    """Return two Markdown tables.

    Args:
        names (Sequence[str]): The configs; the first is the baseline.
        values (dict[str, np.ndarray]): As from :func:`gather`.

    Returns:
        str: A table of the main metrics with their differences from the
        baseline, and one of the mean AP of each class.
    """
    columns, classes = {'config': names}, {'config': names}
    for metric in MAIN_METRICS:
        runs = values[metric]
        if runs.shape[1] == 1:
            columns[metric] = [f'{m:.3f}' for m in runs[:, 0]]
            continue
        columns[metric] = [f'{m:.3f} ± {s:.3f}' for m, s in zip(
            runs.mean(1), runs.std(1, ddof=1))]
        cells = []
        for change, half in zip(*difference(runs)):
            text = f'{change:+.3f} ± {half:.3f}'
            cells.append(f'**{text}**' if abs(change) > half else text)
        columns[f'{metric}, difference'] = ['', *cells[1:]]
    for metric in values:
        if metric.startswith('AP/'):
            classes[metric[3:].replace('_', ' ')] = [
                f'{mean:.3f}' for mean in values[metric].mean(1)]
    seeds = values[MAIN_METRICS[0]].shape[1]
    what = 'One seed: no spread is known.' if seeds == 1 else (
        f'Mean and standard deviation over {seeds} seeds; difference from '
        f'{names[0]}, seed by seed, with the half width of its '
        f'{CONFIDENCE:.0%} confidence interval (paired t-test), in bold where '
        'the interval does not contain 0. Each interval is for itself: of '
        f'{round(1 / (1 - CONFIDENCE))} variants that change nothing, one '
        'gets a bold figure by chance.')
    return (f'{what}\n\n{table(columns)}\nMean AP of each class.\n\n'
            f'{table(classes)}')


def table(columns: Mapping[str, Sequence[str]]) -> str:
    """Return a Markdown table of its columns."""
    rows = [list(columns), ['---'] + ['---:'] * (len(columns) - 1),
            *zip(*columns.values())]
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)
