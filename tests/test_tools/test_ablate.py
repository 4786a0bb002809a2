"""Trainings with several seeds: interrupted, continued, compared."""
import csv
import json
import subprocess
import time

import pytest
import torch
from conftest import load_tool, tool_command


@pytest.mark.slow
def test_interrupted_and_continued(folder, synthetic_nuscenes, run_tool):
    args = ('analysis_tools/ablate.py', 'small.py', '--seeds', 1,
            '--out-dir', 'ablation', '--data-root', synthetic_nuscenes,
            '--difficulty', 'standard', '--samples-per-scene', 3)
    process = subprocess.Popen(tool_command(*args), cwd=folder)
    while not (first := list(folder.glob('ablation/*/seed0/last_checkpoint'))):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
    work_dir = first[0].parent
    assert not (work_dir / 'result.json').exists()

    printed = run_tool(*args, cwd=folder)
    out = folder / 'ablation'
    run, = json.loads((out / 'results.json').read_text())
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
    assert {'AP/traffic_cone', 'mAVE'} <= set(row)
    assert run['resumed'] and run['versions']['sigplug']
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


# Tools that note what they were asked for; the result tells config and seed.
STUB_TRAIN = """
import shutil, sys
from pathlib import Path
config, _, work_dir, *rest = sys.argv[1:]
seed = int(rest[-1].rpartition('=')[2])
with open('calls', 'a') as file:
    print(Path(config).stem, seed, *rest[:-2], file=file)
if (Path(config).stem, seed) == ('b', 1) and not Path('fixed').exists():
    sys.exit(9)
shutil.copy('epoch_1.pth', work_dir)
Path(work_dir, 'last_checkpoint').write_text(f'{work_dir}/epoch_1.pth')
Path(work_dir, 'value').write_text(str(
    seed / 10 + 0.01 * (Path(config).stem == 'b') + 0.2 * ('--amp' in rest)))
"""
STUB_TEST = """
import json, sys
from pathlib import Path
config, checkpoint, _, work_dir = sys.argv[1:]
value = float(Path(checkpoint).with_name('value').read_text())
Path(work_dir, 'now').mkdir(parents=True)
names = ['mAP', 'NDS', 'mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE',
         'car_AP_dist_0.5']
Path(work_dir, 'now/now.json').write_text(json.dumps(
    dict.fromkeys(names, value)))
"""
STUB_DATA = """
import sys
from pathlib import Path
root = Path(sys.argv[sys.argv.index('--out') + 1])
root.mkdir(exist_ok=True)
(root / 'synthetic_nuscenes.json').write_text('{}')
"""


def test_order_and_what_a_failure_leaves(tools_on_path, tmp_path,
                                         monkeypatch, run_here):
    """Each seed of all configs, then the next one; stub tools."""
    for name, source in (
            ('train.py', STUB_TRAIN), ('test.py', STUB_TEST),
            ('dataset_converters/create_synthetic_nuscenes.py', STUB_DATA)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    tool = load_tool('analysis_tools/ablate.py')
    monkeypatch.setattr(tool, 'TOOLS', tmp_path)
    monkeypatch.setattr(tool, 'hide_unusable_gpus', lambda: None)
    for name in ('SIGPLUG_DATA_ROOT', 'SIGPLUG_DATA_VERSION'):
        # So that what is set is taken back.
        monkeypatch.setenv(name, '')
    torch.save(dict(state_dict={}), tmp_path / 'epoch_1.pth')
    for name in 'ab':
        (tmp_path / f'{name}.py').write_text(f'name = {name!r}')

    def run(expected):
        # The baseline first; that it is named again does not count.
        code, printed = run_here(
            tool, 'b.py', 'a.py', './b.py', '--seeds', 2, '--amp', '--out-dir',
            'out', '--data-root', 'data', cwd=tmp_path)
        assert code == expected, printed.err
        return printed

    calls = ['b 0', 'a 0', 'b 0 --amp', 'a 0 --amp', 'b 1']
    error = run(9).err
    assert "the stage 'train' failed with exit code 9" in error
    assert (tmp_path / 'calls').read_text().splitlines() == calls
    # The whole first seed is there.
    with (tmp_path / 'out/results.csv').open() as file:
        assert [(row['name'], row['seed'], round(float(row['mAP']), 9))
                for row in csv.DictReader(file)] == [
            ('b', '0', 0.01), ('a', '0', 0.0), ('b amp', '0', 0.21),
            ('a amp', '0', 0.2)]

    (tmp_path / 'fixed').touch()
    printed = run(0).out
    assert (tmp_path / 'calls').read_text().splitlines() == [
        *calls, 'b 1', 'a 1', 'b 1 --amp', 'a 1 --amp']
    assert 'over 2 seeds; difference from b,' in printed
    assert '| b | 0.060 ± 0.071 |  |' in printed
    assert '| a amp | 0.250 ± 0.071 | **+0.190 ± 0.000** |' in printed
    results = (tmp_path / 'out/results.md').read_text()
    assert results in run(0).out
    assert len((tmp_path / 'calls').read_text().splitlines()) == 9


@pytest.mark.parametrize('args, words', [
    (['a.py', 'b/a.py'], 'two files have the same name'),
    (['a.py', '--seeds', '0'], '--seeds must be at least 1, got 0'),
])
def test_wrong_arguments(tools_on_path, tmp_path, run_here, args, words):
    (tmp_path / 'b').mkdir()
    for name in ('a.py', 'b/a.py'):
        (tmp_path / name).touch()
    code, printed = run_here('analysis_tools/ablate.py', *args, cwd=tmp_path)
    assert code == 2 and words in printed.err


def test_names_are_what_differs(tools_on_path, tmp_path):
    from ablate import short_names
    stem = 'centerpoint_pillar04_{}_1xb2-onecycle-8e_nus-mini-3d'
    paths = [tmp_path / f'{stem.format(name)}.py'
             for name in ('stock', 'gem-logits', 'gem')]
    assert short_names(paths) == ['stock', 'gem-logits', 'gem']
