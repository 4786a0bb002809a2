"""The folder: determinism, completeness, what is replaced and what never."""
import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import load_tool

from sigplug.datasets import (
    GeneratorConfig,
    TargetFolderError,
    generate_synthetic_nuscenes,
)
from sigplug.datasets.synthetic import generator

TINY = GeneratorConfig(
    samples_per_scene=2, intermediate_sweeps=0, scenes=('scene-0103', ))
TOOL = Path(__file__).parents[3] / (
    'tools/dataset_converters/create_synthetic_nuscenes.py')


def files(root):
    return sorted(
        str(path.relative_to(root)) for path in root.rglob('*')
        if path.is_file())


def assert_equal_folders(first, second):
    assert files(first) == files(second)
    _, differ, errors = filecmp.cmpfiles(
        first, second, files(first), shallow=False)
    assert not differ and not errors


def state(root):
    return [(name, (root / name).stat().st_mtime_ns, (root / name).stat().
             st_size) for name in files(root)]


@pytest.fixture
def tiny(tmp_path):
    root = tmp_path / 'tiny'
    assert generate_synthetic_nuscenes(root, TINY)
    return root


# -- reproducible -----------------------------------------------------------
def test_bytes_do_not_depend_on_workers(tmp_path, monkeypatch):
    config = GeneratorConfig(
        seed=3, samples_per_scene=3, scenes=('scene-0916', 'scene-0553'))
    monkeypatch.setattr(generator, 'SWEEPS_PER_JOB', 2)
    for workers in (1, 3):
        assert generate_synthetic_nuscenes(tmp_path / str(workers), config,
                                           workers)
    assert_equal_folders(tmp_path / '1', tmp_path / '3')


def test_another_seed_gives_another_data_set(tiny, tmp_path):
    other = GeneratorConfig(
        seed=1, samples_per_scene=2, intermediate_sweeps=0,
        scenes=TINY.scenes)
    generate_synthetic_nuscenes(tmp_path / 'other', other)
    table = 'v1.0-mini/sample_annotation.json'
    rows = [json.loads((root / table).read_text())
            for root in (tiny, tmp_path / 'other')]
    assert not {r['token'] for r in rows[0]} & {r['token'] for r in rows[1]}
    sizes = [{tuple(r['size']) for r in part} for part in rows]
    assert not sizes[0] & sizes[1]


def test_key_frames_do_not_depend_on_the_sweeps_between(tiny, tmp_path):
    config = GeneratorConfig(
        samples_per_scene=2, intermediate_sweeps=2, scenes=TINY.scenes)
    generate_synthetic_nuscenes(tmp_path / 'more', config)
    assert_equal_folders(tiny / 'samples', tmp_path / 'more/samples')
    assert len(files(tmp_path / 'more/sweeps')) == 2


def test_order_of_scenes_does_not_matter():
    assert GeneratorConfig(scenes=['scene-0103', 'scene-0061']) == \
        GeneratorConfig(scenes=('scene-0061', 'scene-0103'))


def test_no_path_of_this_machine_in_the_files(tiny):
    for name in files(tiny):
        assert str(tiny.parent).encode() not in (tiny / name).read_bytes()


# -- complete or absent -----------------------------------------------------
def test_existing_data_set_is_kept(tiny):
    before = state(tiny)
    assert not generate_synthetic_nuscenes(tiny, TINY)
    assert state(tiny) == before


def test_empty_folder_is_filled(tmp_path):
    root = tmp_path / 'nested' / 'empty'
    root.mkdir(parents=True)
    assert generate_synthetic_nuscenes(root, TINY)
    assert (root / generator.MANIFEST).is_file()
    assert os.listdir(root.parent) == ['empty']


def test_other_arguments_need_force(tiny):
    before = state(tiny)
    other = GeneratorConfig(
        seed=5, samples_per_scene=2, intermediate_sweeps=0,
        scenes=TINY.scenes)
    with pytest.raises(TargetFolderError,
                       match=r'seed is 0, not 5.*--force'):
        generate_synthetic_nuscenes(tiny, other)
    assert state(tiny) == before
    assert generate_synthetic_nuscenes(tiny, other, force=True)
    assert json.loads((tiny / generator.MANIFEST).read_text())['seed'] == 5
    assert os.listdir(tiny.parent) == ['tiny']
    assert not generate_synthetic_nuscenes(tiny, other)


