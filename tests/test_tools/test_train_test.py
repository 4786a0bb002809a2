"""train.py and test.py, run as a user runs them."""
import json
import pickle
import signal
import subprocess
import time

import mmengine
import numpy as np
import pytest
import torch
from conftest import QUICKSTART, tool_command

from sigplug.engine.checkpoint import allow_mmengine_checkpoints


def load(path):
    allow_mmengine_checkpoints()
    return torch.load(path, weights_only=True)


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
    expected = load(uninterrupted / 'epoch_3.pth')
    found = load(work_dir / 'epoch_3.pth')

    for key in ('epoch', 'iter', 'seed'):
        assert found['meta'][key] == expected['meta'][key]
    assert (found['meta']['epoch'], found['meta']['iter']) == (3, 6)
    assert found['param_schedulers'] == expected['param_schedulers']
    for group, wanted in zip(
            found['optimizer']['param_groups'],
            expected['optimizer']['param_groups'],
            strict=True):
        assert group == wanted
    # The rate at each iteration and the loss are in the log as well.
    scalars = found['message_hub']['log_scalars']
    for name in ('train/lr', 'train/loss'):
        values, wanted = (
            hub['log_scalars'][name].data[0]
            for hub in (found['message_hub'], expected['message_hub']))
        assert len(values) == 6
        np.testing.assert_array_equal(values, wanted)
    assert len(set(scalars['train/lr'].data[0])) > 1

    assert found['state_dict'].keys() == expected['state_dict'].keys()
    for name, value in expected['state_dict'].items():
        assert torch.equal(found['state_dict'][name], value), name
    states = found['optimizer']['state'], expected['optimizer']['state']
    assert states[0].keys() == states[1].keys() and len(states[0]) > 50
    for index, wanted in states[1].items():
        assert wanted['step'] == 6
        for name, value in wanted.items():
            assert torch.equal(states[0][index][name], value), (index, name)


@pytest.mark.slow
def test_test_evaluates_and_writes_predictions(folder, synthetic_nuscenes,
                                               run_tool, uninterrupted):
    printed = run_tool(
        'test.py', 'small.py', uninterrupted / 'epoch_3.pth', '--work-dir',
        'eval', '--out', 'predictions.pkl', cwd=folder)
    assert 'Per-class results' in printed
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
def test_amp_trains_on_the_cpu(folder, run_tool):
    printed = run_tool(
        'train.py', folder / 'small.py', '--amp', '--auto-scale-lr',
        '--work-dir', 'amp', '--resume', '--cfg-options',
        'train_cfg.max_epochs=1', cwd=folder)
    assert 'starts from the beginning' in printed
    # base_batch_size is 4 and the batch size 1.
    assert 'Scaling the original LR by 0.25' in printed
    checkpoint = load(folder / 'amp/epoch_1.pth')
    losses = checkpoint['message_hub']['log_scalars']['train/loss'].data[0]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert all(
        value.dtype != torch.bfloat16
        for value in checkpoint['state_dict'].values())
    assert 'CPUAmpOptimWrapper' in checkpoint['meta']['cfg']


@pytest.mark.parametrize('tool, args, words', [
    ('train.py', ['configs/nothing.py'],
     ["'configs/nothing.py' does not exist"]),
    ('test.py', ['nothing.py', 'x.pth'], ["'nothing.py' does not exist"]),
    ('train.py', [QUICKSTART],
     ['data/synthetic_nuscenes/', 'train_dataloader.dataset.data_root',
      'python tools/dataset_converters/create_synthetic_nuscenes.py --out '
      'data/synthetic_nuscenes --seed 0']),
    ('test.py', [QUICKSTART, 'x.pth'],
     ['data/synthetic_nuscenes/', 'test_dataloader.dataset.data_root']),
])
def test_missing_config_or_data(tmp_path, monkeypatch, run_tool, tool, args,
                                words):
    monkeypatch.delenv('SIGPLUG_DATA_ROOT', raising=False)
    check_message(run_tool(tool, *args, cwd=tmp_path, expect=2), words)


@pytest.mark.parametrize('tool, args, words', [
    ('test.py', ['x.pth'], ["checkpoint 'x.pth' does not exist"]),
    ('train.py', ['--resume', 'x.pth'], ["'x.pth' does not exist"]),
    ('train.py', ['--cfg-options', 'load_from=x.pth'],
     ['load_from of the config', "'x.pth' does not exist"]),
    ('train.py', [
        '--work-dir', 'typo', '--cfg-options',
        'model.pts_bbox_head.heatmap_act.type=ClipSigmod'
    ], ['model.pts_bbox_head.heatmap_act.type', "'ClipSigmod'",
        "Did you mean 'ClipSigmoid'"]),
])
def test_missing_checkpoint_or_type(folder, run_tool, tool, args, words):
    check_message(
        run_tool(tool, 'small.py', *args, cwd=folder, expect=2), words)


def check_message(printed, words):
    assert 'Traceback' not in printed
    assert printed.count('error: ') == 1
    message = printed[printed.index('error: '):]
    assert len(message) < 700
    for word in words:
        assert word in message


@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'quickstart.py'])
def test_help(tmp_path, run_tool, tool):
    assert 'usage:' in run_tool(tool, '--help', cwd=tmp_path)
