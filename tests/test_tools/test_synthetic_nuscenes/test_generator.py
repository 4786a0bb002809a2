"""The folder: determinism, completeness, what is replaced and what never."""
import filecmp
import os
import re
import signal
import subprocess
import time
from dataclasses import replace

import pytest
from conftest import tool_command
from synthetic_nuscenes import (
    GeneratorConfig,
    generate_synthetic_nuscenes,
    generator,
)

TINY = GeneratorConfig(
    samples_per_scene=2, intermediate_sweeps=0, scenes=('scene-0103', ))
COMMAND = tool_command(
    'dataset_converters/create_synthetic_nuscenes.py', '--samples-per-scene',
    2, '--intermediate-sweeps', 0, '--scenes', 'scene-0103')


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob('*')
                  if path.is_file())


def assert_equal_folders(first, second):
    assert files(first) == files(second)
    _, differ, errors = filecmp.cmpfiles(
        first, second, files(first), shallow=False)
    assert not differ and not errors


def state(root):
    return [(name, (root / name).stat().st_mtime_ns,
             (root / name).stat().st_size) for name in files(root)]


@pytest.fixture
def tiny(tmp_path):
    root = tmp_path / 'tiny'
    assert generate_synthetic_nuscenes(root, TINY)
    return root


# -- reproducible -----------------------------------------------------------
def test_bytes_do_not_depend_on_workers(tmp_path, monkeypatch):
    config = replace(TINY, samples_per_scene=5, seed=3)
    monkeypatch.setattr(generator, 'SWEEPS_PER_JOB', 1)
    for workers in (1, 2):
        assert generate_synthetic_nuscenes(tmp_path / str(workers), config,
                                           workers)
    assert_equal_folders(tmp_path / '1', tmp_path / '2')


# -- complete or absent -----------------------------------------------------
def test_existing_data_set_is_kept_unless_forced(tiny):
    before, other = state(tiny), replace(TINY, seed=5)
    assert not generate_synthetic_nuscenes(tiny, TINY)
    with pytest.raises(ValueError, match="seed': 0.* not .*seed': 5.*--for"):
        generate_synthetic_nuscenes(tiny, other)
    assert state(tiny) == before
    assert generate_synthetic_nuscenes(tiny, other, force=True)
    assert not generate_synthetic_nuscenes(tiny, other)
    assert os.listdir(tiny.parent) == ['tiny']


def test_damaged_data_set_is_noticed(tiny):
    next((tiny / 'samples/LIDAR_TOP').iterdir()).unlink()
    with pytest.raises(ValueError, match='missing or changed.*--force'):
        generate_synthetic_nuscenes(tiny, TINY)
    assert generate_synthetic_nuscenes(tiny, TINY, force=True)
    assert not generate_synthetic_nuscenes(tiny, TINY)


@pytest.mark.parametrize('force', [False, True])
@pytest.mark.parametrize('name', ['out', 'out/v1.0-mini/sample.json'])
def test_what_is_foreign_is_never_touched(tmp_path, name, force):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('mine')
    with pytest.raises(ValueError, match='stays untouched'):
        generate_synthetic_nuscenes(tmp_path / 'out', TINY, force=force)
    assert path.read_text() == 'mine'
    assert os.listdir(tmp_path) == ['out']


def test_run_in_progress_is_left_alone(tmp_path):
    out = tmp_path / 'out'
    with generator._staging_folder(out) as other:
        (other / 'file').write_text('in progress')
        with pytest.raises(ValueError, match='another run is writing'):
            generate_synthetic_nuscenes(out, TINY)
        assert (other / 'file').exists()
        (other / 'file').unlink()
    assert generate_synthetic_nuscenes(out, TINY)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_killed_run(tmp_path, number):
    out = tmp_path / 'out'
    process = subprocess.Popen(
        [*COMMAND, '--out', out, '--intermediate-sweeps', '9',
         '--samples-per-scene', '20', '--workers', '2'],
        stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not any(tmp_path.glob('.out*/new/samples/*/*.bin')):
        assert time.monotonic() < end, 'nothing for a minute'
        time.sleep(0.02)
    process.send_signal(number)
    # The workers hold the pipe open until they end.
    message = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and 'Traceback' not in message
    if number == signal.SIGTERM:
        assert list(tmp_path.iterdir()) == []
        return
    # Nobody could clean up: the next run does.
    assert list(tmp_path.iterdir()) == [tmp_path / '.out.incomplete']
    assert generate_synthetic_nuscenes(out, TINY)
    assert list(tmp_path.iterdir()) == [out]


# -- the tool ---------------------------------------------------------------
def test_tool(tiny, tmp_path):
    def run(*arguments, **variables):
        done = subprocess.run(
            [*COMMAND, '--out', tmp_path / 'made', '--workers', '1',
             *arguments], cwd=tmp_path, capture_output=True, text=True,
            env=os.environ | variables)
        assert 'Traceback' not in done.stderr
        return done.returncode, done.stdout + done.stderr

    code, printed = run()
    assert code == 0 and 'Wrote' in printed and '2/2' in printed
    assert_equal_folders(tiny, tmp_path / 'made')
    (tmp_path / 'embreex.py').write_text(
        'raise ModuleNotFoundError("No module named \'embreex\'")')
    for arguments, variables, code, message in (
            ((), {}, 0, 'already complete'),
            (('--seed', '1'), {}, 1, 'error: .*--force'),
            (('--samples-per-scene', '0'), {}, 1, 'error: samples_per_scene'),
            ((), dict(PYTHONPATH=str(tmp_path)), 1, 'pip install embreex')):
        found, printed = run(*arguments, **variables)
        assert found == code and re.search(message, printed), printed
