"""The main job, with a small data set and few iterations."""
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import TOOLS, tool_command


def test_failing_stage_is_named_with_its_command(tmp_path):
    """The data root is taken: a stage fails, and nothing after it runs."""
    (tmp_path / 'taken').write_text('')
    done = subprocess.run(
        tool_command('quickstart.py', '--data-root', 'taken', '--work-dir',
                     'work'),
        cwd=tmp_path,
        capture_output=True,
        text=True)
    assert done.returncode == 1
    assert "the stage 'data' failed with exit code 1" in done.stderr
    assert 'SIGPLUG_DATA_ROOT=taken/ ' in done.stderr
    assert ('create_synthetic_nuscenes.py --out taken --seed 0'
            ) in done.stderr
    assert 'Traceback' not in done.stderr
    assert '=== train' not in done.stdout
    assert not (tmp_path / 'work/summary.json').exists()


def test_config_with_a_data_set_of_its_own(tmp_path, fail):
    earlier = tmp_path / 'work_dirs/quickstart/summary.json'
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    (tmp_path / 'own.py').write_text(
        "train_dataloader = dict(dataset=dict(data_root='other'))")
    printed = fail('quickstart.py', '--config', 'own.py', '--data-root',
                   'mine', cwd=tmp_path)
    assert earlier.exists()
    assert "train_dataloader.dataset.data_root = 'other'" in printed
    assert "in place of 'mine'" in printed
    assert not (tmp_path / 'mine').exists()


@pytest.mark.parametrize('given, passed', [
    ([], []), (['--resume', '--amp'], ['--amp', '--resume'])])
def test_flags_reach_the_training(tmp_path, given, passed):
    """Programs that only note their arguments take the place of the tools."""
    shutil.copy(TOOLS / 'quickstart.py', tmp_path)
    (tmp_path / 'dataset_converters').mkdir()
    for name in ('dataset_converters/create_synthetic_nuscenes.py',
                 'train.py'):
        (tmp_path / name).write_text(
            'import json, sys\n'
            "json.dump(sys.argv[1:], open('arguments.json', 'w'))\n"
            f"sys.exit(7 if {name!r} == 'train.py' else 0)\n")
    (tmp_path / 'c.py').touch()
    done = subprocess.run(
        [sys.executable, 'quickstart.py', '--config', 'c.py', *given],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True,
        text=True)
    assert done.returncode == 7, done.stderr
    assert json.loads((tmp_path / 'arguments.json').read_text()) == [
        'c.py', '--work-dir', 'work_dirs/quickstart', *passed, '--cfg-options',
        'randomness.seed=0']


@pytest.mark.slow
def test_quickstart(folder, synthetic_nuscenes, run_tool):
    """All stages, and a summary of what they left."""
    work_dir = folder / 'quickstart'
    work_dir.mkdir()
    # What an earlier run left must not survive.
    (work_dir / 'summary.json').write_text('{}')
    (work_dir / 'bev').mkdir()
    (work_dir / 'bev/old.png').touch()
    printed = run_tool(
        'quickstart.py', '--config', 'small.py', '--work-dir', 'quickstart',
        '--data-root', synthetic_nuscenes, '--samples-per-scene', 3,
        '--seed', 7, cwd=folder)

    summary = json.loads((work_dir / 'summary.json').read_text())
    metrics = summary['metrics']
    assert len(metrics['class_AP']) == 10
    assert all(0 <= ap <= 1 for ap in metrics['class_AP'].values())
    assert metrics['mAP'] == pytest.approx(
        sum(metrics['class_AP'].values()) / 10, abs=1e-4)
    errors = metrics['TP_errors']
    assert list(errors) == ['mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE']
    # The definition of the nuScenes detection score.
    assert metrics['NDS'] == pytest.approx(
        (5 * metrics['mAP'] + sum(max(0, 1 - e) for e in errors.values())) /
        10,
        abs=1e-4)
    assert summary['seed'] == 7 and summary['config'] == 'small.py'
    assert list(summary['stages']) == [
        'data', 'train', 'test', 'pictures', 'curve'
    ]
    for stage in summary['stages'].values():
        assert stage['seconds'] > 0 and stage['peak_memory_mib'] > 20
    assert summary['peak_memory_mib'] == summary['stages']['train'][
        'peak_memory_mib'] > 200
    assert {'python', 'torch', 'mmcv', 'mmdet3d', 'sigplug',
            'numpy'} <= set(summary['versions'])
    assert summary['machine']['cores'] > 0 and summary['machine']['cpu']

    files = summary['files']
    assert len(files['pictures']) == 4
    for name in [*files['pictures'], files['curve']]:
        assert (folder / name).read_bytes().startswith(b'\x89PNG')
        assert name in printed
    assert not (work_dir / 'bev/old.png').exists()
    assert (folder / files['checkpoint']).name == 'epoch_3.pth'
    log, = work_dir.glob('2*/*.log')
    assert 'seed: 7' in log.read_text()
    assert not list(work_dir.glob('*.partial'))
