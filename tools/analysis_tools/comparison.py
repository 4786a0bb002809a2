"""Comparison of configs that were trained with the same seeds."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t

from sigplug.engine.results import TP_ERRORS

MAIN_METRICS = ('mAP', 'NDS')
CONFIDENCE = 0.95


def flatten(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one run under the names ``mAP``, ``AP/car``, ..."""
    return dict(
        {name: result[name] for name in MAIN_METRICS},
        **{f'AP/{name}': ap for name, ap in result['class_AP'].items()},
        **{name: result['TP_errors'][name] for name in TP_ERRORS})


@dataclass
class Comparison:
    """Metrics of several configs, each trained with the same seeds.

    Attributes:
        names (list[str]): The configs; the first is the baseline.
        values (dict[str, np.ndarray]): For each metric an array of shape
            (configs, seeds).
    """

    names: list[str]
    values: dict[str, np.ndarray]

    @property
    def seeds(self) -> int:
        """How many seeds there are."""
        return self.values[MAIN_METRICS[0]].shape[1]

    def mean(self, metric: str) -> np.ndarray:
        """Mean over the seeds, shape (configs, )."""
        return self.values[metric].mean(1)

    def spread(self, metric: str) -> np.ndarray:
        """Standard deviation over two or more seeds (of the sample)."""
        return self.values[metric].std(1, ddof=1)

    def difference(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        r"""How far each config is from the baseline, seed by seed.

        With :math:`d_i` the difference at seed :math:`i` of :math:`n > 1`,
        the mean :math:`\bar d` and the half width
        :math:`t_{n-1} \, s_d / \sqrt n` of its confidence interval (paired
        t-test): the same seed gives both the same order of samples.

        Args:
            metric (str): Name of the metric.

        Returns:
            tuple[np.ndarray, np.ndarray]: Mean and half width, each of shape
            (configs, ).
        """
        difference = self.values[metric] - self.values[metric][0]
        n = self.seeds
        return difference.mean(1), (
            t.ppf((1 + CONFIDENCE) / 2, n - 1) * difference.std(1, ddof=1) /
            np.sqrt(n))


def compare(results: Sequence[Mapping[str, Any]]) -> Comparison:
    """Gather runs.

    Args:
        results (Sequence[Mapping]): For each run its ``name``, its ``seed``
            and what ``summarize_nuscenes`` returns.

    Returns:
        Comparison: The configs in the order of their first runs.

    Raises:
        ValueError: A run is missing, or there twice.
    """
    names = list(dict.fromkeys(result['name'] for result in results))
    seeds = sorted({result['seed'] for result in results})
    runs = {(result['name'], result['seed']): flatten(result)
            for result in results}
    if not len(results) == len(runs) == len(names) * len(seeds):
        raise ValueError(f'each of {", ".join(names)} needs one run with each '
                         f'of the seeds {seeds}')
    return Comparison(names, {
        metric: np.array([[runs[name, seed][metric] for seed in seeds]
                          for name in names])
        for metric in flatten(results[0])})


def format_tables(comparison: Comparison) -> str:
    """Write a comparison as two Markdown tables.

    Args:
        comparison (Comparison): What to write.

    Returns:
        str: A table of the main metrics with their differences from the
        baseline, and one of the mean AP of each class.
    """
    names = comparison.names
    columns, classes = {'config': names}, {'config': names}
    for metric in MAIN_METRICS:
        mean = comparison.mean(metric)
        if comparison.seeds == 1:
            columns[metric] = [f'{m:.3f}' for m in mean]
            continue
        columns[metric] = [
            f'{m:.3f} ± {s:.3f}'
            for m, s in zip(mean, comparison.spread(metric))]
        columns[f'{metric}, difference'] = ['', *(
            _difference(d, half)
            for d, half in list(zip(*comparison.difference(metric)))[1:])]
    for metric in comparison.values:
        if metric.startswith('AP/'):
            classes[metric[3:].replace('_', ' ')] = [
                f'{mean:.3f}' for mean in comparison.mean(metric)]
    what = 'One seed: no spread is known.' if comparison.seeds == 1 else (
        f'Mean and standard deviation over {comparison.seeds} seeds; '
        f'difference from {names[0]}, seed by seed, with the half width of '
        f'its {CONFIDENCE:.0%} confidence interval (paired t-test), in bold '
        'where the interval does not hold 0. Each interval is for itself: '
        f'of {round(1 / (1 - CONFIDENCE))} variants that change nothing, one '
        'gets a bold figure by chance.')
    return (f'{what}\n\n{_table(columns)}\nMean AP of each class.\n\n'
            f'{_table(classes)}')


def _difference(mean: float, half: float) -> str:
    text = f'{mean:+.3f} ± {half:.3f}'
    return f'**{text}**' if abs(mean) > half else text


def _table(columns: Mapping[str, Sequence[str]]) -> str:
    rows = [list(columns), ['---'] + ['---:'] * (len(columns) - 1),
            *zip(*columns.values())]
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)
