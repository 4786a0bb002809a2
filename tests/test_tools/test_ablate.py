"""Trainings with several seeds: interrupted, continued, compared."""
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ablate import short_names
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
    assert run['resumed'] and run['versions']['sigplug']
    tables = (out / 'results.md').read_text()
    assert f'| {run["NDS"]:.3f} |' in tables and tables in printed
    assert (out / 'results.png').read_bytes().startswith(b'\x89PNG')

    # What is there is taken, not trained again.
    runs = sorted(work_dir.glob('2*'))
    assert len(runs) == 2
    run['mAP'] = 0.875
    (work_dir / 'result.json').write_text(json.dumps(
        {key: value for key, value in run.items() if key != 'name'}))
    assert '| small | 0.875 |' in run_tool(*args, cwd=folder)
    assert sorted(work_dir.glob('2*')) == runs


@pytest.fixture
def stages(monkeypatch, tmp_path):
    """The tool, with stages that only note what they are asked for.

    The result of a training tells its config and its seed; that of ``b`` with
    the seed 1 fails until it is ``fixed``.
    """
    tool = load_tool('analysis_tools/ablate.py')
    calls = []

    def run_stage(name, program, *args, log=None):
        if name == 'data':
            args[1].mkdir(exist_ok=True)
            (args[1] / 'synthetic_nuscenes.json').write_text('{}')
        elif name == 'train':
            config, _, work_dir, *rest, seed = args
            config, seed = Path(config).stem, int(seed.rpartition('=')[2])
            calls.append(' '.join([config, str(seed), *rest[:-1]]))
            if calls[-1] == 'b 1' and not Path('fixed').exists():
                sys.exit(9)
            last = work_dir / 'epoch_1.pth'
            torch.save(dict(state_dict={}, value=seed / 10 + (
                config == 'b') / 100 + ('--amp' in rest) / 5), last)
            (work_dir / 'last_checkpoint').write_text(str(last))
        else:
            _, checkpoint, _, work_dir = args
            names = ['mAP', 'NDS', 'mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE',
                     'car_AP_dist_0.5']
            (work_dir / 'now').mkdir(parents=True)
            (work_dir / 'now/now.json').write_text(json.dumps(dict.fromkeys(
                names, torch.load(checkpoint)['value'])))

    monkeypatch.setattr(tool, 'run_stage', run_stage)
    monkeypatch.setattr(tool, 'hide_unusable_gpus', lambda: None)
    for name in ('SIGPLUG_DATA_ROOT', 'SIGPLUG_DATA_VERSION'):
        # So that what is set is taken back.
        monkeypatch.setenv(name, '')
    for name in 'ab':
        (tmp_path / f'{name}.py').write_text(f'name = {name!r}')
    return tool, calls


@pytest.mark.filterwarnings('ignore:Precision loss:RuntimeWarning')
def test_order_and_what_a_failure_leaves(stages, tmp_path, run_here):
    """Each seed of all configs, then the next one."""
    tool, calls = stages

    def run():
        # The baseline first; that it is named again does not count.
        return run_here(
            tool, 'b.py', 'a.py', './b.py', '--seeds', 2, '--amp', '--out-dir',
            'out', '--data-root', 'data', cwd=tmp_path)

    code, _ = run()
    assert code == 9
    assert calls == ['b 0', 'a 0', 'b 0 --amp', 'a 0 --amp', 'b 1']
    # The whole first seed is there.
    results = json.loads((tmp_path / 'out/results.json').read_text())
    assert [(row['name'], row['seed'], round(row['mAP'], 9))
            for row in results] == [
        ('b', 0, 0.01), ('a', 0, 0.0), ('b amp', 0, 0.21), ('a amp', 0, 0.2)]

    (tmp_path / 'fixed').touch()
    code, printed = run()
    assert code == 0, printed.err
    assert calls[5:] == ['b 1', 'a 1', 'b 1 --amp', 'a 1 --amp']
    assert 'over 2 seeds; difference from b,' in printed.out
    assert '| b | 0.060 ± 0.071 |  |' in printed.out
    assert '| a amp | 0.250 ± 0.071 | **+0.190 ± 0.000** |' in printed.out
    results = (tmp_path / 'out/results.md').read_text()
    assert results in run()[1].out and len(calls) == 9


def test_two_files_of_the_same_name(tmp_path, fail):
    assert 'two files have the same name' in fail(
        'analysis_tools/ablate.py', 'a.py', 'b/a.py', cwd=tmp_path)


def test_names_are_what_differs(tmp_path):
    stem = 'centerpoint_pillar04_{}_1xb2-onecycle-8e_nus-mini-3d'
    paths = [tmp_path / f'{stem.format(name)}.py'
             for name in ('stock', 'gem-logits', 'gem')]
    assert short_names(paths) == ['stock', 'gem-logits', 'gem']