def test_difficulty_is_another_data_set(tiny, tmp_path):
    hard = replace(TINY, difficulty='hard')
    with pytest.raises(TargetFolderError,
                       match='difficulty is standard, not hard'):
        generate_synthetic_nuscenes(tiny, hard)
    generate_synthetic_nuscenes(tmp_path / 'hard', hard)
    easy, less = (
        sum(path.stat().st_size for path in root.rglob('*.bin'))
        for root in (tiny, tmp_path / 'hard'))
    assert 0.3 * easy < less < 0.5 * easy


def test_manifest_from_before_there_was_a_choice(tiny):
    path = tiny / generator.MANIFEST
    manifest = json.loads(path.read_text())
    assert manifest.pop('difficulty') == 'standard'
    path.write_text(json.dumps(manifest))
    assert not generate_synthetic_nuscenes(tiny, TINY)


def test_unknown_difficulty():
    with pytest.raises(ValueError, match='difficulty must be one of standard, '
                       "hard; got 'easy'"):
        GeneratorConfig(difficulty='easy')


def test_damaged_data_set_is_noticed(tiny):
    next((tiny / 'samples/LIDAR_TOP').iterdir()).unlink()
    with pytest.raises(TargetFolderError, match='missing or changed.*--force'):
        generate_synthetic_nuscenes(tiny, TINY)
    assert generate_synthetic_nuscenes(tiny, TINY, force=True)
    assert not generate_synthetic_nuscenes(tiny, TINY)


@pytest.mark.parametrize('force', [False, True])
def test_foreign_folder_is_never_touched(tmp_path, force):
    root = tmp_path / 'nuscenes'
    (root / 'v1.0-mini').mkdir(parents=True)
    (root / 'v1.0-mini/sample.json').write_text('[]')
    before = state(root)
    with pytest.raises(TargetFolderError, match='stays untouched'):
        generate_synthetic_nuscenes(root, TINY, force=force)
    assert state(root) == before
    assert os.listdir(tmp_path) == ['nuscenes']


def test_file_in_the_way(tmp_path):
    (tmp_path / 'out').write_text('mine')
    with pytest.raises(TargetFolderError, match='stays untouched'):
        generate_synthetic_nuscenes(tmp_path / 'out', TINY, force=True)
    assert (tmp_path / 'out').read_text() == 'mine'


def test_added_files_are_not_lost_by_force(tiny):
    (tiny / 'nuscenes_dbinfos_train.pkl').write_text('made later')
    assert not generate_synthetic_nuscenes(tiny, TINY)
    with pytest.raises(TargetFolderError, match='nuscenes_dbinfos_train.pkl'):
        generate_synthetic_nuscenes(tiny, TINY, force=True)
    assert (tiny / 'nuscenes_dbinfos_train.pkl').exists()


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_failure_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(path, content):
        raise error

    monkeypatch.setattr(generator, '_dump_pickle', fail)
    with pytest.raises(error):
        generate_synthetic_nuscenes(tmp_path / 'out', TINY)
    assert os.listdir(tmp_path) == []


def test_failed_replacement_keeps_the_old_data_set(tiny, monkeypatch):
    def fail(path, content):
        raise OSError('disk full')

    before = state(tiny)
    monkeypatch.setattr(generator, '_dump_pickle', fail)
    with pytest.raises(OSError, match='disk full'):
        generate_synthetic_nuscenes(tiny, TINY, force=True)
    assert state(tiny) == before
    assert os.listdir(tiny.parent) == ['tiny']


def children_of(pid):
    found = []
    for entry in Path('/proc').glob('[0-9]*/stat'):
        try:
            parent = entry.read_text().rpartition(')')[2].split()[1]
        except OSError:
            continue
        if parent == str(pid):
            found.append(int(entry.parent.name))
    return found


