"""The tools on damaged data and on files that want to run code."""
import os
import pickle

import pytest
import torch
from conftest import Call, replace


# -- security ---------------------------------------------------------------
@pytest.fixture
def attack(tmp_path):
    """A malicious checkpoint, and the file it would make."""
    marker = tmp_path / 'marker'
    torch.save(dict(state_dict={}, meta={}, message_hub={}, optimizer={},
                    other=Call(os.system, f'touch {marker}')),
               tmp_path / 'bad.pth')
    yield tmp_path / 'bad.pth'
    assert not marker.exists()


@pytest.mark.parametrize('tool, args', [
    ('train.py', ['--cfg-options', 'load_from=FILE']),
    ('test.py', ['FILE']),
    # Those of a part are loaded by mmengine.
    ('train.py', ['--cfg-options', 'model.pts_neck.init_cfg.type=Pretrained',
                  'model.pts_neck.init_cfg.checkpoint=FILE']),
    ('deployment/export_onnx.py', ['FILE', '--out', 'x.onnx']),
])
def test_malicious_checkpoint_does_not_run(folder, attack, fail, tool, args):
    args = [arg.replace('FILE', str(attack)) for arg in args]
    message = fail(tool, 'small.py', *args, cwd=folder)
    assert 'bad.pth' in message
    assert 'holds posix.system, which torch does not trust' in message


# -- damaged data -----------------------------------------------------------
def test_training_names_the_bad_file(damageable, folder, monkeypatch, fail):
    """It comes from a worker, and without the traceback of that."""
    infos = pickle.loads(
        (damageable / 'nuscenes_infos_train.pkl').read_bytes())
    name = infos['data_list'][1]['lidar_points']['lidar_path']
    path = damageable / 'samples/LIDAR_TOP' / name
    replace(path, path.read_bytes()[:-3])
    monkeypatch.setenv('SIGPLUG_DATA_ROOT', f'{damageable}/')
    message = fail(
        'train.py', 'small.py', '--work-dir', 'bad', cwd=folder)
    assert message.startswith('error: Bad data in ')
    assert name in message and "on_bad='skip'" in message
