"""The long training is judged by what really happened in it."""
import math
import re

import numpy as np
import pytest
from conftest import load_tool


@pytest.fixture(scope='module')
def soak():
    return load_tool('misc/soak.py')


def records(**changes):
    """Return records with a fast growth at first, as every program has it."""
    noise = np.random.default_rng(0).normal(0, 20, 720)
    steady = dict(memory=lambda i: 500 + min(i, 120), files=lambda i: 20,
                  threads=lambda i: 4, workers=lambda i: 2) | changes
    return [{name: value(i) + (noise[i] if name == 'memory' else 0)
             for name, value in steady.items()} for i in range(720)]


def test_nothing_wrong(soak):
    result = soak.judge(records(), [3.0, 2.0])
    assert result['faults'] == [] and result['iterations'] == 2
    assert result['memory'] == pytest.approx([620, 620], abs=5)


@pytest.mark.parametrize('changes, losses, words', [
    (dict(memory=lambda i: 500 + 0.1 * i), [1.0], 'memory grew from 5'),
    (dict(workers=lambda i: 2 + i // 300), [1.0], 'workers grew from 2 to 4'),
    ({}, [1.0, math.nan, math.inf], '2 of 3 losses are not finite'),
])
def test_what_is_wrong(soak, changes, losses, words):
    fault, = soak.judge(records(**changes), losses)['faults']
    assert re.search(words, fault)


def test_a_tenth_of_the_scans_is_damaged_in_four_ways(soak, tmp_path):
    folder = tmp_path / 'samples/LIDAR_TOP'
    folder.mkdir(parents=True)
    scans = [folder / f'{i:02d}.pcd.bin' for i in range(40)]
    for scan in scans:
        scan.write_bytes(bytes(200))
    assert soak.damage_scans(tmp_path) == 4
    nan, cut, empty, missing = scans[::10]
    assert np.isnan(np.fromfile(nan, np.float32)).all()
    assert nan.stat().st_size % 20 == 0 < cut.stat().st_size % 20
    assert empty.stat().st_size == 0 and not missing.exists()
    assert sum(scan.exists() and scan.read_bytes() == bytes(200)
               for scan in scans) == 36
