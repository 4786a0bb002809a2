"""Comparison of configs that were trained with the same seeds."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .results import TP_ERRORS

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
    """Metrics of several configs, each trained with several seeds.

    Attributes:
        names (list[str]): The configs; the first is the baseline.
        values (dict[str, np.ndarray]): For each metric an array of shape
            (configs, seeds), NaN where a run is missing.
    """

    names: list[str]
    values: dict[str, np.ndarray]

    def mean(self, metric: str) -> np.ndarray:
        """Mean over the seeds, shape (configs, )."""
        return np.nanmean(self.values[metric], axis=1)

    def spread(self, metric: str) -> np.ndarray:
        """Standard deviation over the seeds (of the sample), (configs, ).

        NaN where there is one seed only.
        """
        return np.array([
            np.std(known, ddof=1) if len(known) > 1 else np.nan
            for known in (row[~np.isnan(row)] for row in self.values[metric])
        ])

    def difference(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        r"""How far each config is from the baseline, seed by seed.

        With :math:`d_i` the difference at seed :math:`i` of :math:`n`, the
        mean :math:`\bar d` and the half width
        :math:`t_{n-1} \, s_d / \sqrt n` of its confidence interval (paired
        t-test): the same seed gives both the same order of samples.

        Args:
            metric (str): Name of the metric.

        Returns:
            tuple[np.ndarray, np.ndarray]: Mean and half width, each of shape
            (configs, ); the half width is NaN with fewer than two seeds.
        """
        from scipy.stats import t
        values = self.values[metric]
        mean, half = [], []
        for row in values - values[0]:
            known = row[~np.isnan(row)]
            n = len(known)
            mean.append(known.mean() if n else np.nan)
            half.append(
                t.ppf((1 + CONFIDENCE) / 2, n - 1) *
                np.std(known, ddof=1) / np.sqrt(n) if n > 1 else np.nan)
        return np.array(mean), np.array(half)


def compare(results: Sequence[Mapping[str, Any]]) -> Comparison:
    """Gather runs.

    Args:
        results (Sequence[Mapping]): For each run its ``name``, its ``seed``
            and what :func:`.summarize_nuscenes` returns.

    Returns:
        Comparison: The configs in the order of their first runs.
    """
    names = list(dict.fromkeys(result['name'] for result in results))
    seeds = sorted({result['seed'] for result in results})
    values = {
        metric: np.full((len(names), len(seeds)), np.nan)
        for metric in flatten(results[0])
    }
    for result in results:
        place = names.index(result['name']), seeds.index(result['seed'])
        for metric, value in flatten(result).items():
            values[metric][place] = value
    return Comparison(names, values)


def format_tables(comparison: Comparison) -> str:
    """Write a comparison as two Markdown tables.

    Args:
        comparison (Comparison): What to write.

    Returns:
        str: A table of the main metrics with their differences from the
        baseline, and one of the mean AP of each class.
    """
    names = comparison.names
    columns = {'config': names}
    for metric in MAIN_METRICS:
        mean, spread = comparison.mean(metric), comparison.spread(metric)
        columns[metric] = [_plus_minus(*pair) for pair in zip(mean, spread)]
        columns[f'{metric}, difference'] = ['', *(
            _difference(*pair)
            for pair in list(zip(*comparison.difference(metric)))[1:])]
    classes = {'config': names}
    for metric in comparison.values:
        if metric.startswith('AP/'):
            classes[metric[3:].replace('_', ' ')] = [
                f'{mean:.3f}' for mean in comparison.mean(metric)]
    seeds = comparison.values['mAP'].shape[1]
    return (
        f'Mean and standard deviation over {seeds} seeds; difference from '
        f'{names[0]}, seed by seed, with the half width of its '
        f'{CONFIDENCE:.0%} confidence interval (paired t-test), in bold where '
        'the interval does not hold 0.\n\n'
        f'{_table(columns)}\nMean AP of each class.\n\n{_table(classes)}')


def _plus_minus(mean: float, width: float, sign: str = '') -> str:
    """One run alone has no width."""
    return f'{mean:{sign}.3f}' + (
        '' if np.isnan(width) else f' ± {width:.3f}')


def _difference(mean: float, half: float) -> str:
    text = _plus_minus(mean, half, '+')
    return f'**{text}**' if abs(mean) > half else text


def _table(columns: Mapping[str, Sequence[str]]) -> str:
    rows = [list(columns), ['---'] + ['---:'] * (len(columns) - 1),
            *zip(*columns.values())]
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)