def runs(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(
            ')')[2].split()[0] != 'Z'
    except OSError:
        return False


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, 'waited for a minute'
        time.sleep(0.02)


@pytest.mark.skipif(not Path('/proc').is_dir(), reason='needs /proc')
@pytest.mark.parametrize('number',
                         [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_run(tmp_path, number):
    out = tmp_path / 'out'
    process = subprocess.Popen(
        [sys.executable, TOOL, '--out', out, '--workers', '2'],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A shell starts its background jobs with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_until(lambda: any(tmp_path.glob('.out*/samples/*/*.bin')))
    workers = children_of(process.pid)
    assert len(workers) == 2
    if number == signal.SIGINT:  # Ctrl-C reaches the workers as well
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    message = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert 'Traceback' not in message
    wait_until(lambda: not any(runs(pid) for pid in workers))
    assert not out.exists()
    if number == signal.SIGKILL:  # nobody could clean up: the next run does
        assert len(list(tmp_path.glob('.out.incomplete-*'))) == 1
    else:
        assert list(tmp_path.iterdir()) == []
    assert generate_synthetic_nuscenes(out, TINY)
    assert list(tmp_path.iterdir()) == [out]


def test_run_in_progress_is_left_alone(tmp_path):
    with generator._staging_folder(tmp_path / 'out') as other:
        (other / 'file').write_text('in progress')
        assert generate_synthetic_nuscenes(tmp_path / 'out', TINY)
        assert (other / 'file').exists()
    assert os.listdir(tmp_path) == ['out']


def use_staging_folders(out):
    for _ in range(200):
        with generator._staging_folder(out) as staging:
            (staging / 'file').write_text('in progress')


def test_runs_at_once_leave_one_another_alone(tmp_path):
    """None takes the new folder of another for one that was left."""
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(use_staging_folders, [tmp_path / 'out'] * 4))
    assert list(tmp_path.iterdir()) == []


# -- arguments --------------------------------------------------------------
@pytest.mark.parametrize('arguments, message', [
    (dict(seed=-1), 'seed.*-1'),
    (dict(samples_per_scene=1), 'samples_per_scene.*1'),
    (dict(intermediate_sweeps=10), 'intermediate_sweeps.*10'),
    (dict(intermediate_sweeps=-1), 'intermediate_sweeps.*-1'),
    (dict(scenes=('scene-0001', )), 'scene-0061.*got scene-0001'),
    (dict(scenes=()), 'got none'),
])
def test_bad_config(arguments, message):
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**arguments)


def test_bad_workers(tmp_path):
    with pytest.raises(ValueError, match='workers.*0'):
        generate_synthetic_nuscenes(tmp_path / 'out', TINY, workers=0)
    assert os.listdir(tmp_path) == []


def test_sweep_times():
    config = GeneratorConfig(samples_per_scene=3, intermediate_sweeps=4)
    assert config.sweep_offsets_us == list(range(0, 1_000_001, 100_000))
    even = GeneratorConfig(samples_per_scene=2, intermediate_sweeps=2)
    assert even.sweep_offsets_us == [0, 166_666, 333_333, 500_000]


@pytest.fixture
def run_tool(monkeypatch, capsys):
    module = load_tool(TOOL)
    monkeypatch.setattr(signal, 'signal', lambda *_: None)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['tool', *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return run


def test_tool(run_tool, tiny, tmp_path):
    arguments = ('--out', tmp_path / 'made', '--seed', 0,
                 '--samples-per-scene', 2, '--intermediate-sweeps', 0,
                 '--scenes', 'scene-0103', '--workers', 1)
    assert 'Wrote' in run_tool(*arguments)
    assert_equal_folders(tiny, tmp_path / 'made')
    assert 'already complete' in run_tool(*arguments)
    with pytest.raises(SystemExit, match='error: .*--force'):
        run_tool(*arguments, '--seed', 1)
    assert 'Wrote' in run_tool(*arguments, '--seed', 1, '--force')
    with pytest.raises(SystemExit, match='error: samples_per_scene.*got 0'):
        run_tool(*arguments, '--samples-per-scene', 0)


def test_progress_bar_counts_sweeps(tiny, tmp_path, capsys):
    generate_synthetic_nuscenes(tmp_path / 'out', TINY)
    assert '2/2' in capsys.readouterr().err


def test_points_have_five_floats(tiny):
    for path in (tiny / 'samples/LIDAR_TOP').iterdir():
        assert path.stat().st_size % 20 == 0
        points = np.fromfile(path, np.float32).reshape(-1, 5)
        assert 20_000 < len(points) < 34_560
        assert np.isfinite(points).all()
