"""The comparison, against values worked out by hand and by scipy."""
import re

import numpy as np
import pytest
from conftest import load_tool
from scipy.stats import ttest_1samp

comparison = load_tool('analysis_tools/comparison.py')
gather = comparison.gather


def tables(runs):
    return comparison.format_tables(*gather(runs))


ERRORS = dict(mATE=0.1, mASE=0.2, mAOE=0.3, mAVE=0.4, mAAE=0.5)


def run(name, seed, value):
    return dict(name=name, seed=seed, mAP=value, NDS=value / 2,
                class_AP=dict(car=value, traffic_cone=0.25), TP_errors=ERRORS)


# Standard deviations of 0.1; differences of 0.02, 0.02, 0.08: mean 0.04,
# deviation 0.034641, half width 4.302653 * 0.034641 / sqrt(3) = 0.086053.
RUNS = [run('a', 0, 0.3), run('b', 0, 0.32), run('a', 1, 0.4),
        run('b', 1, 0.42), run('a', 2, 0.5), run('b', 2, 0.58)]


def test_worked_example():
    names, values = gather(RUNS)
    assert names == ['a', 'b']
    np.testing.assert_array_equal(values['mAP'][0], [0.3, 0.4, 0.5])
    mean, half = comparison.difference(values['mAP'])
    assert mean[0] == half[0] == 0
    assert mean[1] == pytest.approx(0.04)
    assert half[1] == pytest.approx(0.086053, rel=1e-5)


def test_interval_is_that_of_scipys_paired_test():
    values = np.random.default_rng(0).random((2, 5))
    mean, half = comparison.difference(values)
    low, high = ttest_1samp(values[1] - values[0], 0).confidence_interval()
    assert (mean[1] - half[1], mean[1] + half[1]) == pytest.approx((low, high))


@pytest.mark.parametrize('runs', [RUNS[:5], RUNS + RUNS[-1:]])
def test_each_config_needs_one_run_with_each_seed(runs):
    with pytest.raises(ValueError, match=r'each of a, b needs one run with '
                       r'each of the seeds \[0, 1, 2\]'):
        gather(runs)


def test_tables():
    text = tables(RUNS)
    rows = {row[0]: row[1:] for row in (
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in reversed(text.splitlines()) if line.startswith('|'))}
    assert rows['a'] == ['0.400 ± 0.100', '', '0.200 ± 0.050', '']
    assert rows['b'] == ['0.440 ± 0.131', '+0.040 ± 0.086',
                         '0.220 ± 0.066', '+0.020 ± 0.043']
    assert '| b | 0.440 | 0.250 |' in text and 'traffic cone' in text


def test_bold_where_the_interval_does_not_hold_zero():
    clear = [run('a', s, 0.3 + s / 10) for s in range(3)] + [
        run('b', s, 0.4 + s / 10 + s / 1000) for s in range(3)]
    text = tables(clear)
    assert len(re.findall(r'\*\*\+0\.\d+ ± 0\.\d+\*\*', text)) == 2
    # Nothing is clear from one seed.
    alone = tables(RUNS[:2])
    assert 'One seed' in alone and '± ' not in alone
    assert '| b | 0.320 | 0.160 |' in alone
