"""migrate_config.py on the project of a user."""
import os
import shutil
import subprocess
from pathlib import Path

import mmdet3d
import pytest
import torch
from conftest import QUICKSTART, SMALL_CONFIG, tool_command
from mmdet3d.registry import MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from sigplug.engine.checkpoint import load_safely

CONFIGS = Path(mmdet3d.__file__).parent / '.mim/configs'
NAME = 'centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py'
# It prints, as some packages do when they are imported.
PLUGIN = """
from mmdet3d.models.backbones import SECOND
from mmdet3d.registry import MODELS
print('the plugin is imported')
@MODELS.register_module(force=True)
class PluginBackbone(SECOND):
    pass
"""
CHANGES = """
class_names = ['forklift', 'person', 'pallet']
metainfo = dict(classes=class_names)
train_dataloader = dict(dataset=dict(dataset=dict(metainfo=metainfo)))
custom_imports = dict(imports=['my_plugin'], allow_failed_imports=True)
model['pts_backbone'] = dict(type='PluginBackbone')
model['pts_bbox_head'].update(tasks=[
    dict(num_class=2, class_names=['forklift', 'pallet']),
    dict(num_class=1, class_names=['person'])])
"""


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder of a stock config, copied and changed, with a module."""
    project = tmp_path_factory.mktemp('project')
    shutil.copytree(CONFIGS / '_base_', project / 'configs/_base_')
    (project / 'configs/mine').mkdir()
    (project / 'configs/mine/mine.py').write_text(
        (CONFIGS / 'centerpoint' / NAME).read_text() + CHANGES)
    (project / 'my_plugin.py').write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(project))
        patch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [
            str(project), os.environ.get('PYTHONPATH')])))
        yield project


def migrate(*args, cwd):
    return subprocess.run(
        tool_command('misc/migrate_config.py', *args),
        cwd=cwd,
        capture_output=True,
        text=True)


def keys(printed):
    return {line.partition(': ')[0] for line in printed.splitlines()
            if ' -> ' in line}


def loss_of(cfg, gt):
    """Heatmap and box losses of random features, and their gradient."""
    torch.manual_seed(0)
    init_default_scope('mmdet3d')
    model = MODELS.build(cfg.model)
    head = model.pts_bbox_head
    feats = [torch.randn(1, 384, 128, 128)]
    preds = head(feats)
    losses = head.loss_by_feat(preds, [gt])
    sum(losses.values()).backward()
    assert all(param.grad.isfinite().all() for param in head.parameters())
    return model, losses


@pytest.mark.slow
def test_a_changed_stock_config(project):
    done = migrate('configs/mine/mine.py', '--out', 'configs/mine/ours.py',
                   cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'configs/mine/ours.py\n'
    assert 'the plugin is imported' in done.stderr
    assert keys(done.stderr) == {
        'model.pts_bbox_head.type', 'model.pts_bbox_head.heatmap_act',
        'custom_imports.imports'}
    stock, ours = (Config.fromfile(project / f'configs/mine/{name}.py')
                   for name in ('mine', 'ours'))
    assert ours.custom_imports == dict(
        imports=['my_plugin', 'sigplug'], allow_failed_imports=True)
    assert ours.class_names == ['forklift', 'person', 'pallet']

    gt = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(
            torch.tensor([[3., 4, 0, 4, 2, 2, 1, 0, 0],
                          [9., -4, 0, 1, 1, 2, 0, 1, 0]]), box_dim=9),
        labels_3d=torch.tensor([0, 2]))
    theirs, expected = loss_of(stock, gt)
    model, losses = loss_of(ours, gt)
    assert type(model.pts_backbone).__name__ == 'PluginBackbone'
    model.load_state_dict(theirs.state_dict(), strict=True)
    assert losses.keys() == expected.keys() and len(losses) == 4
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-6, atol=0)

    # On top of what is there already.
    done = migrate('configs/mine/ours.py', '--loss', 'logits', '--out',
                   'logits.py', cwd=project)
    assert done.returncode == 0, done.stderr
    cfg = Config.fromfile(project / 'logits.py')
    assert cfg.custom_imports == ours.custom_imports
    _, losses = loss_of(cfg, gt)
    for key, value in losses.items():
        # The clip makes no difference close to a logit of 0.
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=0)


@pytest.mark.slow
def test_printed_config_is_all_of_the_standard_output(project, tmp_path):
    done = migrate('configs/mine/mine.py', '--pillar', 'gem', cwd=project)
    assert done.returncode == 0, done.stderr
    (tmp_path / 'elsewhere.py').write_text(done.stdout)
    cfg = Config.fromfile(tmp_path / 'elsewhere.py')
    assert cfg.model.pts_voxel_encoder.type == 'sigplug.GeMPillarFeatureNet'
    assert cfg.custom_imports.imports == ['my_plugin', 'sigplug']
    assert 'optim_wrapper.paramwise_cfg' in keys(done.stderr)

    done = migrate(tmp_path / 'elsewhere.py', '--pillar', 'gem', cwd=project)
    assert (done.returncode, done.stdout) == (0, '')
    assert 'Nothing to do' in done.stderr


def test_refusal(project, fail):
    before = sorted(project.rglob('*.py'))
    message = fail(
        'misc/migrate_config.py', f'mmdet3d::centerpoint/{NAME}', '--out',
        'configs/mine/mine.py', cwd=project)
    assert message.startswith('error: --out') and '--overwrite' in message
    assert '--overwrite replaces' in fail(
        'misc/migrate_config.py', 'x.py', '--overwrite', cwd=project)
    assert sorted(project.rglob('*.py')) == before


@pytest.mark.slow
def test_train_takes_it(folder, run_here):
    small = folder / 'stock.py'
    stock = SMALL_CONFIG.replace(
        str(QUICKSTART), str(QUICKSTART).replace('_gem_', '_stock_'))
    assert '_stock_' in stock
    small.write_text(stock)
    code, printed = run_here(
        'misc/migrate_config.py', 'stock.py', '--out', 'migrated.py',
        '--pillar', 'gem', '--loss', 'logits', cwd=folder)
    assert code == 0, printed.err
    code, printed = run_here('train.py', 'migrated.py', '--cfg-options',
                             'train_cfg.max_epochs=1', cwd=folder)
    assert code == 0, printed.err
    checkpoint = load_safely(folder / 'work_dirs/migrated/epoch_1.pth')
    state = checkpoint['state_dict']
    assert all(value.isfinite().all() for value in state.values())
    assert state['pts_voxel_encoder.pfn_layers.0.gem.p'] != 3
