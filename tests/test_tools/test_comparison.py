"""The comparison of configs, against values worked out by hand."""
import re

import numpy as np
import pytest
from comparison import difference, format_tables, gather

ERRORS = dict(mATE=0.1, mASE=0.2, mAOE=0.3, mAVE=0.4, mAAE=0.5)


def run(name, seed, value):
    return dict(name=name, seed=seed, mAP=value, NDS=value / 2,
                class_AP=dict(car=value, traffic_cone=0.25), TP_errors=ERRORS)


# Standard deviations of 0.1; differences of 0.02, 0.02, 0.08: mean 0.04,
# deviation 0.034641, half width 4.302653 * 0.034641 / sqrt(3) = 0.086053.
RUNS = [run('a', 0, 0.3), run('b', 0, 0.32), run('a', 1, 0.4),
        run('b', 1, 0.42), run('a', 2, 0.5), run('b', 2, 0.58)]


def test_difference():
    names, values = gather(RUNS)
    assert names == ['a', 'b']
    np.testing.assert_array_equal(values['mAP'][0], [0.3, 0.4, 0.5])
    (mean, ), (half, ) = difference(values['mAP'])
    assert mean == pytest.approx(0.04)
    assert half == pytest.approx(0.086053, rel=1e-5)


def test_tables():
    text = format_tables(*gather(RUNS))
    for row in (
            '| a | 0.400 ± 0.100 |  | 0.200 ± 0.050 |  |',
            '| b | 0.440 ± 0.131 | +0.040 ± 0.086 | 0.220 ± 0.066 '
            '| +0.020 ± 0.043 |',
            '| --- | ---: | ---: | ---: | ---: |',
            '| config | car | traffic cone |', '| b | 0.440 | 0.250 |'):
        assert row in text
    # Bold where the interval does not hold 0.
    clear = [run('a', s, 0.3 + s / 10) for s in range(3)] + [
        run('b', s, 0.4 + s / 10 + s / 1000) for s in range(3)]
    text = format_tables(*gather(clear))
    assert len(re.findall(r'\*\*\+0\.\d+ ± 0\.\d+\*\*', text)) == 2
    # Nothing is clear from one seed.
    alone = format_tables(*gather(RUNS[:2]))
    assert 'One seed' in alone and '± ' not in alone
    assert '| b | 0.320 | 0.160 |' in alone
