"""Trainings with several seeds: interrupted, continued, compared."""
import csv
import json
import subprocess
import time

import pytest
from conftest import tool_command


@pytest.mark.slow
def test_interrupted_and_continued(folder, synthetic_nuscenes, run_tool):
    args = ('analysis_tools/ablate.py', 'small.py', '--seeds', 1,
            '--out-dir', 'ablation', '--data-root', synthetic_nuscenes,
            '--difficulty', 'standard', '--samples-per-scene', 3)
    process = subprocess.Popen(tool_command(*args), cwd=folder)
    while not (first := list(folder.glob('ablation/*/seed0/epoch_1.pth'))):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
    work_dir = first[0].parent
    assert not (work_dir / 'result.json').exists()

    printed = run_tool(*args, cwd=folder)
    out = folder / 'ablation'
    run, = json.loads((out / 'results.json').read_text())['runs']
    logged, = work_dir.glob('eval/*/*.json')
    metrics = json.loads(logged.read_text())
    prefix = 'NuScenes metric/pred_instances_3d_NuScenes'
    assert run['name'] == 'small' and run['seed'] == 0
    assert run['NDS'] == metrics[f'{prefix}/NDS']
    powers, = run['powers'].values()
    assert powers == pytest.approx([3.0], abs=0.1) and powers != [3.0]
    with (out / 'results.csv').open() as file:
        row, = csv.DictReader(file)
    assert row['name'] == 'small' and float(row['NDS']) == run['NDS']
    assert {'AP/traffic_cone', 'mAVE', 'seconds'} <= set(row)
    tables = (out / 'results.md').read_text()
    assert f'| {run["NDS"]:.3f} |' in tables and tables in printed
    assert (out / 'results.png').read_bytes().startswith(b'\x89PNG')
    assert not list(out.rglob('*.partial'))

    # What is there is taken, not trained again.
    runs = sorted(work_dir.glob('2*'))
    assert len(runs) == 2
    run['mAP'] = 0.875
    (work_dir / 'result.json').write_text(json.dumps(
        {key: value for key, value in run.items() if key != 'name'}))
    assert '| small | 0.875 |' in run_tool(*args, cwd=folder)
    assert sorted(work_dir.glob('2*')) == runs


@pytest.mark.parametrize('args, words', [
    (['none.py'], 'none.py does not exist'),
    (['a.py', 'a.py'], 'given twice'),
    (['a.py', '--seeds', '0'], '--seeds must be at least 1, got 0'),
    (['a.py', '--out-dir', 'a.py'], 'a.py must be a folder'),
    (['a.py', '--difficulty', 'easy'], "invalid choice: 'easy'"),
])
def test_wrong_arguments(tmp_path, run_tool, args, words):
    (tmp_path / 'a.py').touch()
    assert words in run_tool(
        'analysis_tools/ablate.py', *args, cwd=tmp_path, expect=2)


def test_names_are_what_differs(tools_on_path, tmp_path):
    from ablate import short_names
    stem = 'centerpoint_pillar04_{}_1xb2-onecycle-8e_nus-mini-3d'
    paths = [tmp_path / f'{stem.format(name)}.py'
             for name in ('stock', 'gem-logits', 'gem')]
    assert short_names(paths) == ['stock', 'gem-logits', 'gem']
    # Nothing differs from itself.
    assert short_names(paths[:1]) == [stem.format('stock')]


def test_another_config_or_data_set_is_another_result(tools_on_path):
    from ablate import digest
    from mmengine.config import Config
    keys = {digest(Config(dict(lr=lr)), data) for lr in (1, 2)
            for data in (b'a', b'b')}
    assert len(keys) == 4
    assert digest(Config(dict(lr=1)), b'a') in keys
