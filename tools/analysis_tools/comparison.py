"""Comparison of configs that were trained with the same seeds."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pages import markdown
from scipy.stats import ttest_1samp

from sigplug.cli.results import TP_ERRORS

MAIN_METRICS = ('mAP', 'NDS')

# For each metric an array of shape (configs, seeds).
Values = dict[str, np.ndarray]


def flatten(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a run under the names ``mAP``, ``AP/car``..."""
    return dict(
        {name: result[name] for name in MAIN_METRICS},
        **{f'AP/{name}': ap for name, ap in result['class_AP'].items()},
        **{name: result['TP_errors'][name] for name in TP_ERRORS})


def gather(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], Values]:
    """Gather the runs of each config with each seed.

    A run has its ``name``, its ``seed`` and what ``summarize_nuscenes``
    returns. The names come in the order of their first runs.
    """
    names = list(dict.fromkeys(result['name'] for result in results))
    seeds = sorted({result['seed'] for result in results})
    runs = {(result['name'], result['seed']): flatten(result)
            for result in results}
    return names, {
        metric: np.array([[runs[name, seed][metric] for seed in seeds]
                          for name in names])
        for metric in flatten(results[0])}


def difference(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each other config is from the first one.

    Seed by seed: the same one gives both the same order of samples.

    Returns:
        tuple[np.ndarray, np.ndarray]: Means and half widths of their 95%
        confidence intervals (paired t-test), shape ``(configs - 1, )``.
    """
    change = values[1:] - values[0]
    interval = ttest_1samp(change, 0, axis=1).confidence_interval(0.95)
    return change.mean(1), (interval.high - interval.low) / 2


def format_tables(names: Sequence[str], values: Values) -> str:
    """Return two Markdown tables.

    One has the main metrics with their differences from the first config, the
    other the mean AP of each class.
    """
    what, columns = 'One seed: no spread is known.', {'config': names}
    for metric in MAIN_METRICS:
        runs = values[metric]
        if runs.shape[1] == 1:
            columns[metric] = [f'{m:.3f}' for m in runs[:, 0]]
            continue
        what = (
            f'Mean and standard deviation over {runs.shape[1]} seeds; '
            f'difference from {names[0]}, seed by seed, with the half width '
            'of its 95% confidence interval (paired t-test), in bold where '
            'the interval does not contain 0. Each interval is for itself: '
            'of 20 variants that change nothing, one gets a bold figure by '
            'chance.')
        columns[metric] = [f'{m:.3f} ± {s:.3f}' for m, s in zip(
            runs.mean(1), runs.std(1, ddof=1))]
        columns[f'{metric}, difference'] = ['', *(
            f'{bold}{change:+.3f} ± {half:.3f}{bold}'
            for change, half in zip(*difference(runs))
            for bold in ['**' * bool(abs(change) > half)])]
    classes = {'config': names, **{
        metric[3:].replace('_', ' '): [f'{m:.3f}' for m in runs.mean(1)]
        for metric, runs in values.items() if metric.startswith('AP/')}}
    first, second = (markdown(list(table), zip(*table.values()))
                     for table in (columns, classes))
    return (f'{what}\n\n{first}\n\nMean AP of each class.\n\n{second}\n')
