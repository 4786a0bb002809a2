"""The main job, with a small data set and few iterations."""
import json

import pytest
from conftest import load_tool


@pytest.fixture
def tool(monkeypatch):
    """The tool in this process; its look for a GPU is tested by itself."""
    tool = load_tool('quickstart.py')
    monkeypatch.setattr(tool, 'hide_unusable_gpus', lambda: None)
    for name in ('SIGPLUG_DATA_ROOT', 'SIGPLUG_DATA_VERSION',
                 'SIGPLUG_RESUME'):
        # So that what is set is taken back.
        monkeypatch.setenv(name, '')
    return tool


def test_flags_reach_the_training(tool, tmp_path, monkeypatch, run_here):
    """Programs that only note their arguments take the place of the tools."""
    monkeypatch.setattr(tool, 'TOOLS', tmp_path)
    (tmp_path / 'dataset_converters').mkdir()
    for name, code in (
            ('dataset_converters/create_synthetic_nuscenes.py', 0),
            ('train.py', 7)):
        (tmp_path / name).write_text(
            'import json, os, sys\n'
            "json.dump([*sys.argv[1:], os.environ['SIGPLUG_RESUME']], "
            "open('arguments.json', 'w'))\n"
            f'sys.exit({code})\n')
    (tmp_path / 'c.py').touch()
    monkeypatch.setenv('MAKELEVEL', '1')
    for given in ([], ['--amp', '--resume']):
        code, _ = run_here(tool, '--config', 'c.py', *given, cwd=tmp_path)
        assert code == 7
        assert json.loads((tmp_path / 'arguments.json').read_text()) == [
            'c.py', '--work-dir', 'work_dirs/quickstart', *given,
            '--cfg-options', 'randomness.seed=0',
            'train_cfg.val_begin=1000',
            # What the training says where it is stopped.
            "make quickstart ARGS='--config c.py "
            f"{'--amp ' * bool(given)}--resume'"]


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
    assert metrics['mAP'] == pytest.approx(
        sum(metrics['class_AP'].values()) / 10, abs=1e-4)
    assert summary['seed'] == 7 and summary['config'] == 'small.py'
    assert list(summary['stages']) == [
        'data', 'train', 'test', 'pictures', 'curve'
    ]
    assert summary['seconds'] == pytest.approx(
        sum(summary['stages'].values()), abs=0.1)
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
