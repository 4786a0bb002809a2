"""train.py and test.py, run as a user runs them."""
import json
import pickle
import runpy
import signal
import subprocess
import time

import mmengine
import numpy as np
import pytest
import torch
from conftest import (
    QUICKSTART,
    TOOLS,
    assert_same_training,
    load,
    tool_command,
)


@pytest.fixture(scope='module')
def uninterrupted(folder, run_tool):
    run_tool('train.py', 'small.py', cwd=folder)
    # The default work dir.
    return folder / 'work_dirs/small'


@pytest.fixture(scope='module')
def resumed(folder, run_tool):
    """The same training, killed after its first checkpoint and resumed."""
    work_dir = folder / 'killed'
    arguments = ('small.py', '--work-dir', 'killed')
    with open(folder / 'killed.log', 'w') as log:
        process = subprocess.Popen(
            tool_command('train.py', *arguments),
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT)
        while not (work_dir / 'last_checkpoint').exists():
            assert process.poll() is None, (folder / 'killed.log').read_text()
            time.sleep(0.02)
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (work_dir / 'epoch_3.pth').exists()
    printed = run_tool('train.py', *arguments, '--resume', cwd=folder)
    return work_dir, printed


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(uninterrupted, resumed):
    work_dir, printed = resumed
    assert '--resume: training continues from ' in printed
    assert 'resumed epoch: 1, iter: 2' in printed
    assert_same_training(work_dir, uninterrupted)


@pytest.mark.slow
def test_test_evaluates_and_writes_predictions(folder, synthetic_nuscenes,
                                               run_here, uninterrupted):
    code, printed = run_here(
        'test.py', 'small.py', uninterrupted / 'epoch_3.pth', '--work-dir',
        'eval', '--out', 'predictions.pkl', cwd=folder)
    assert code == 0 and 'Per-class results' in printed.out
    metrics, = (folder / 'eval').glob('*/*.json')
    prefix = 'NuScenes metric/pred_instances_3d_NuScenes'
    metrics = json.loads(metrics.read_text())
    assert 0 <= metrics[f'{prefix}/mAP'] <= 1
    assert 0 <= metrics[f'{prefix}/NDS'] <= 1
    assert f'{prefix}/car_AP_dist_0.5' in metrics
    with open(folder / 'predictions.pkl', 'rb') as file:
        predictions = pickle.load(file)
    # The key frames of the two scenes of mini_val.
    infos = mmengine.load(synthetic_nuscenes / 'nuscenes_infos_val.pkl')
    assert [p['sample_idx'] for p in predictions] == [
        info['sample_idx'] for info in infos['data_list']
    ]
    assert len(predictions) == 6
    assert all('scores_3d' in p['pred_instances_3d'] for p in predictions)


@pytest.mark.slow
def test_amp_trains_on_the_cpu(folder, run_here):
    code, printed = run_here(
        'train.py', folder / 'small.py', '--amp', '--auto-scale-lr',
        '--work-dir', 'amp', '--resume', '--cfg-options',
        'train_cfg.max_epochs=1', cwd=folder)
    assert code == 0 and 'starts from the beginning' in printed.out
    # base_batch_size is 4 and the batch size 1.
    assert 'Scaling the original LR by 0.25' in printed.out
    checkpoint = load(folder / 'amp/epoch_1.pth')
    losses = checkpoint['message_hub']['log_scalars']['train/loss'].data[0]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert all(
        value.dtype != torch.bfloat16
        for value in checkpoint['state_dict'].values())
    assert 'CPUAmpOptimWrapper' in checkpoint['meta']['cfg']


def check_message(message, words):
    for word in words:
        assert word in message


@pytest.mark.parametrize('tool, args, words', [
    ('train.py', ['configs/nothing.py'],
     ["'configs/nothing.py' does not exist"]),
    ('test.py', ['nothing.py', 'x.pth'], ["'nothing.py' does not exist"]),
    ('test.py', [QUICKSTART, 'x.pth'],
     ['data/synthetic_nuscenes/', 'test_dataloader.dataset.data_root']),
])
def test_missing_config_or_data(tmp_path, monkeypatch, fail, tool, args,
                                words):
    monkeypatch.delenv('SIGPLUG_DATA_ROOT', raising=False)
    check_message(fail(tool, *args, cwd=tmp_path), words)


@pytest.mark.parametrize('tool, args, words', [
    ('test.py', ['x.pth'], ["checkpoint 'x.pth' does not exist"]),
    ('train.py', ['--resume', 'x.pth'], ["'x.pth' does not exist"]),
    ('train.py', ['--cfg-options', 'resume=True', 'load_from=x.pth'],
     ['--resume', "'x.pth' does not exist"]),
    ('train.py', ['--cfg-options', 'load_from=x.pth'],
     ['load_from of the config', "'x.pth' does not exist"]),
    ('train.py', ['--cfg-options', 'train_dataloader.dataset.ann_file=x.pkl'],
     ['train_dataloader.dataset.ann_file', 'x.pkl']),
    ('train.py', ['--launcher', 'pytorch'], ['tools/dist_train.sh']),
])
def test_missing_checkpoint_or_launcher(folder, fail, tool, args, words):
    check_message(fail(tool, 'small.py', *args, cwd=folder), words)


def test_missing_data_gives_the_command_that_makes_it(tmp_path, monkeypatch,
                                                      fail):
    monkeypatch.delenv('SIGPLUG_DATA_ROOT', raising=False)
    check_message(fail('train.py', QUICKSTART, cwd=tmp_path), [
        "'data/synthetic_nuscenes/' (train_dataloader.dataset.data_root)",
        'python tools/dataset_converters/create_synthetic_nuscenes.py --out '
        'data/synthetic_nuscenes --seed 0'
    ])


def test_misspelt_type(folder, fail):
    message = fail(
        'train.py', 'small.py', '--work-dir', 'typo', '--cfg-options',
        'model.pts_bbox_head.heatmap_act.type=ClipSigmod', cwd=folder)
    check_message(message, [
        "model.pts_bbox_head.heatmap_act.type = 'ClipSigmod' is not "
        'registered', "Did you mean 'ClipSigmoid'"
    ])


@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'quickstart.py'])
def test_help(monkeypatch, capsys, tool):
    monkeypatch.setattr('sys.argv', [tool, '--help'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOLS / tool), run_name='__main__')
    assert end.value.code == 0
    assert 'usage:' in capsys.readouterr().out


@pytest.mark.parametrize('args, words', [
    (['--out', 'x.json'], '--out must end with .pkl or .pickle'),
    (['--cfg-options', 'a'], '--cfg-options takes KEY=VALUE'),
])
def test_wrong_arguments(tmp_path, fail, args, words):
    assert words in fail('test.py', 'c.py', 'x.pth', *args, cwd=tmp_path)


def test_show_needs_a_display(folder, uninterrupted, monkeypatch, fail):
    monkeypatch.delenv('DISPLAY', raising=False)
    message = fail(
        'test.py', 'small.py', uninterrupted / 'epoch_1.pth', '--show',
        cwd=folder)
    check_message(message, ['needs a display', 'visualize_bev.py small.py'])
