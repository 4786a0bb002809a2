"""train.py and test.py, mostly run in this process."""
import pickle
import shutil

import mmengine
import numpy as np
import pytest
import torch
from conftest import QUICKSTART, TOOLS, assert_same_training

from sigplug.cli.results import read_nuscenes_metrics
from sigplug.engine.checkpoint import load_safely


@pytest.fixture(scope='module')
def trained(folder, run_tool):
    """The default work dir of a training as a user starts it."""
    run_tool('train.py', 'small.py', cwd=folder)
    return folder / 'work_dirs/small'


def test_resumed_training_equals_uninterrupted(folder, trained, succeed):
    """From what a training leaves that is killed after its first epoch."""
    work_dir = folder / 'killed'
    work_dir.mkdir()
    shutil.copy(trained / 'epoch_1.pth', work_dir)
    (work_dir / 'last_checkpoint').write_text('killed/epoch_1.pth')
    printed = succeed('train.py', 'small.py', '--work-dir', 'killed',
                      '--resume', cwd=folder)
    assert '--resume: training continues from ' in printed
    assert 'resumed epoch: 1, iter: 2' in printed
    assert_same_training(work_dir, trained)


def test_test_evaluates_and_writes_predictions(folder, synthetic_nuscenes,
                                               succeed, trained):
    assert 'Per-class results' in succeed(
        'test.py', 'small.py', trained / 'epoch_3.pth', '--work-dir',
        'eval', '--out', 'predictions.pkl', cwd=folder)
    metrics = read_nuscenes_metrics(folder / 'eval')
    assert 0 <= metrics['mAP'] <= 1 and 0 <= metrics['NDS'] <= 1
    predictions = pickle.loads((folder / 'predictions.pkl').read_bytes())
    # The key frames of the two scenes of mini_val.
    infos = mmengine.load(synthetic_nuscenes / 'nuscenes_infos_val.pkl')
    assert [p['sample_idx'] for p in predictions] == [
        info['sample_idx'] for info in infos['data_list']
    ]
    assert len(predictions) == 6
    assert all('scores_3d' in p['pred_instances_3d'] for p in predictions)


@pytest.mark.slow
def test_amp_trains_on_the_cpu(folder, succeed):
    printed = succeed(
        'train.py', folder / 'small.py', '--amp', '--auto-scale-lr',
        '--work-dir', 'amp', '--resume', '--cfg-options',
        'train_cfg.max_epochs=1', cwd=folder)
    assert 'starts from the beginning' in printed
    # base_batch_size is 2 and the batch size 1.
    assert 'Scaling the original LR by 0.5' in printed
    checkpoint = load_safely(folder / 'amp/epoch_1.pth')
    losses = checkpoint['message_hub']['log_scalars']['train/loss'].data[0]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert all(
        value.dtype != torch.bfloat16
        for value in checkpoint['state_dict'].values())
    assert 'CPUAmpOptimWrapper' in checkpoint['meta']['cfg']


@pytest.mark.parametrize('args, words', [
    (['--new-schedule'], 'add --resume'),
    (['--cfg-options', 'model.train_cfg.pts.out_size_factor=4'],
     'out_size_factor'),
    (['--cfg-options', 'model.pts_voxel_encoder.p=-2'],
     'model.pts_voxel_encoder.p: p must be above 0, but got -2'),
])
def test_what_cannot_run(folder, fail, args, words):
    assert words in fail('train.py', 'small.py', *args, cwd=folder)


def test_missing_data(tmp_path, monkeypatch, fail):
    monkeypatch.delenv('SIGPLUG_DATA_ROOT', raising=False)
    assert (f'python {TOOLS}/dataset_converters/create_synthetic_nuscenes.py '
            '--seed 0 --out data/synthetic_nuscenes') in fail(
                'train.py', QUICKSTART, cwd=tmp_path)
