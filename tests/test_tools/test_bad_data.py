"""The tools on damaged data and on files that want to run code."""
import pickle
import re

import numpy as np
import pytest
import torch
from conftest import Attack, replace

from sigplug.engine.checkpoint import load_safely


# -- security ---------------------------------------------------------------
@pytest.fixture
def attack(tmp_path):
    """A malicious checkpoint, and the file it would make."""
    marker = tmp_path / 'marker'
    torch.save(dict(state_dict={}, meta={}, message_hub={}, optimizer={},
                    other=Attack(marker)), tmp_path / 'bad.pth')
    yield tmp_path / 'bad.pth'
    assert not marker.exists()


@pytest.mark.parametrize('tool, args', [
    ('train.py', ['--cfg-options', 'load_from=FILE']),
    ('test.py', ['FILE']),
    # Those of a part are loaded by mmengine.
    ('train.py', ['--cfg-options', 'model.pts_neck.init_cfg.type=Pretrained',
                  'model.pts_neck.init_cfg.checkpoint=FILE']),
    ('analysis_tools/visualize_bev.py', ['FILE', '--out-dir', 'drawn']),
    ('deployment/export_onnx.py', ['FILE', '--out', 'x.onnx']),
])
def test_malicious_checkpoint_does_not_run(folder, attack, fail, tool, args):
    args = [arg.replace('FILE', str(attack)) for arg in args]
    message = fail(tool, 'small.py', *args, cwd=folder)
    assert 'bad.pth' in message
    assert 'holds posix.system, which torch does not trust' in message


# -- damaged data -----------------------------------------------------------
def truncate(root, index, split='train'):
    infos = pickle.loads((root / f'nuscenes_infos_{split}.pkl').read_bytes())
    name = infos['data_list'][index]['lidar_points']['lidar_path']
    path = root / 'samples/LIDAR_TOP' / name
    replace(path, path.read_bytes()[:-3])
    return name


def test_training_names_the_bad_file(damageable, folder, monkeypatch, fail):
    """It comes from a worker, and without the traceback of that."""
    name = truncate(damageable, 1)
    monkeypatch.setenv('SIGPLUG_DATA_ROOT', f'{damageable}/')
    message = fail(
        'train.py', 'small.py', '--work-dir', 'bad', cwd=folder)
    assert message.startswith('error: Bad data in ')
    assert name in message and "on_bad='skip'" in message


def test_training_ends_at_a_nan_loss(folder, fail):
    message = fail(
        'train.py', 'small.py', '--work-dir', 'nan', '--cfg-options',
        'optim_wrapper.optimizer.lr=1e30', 'optim_wrapper.clip_grad=None',
        'param_scheduler=None', cwd=folder)
    assert 'The training ends in iteration 2: ' in message
    assert 'loss' in message and '.pcd.bin' in message
    assert not list((folder / 'nan').glob('*.pth'))


SKIPPING = """
_base_ = ['small.py']
# Key by key: a list cannot be changed in part.
train_pipeline = _base_.train_pipeline
train_pipeline[0].update(on_bad='skip', max_bad=0.6)
test_pipeline = _base_.test_pipeline
test_pipeline[0].update(on_bad='skip', max_bad=0.6)
train_cfg = dict(max_epochs=2)
train_dataloader = dict(
    dataset=dict(indices=12, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
"""


@pytest.mark.slow
def test_training_and_evaluation_over_good_and_bad_samples(
        damageable, folder, monkeypatch, run_tool):
    """Each bad file is named; each sample gets a result."""
    bad = [truncate(damageable, i) for i in (1, 4, 5, 9)]
    lost = [truncate(damageable, i, 'val') for i in (0, 3)]
    (folder / 'skipping.py').write_text(SKIPPING)
    monkeypatch.setenv('SIGPLUG_DATA_ROOT', f'{damageable}/')
    printed = run_tool('train.py', 'skipping.py', cwd=folder)
    for name in bad:
        assert re.search(f'left out: .*{name}', printed), name
    # 12 good iterations in each of the 2 epochs.
    weights = folder / 'work_dirs/skipping/epoch_2.pth'
    scalars = load_safely(weights)['message_hub']['log_scalars']
    history = scalars['train/loss'].data[0]
    assert len(history) == 24 and np.isfinite(history).all()

    printed = run_tool('test.py', 'skipping.py', weights, '--out', 'p.pkl',
                       cwd=folder)
    for name in lost:
        assert re.search(f'without points: .*{name}', printed)
    assert 'Per-class results' in printed
    predictions = pickle.loads((folder / 'p.pkl').read_bytes())
    assert len(predictions) == 6
    for i in (0, 3):
        assert len(predictions[i]['pred_instances_3d']['scores_3d']) == 0
