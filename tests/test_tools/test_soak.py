"""The long training is judged by what really happened in it."""
import math
import re
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from conftest import load_tool


@pytest.fixture(scope='module')
def soak():
    return load_tool('misc/soak.py')


def records(memory=lambda t: 500.0, files=lambda t: 20, workers=lambda t: 2):
    """An hour that begins with a fast growth, as every program does."""
    rng = np.random.default_rng(0)
    return [
        dict(time=t, memory=memory(t) + min(t, 600) + rng.normal(0, 20),
             files=files(t), threads=4, workers=workers(t))
        for t in np.arange(0, 3600, 5.0)
    ]


def test_nothing_wrong(soak):
    result = soak.judge(records(), [3.0, 2.0])
    assert result['faults'] == []
    assert result['memory']['median'] == pytest.approx(1100, abs=5)
    assert abs(result['memory']['per_hour']) < 10
    assert result['iterations'] == 2 and result['most_workers'] == 2


@pytest.mark.parametrize('changes, losses, words', [
    (dict(memory=lambda t: 500 + 0.02 * t), [1.0], 'memory grows'),
    (dict(files=lambda t: 20 + t // 300), [1.0], 'files grows'),
    (dict(workers=lambda t: 2 + t // 600), [1.0], 'more and more workers'),
    ({}, [1.0, math.nan, math.inf], '2 of 3 losses are not finite'),
    ({}, [], 'no loss'),
])
def test_what_is_wrong(soak, changes, losses, words):
    fault, = soak.judge(records(**changes), losses)['faults']
    assert re.search(words, fault)


def test_slope_is_that_of_most_points(soak):
    times = np.arange(100.0)
    values = 2 * times + 1
    values[::5] = 1e6
    assert soak.slope(times, values) == pytest.approx(2)


def test_damage(soak, tmp_path):
    folder = tmp_path / 'samples' / 'LIDAR_TOP'
    folder.mkdir(parents=True)
    points = np.arange(500, dtype=np.float32)
    for i in range(40):
        (folder / f'{i:02}.bin').write_bytes(points.tobytes())
    damaged = soak.damage_scans(tmp_path, 0.2, 0)
    assert len(damaged) == 8
    assert sorted(damaged.values()) == sorted(2 * soak.DAMAGES)
    for i in range(40):
        scan = folder / f'{i:02}.bin'
        kind = damaged.get(scan.name)
        assert scan.exists() == (kind != 'missing')
        if kind == 'missing':
            continue
        content = scan.read_bytes()
        assert kind != 'empty' or content == b''
        assert kind != 'truncated' or 0 < len(content) < 2000
        assert kind != 'nan' or np.isnan(np.frombuffer(content, 'f4')).all()
        assert kind or content == points.tobytes()


# The parent leaves at once, its child does not listen.
LEAVES_A_CHILD = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print(child.pid, flush=True)
time.sleep(99)
"""


def test_processes_that_stay_behind_are_found_and_ended(soak, monkeypatch):
    monkeypatch.setattr(soak, 'STOP_WITHIN', 3.0)
    process = subprocess.Popen(
        [sys.executable, '-c', LEAVES_A_CHILD], stdout=subprocess.PIPE,
        start_new_session=True)
    child = int(process.stdout.readline())
    records = soak.watch(process, 0.5, 0.2)
    assert [r['workers'] for r in records] == [1] * len(records)
    assert records[0]['memory'] > 1 and records[0]['files'] >= 3
    seconds, left = soak.stop(process)
    assert left == [child] and 3 < seconds < 10
    assert process.poll() == 0
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(child)


def test_a_process_that_ends_early(soak):
    process = subprocess.Popen([sys.executable, '-c', ''],
                               start_new_session=True)
    process.wait()
    assert soak.watch(process, 5, 0.1) == []
    assert soak.stop(process) == (pytest.approx(0, abs=1), [])
