"""Every sample config builds, and is what its name says."""
import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from conftest import differences
from mmdet3d.registry import MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.config.lazy import LazyObject
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, DefaultScope, init_default_scope
from mmengine.structures import InstanceData
from mmengine.utils import import_modules_from_strings
from torch import nn

from sigplug.models.layers.learnable_power import LearnablePower

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('[!_]*/*.py'))
SMALL = 'centerpoint_pillar04_second_secfpn_{}_1xb4-onecycle-8e_nus-mini-3d.py'


def load(name: str | Path) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / 'centerpoint' / name)
    # mmpretrain as a whole needs torchvision.
    scope = cfg.default_scope.replace('mmpretrain', 'mmdet3d')
    init_default_scope(scope)
    import_modules_from_strings([f'{scope}.models', f'{scope}.datasets'])
    return cfg


def build(cfg: Config, part: dict) -> nn.Module:
    """A part of the model, in the scope of its config."""
    scope = cfg.default_scope
    with DefaultScope.overwrite_default_scope(
            None if scope == 'mmpretrain' else scope):
        return MODELS.build(part)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_builds(path):
    cfg = load(path)
    # Of a classifier the neck alone.
    part = (cfg.model.neck if cfg.default_scope == 'mmpretrain' else
            cfg.model)
    assert build(cfg, part) is not None


def test_quickstart_differs_from_its_stock_twin_in_the_plugged_parts_only():
    ours, stock = load(SMALL.format('gem')), load(SMALL.format('stock'))
    assert differences(ours.to_dict(), stock.to_dict()) == {
        'model.data_preprocessor.type', 'model.pts_voxel_encoder.type',
        'model.pts_voxel_encoder.p',
        'model.pts_bbox_head.type', 'model.pts_bbox_head.heatmap_act',
        'optim_wrapper.paramwise_cfg', 'power_paramwise_cfg', 'custom_hooks'
    }


@pytest.mark.parametrize('name', [
    SMALL.format('gem'),
    'centerpoint_pillar02_second_secfpn_gem_8xb4-cyclic-20e_nus-3d.py'
])
def test_dynamic_config_differs_from_the_hard_one_in_voxelisation_only(name):
    hard, dynamic = load(name), load(name.replace('_pillar', '_dv-pillar'))
    assert differences(hard.to_dict(), dynamic.to_dict()) == {
        'model.type', 'model.pts_voxel_encoder.type',
        'model.data_preprocessor.voxel_type',
        'model.data_preprocessor.voxel_layer.max_num_points',
        'model.data_preprocessor.voxel_layer.max_voxels'
    }


@pytest.mark.parametrize('root', ['elsewhere/', 'elsewhere'])
def test_data_set_is_changed_from_the_environment(monkeypatch, root):
    monkeypatch.setenv('SIGPLUG_DATA_ROOT', root)
    monkeypatch.setenv('SIGPLUG_DATA_VERSION', 'v1.0-trainval')
    cfg = load(SMALL.format('gem'))
    assert cfg.train_dataloader.dataset.data_root == root
    assert cfg.val_dataloader.dataset.data_root == root
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert loader.dataset.metainfo.version == 'v1.0-trainval'
    assert cfg.test_evaluator.data_root == root
    assert cfg.test_evaluator.ann_file == 'elsewhere/nuscenes_infos_val.pkl'


def test_hooks_of_the_configs():
    """The quickstart measures its heatmaps whenever its log is written."""
    from sigplug.engine.hooks import HeatmapSaturationHook
    cfg = load(SMALL.format('gem'))
    hook, = (HOOKS.build(hook) for hook in cfg.custom_hooks)
    assert type(hook) is HeatmapSaturationHook
    assert hook.interval == cfg.default_hooks.logger.interval
    assert 'custom_hooks' not in load(SMALL.format('stock'))


@pytest.mark.parametrize(
    'path', [path for path in CONFIGS if 'gem' in path.stem
             and path.parent.name != 'gem_neck'],
    ids=lambda path: path.stem)
def test_trained_powers_have_their_own_optimiser_settings(path):
    """Every parameter named p, and no other one."""
    cfg = load(path)
    model = build(cfg, cfg.model)
    if cfg.optim_wrapper.type == 'AmpOptimWrapper':
        # That one insists on a GPU.
        del cfg.optim_wrapper.loss_scale
        cfg.optim_wrapper.type = 'OptimWrapper'
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    # The optimiser leaves out what a backbone has frozen.
    names = {param: name for name, param in model.named_parameters()
             if param.requires_grad}
    rate = cfg.optim_wrapper.optimizer.lr
    decay = cfg.optim_wrapper.optimizer.weight_decay
    assert rate > 0 and decay > 0
    powers = []
    for group in optimizer.param_groups:
        for param in group['params']:
            name = names.pop(param)
            if name.rpartition('.')[2] == 'p':
                powers.append(name)
                assert group['weight_decay'] == 0, name
                assert group['lr'] == pytest.approx(10 * rate), name
            else:
                assert group['weight_decay'] == decay, name
                assert group['lr'] == rate, name
    assert not names
    trained = sum(isinstance(module, LearnablePower) and
                  isinstance(module.p, nn.Parameter)
                  for module in model.modules())
    assert len(powers) == trained
    assert (trained == 0) == ('gemfixed' in path.stem)


@pytest.mark.parametrize('ours, stock, changed', [
    ('centernet/centernet_r18-dcnv2_clipsigmoid_8xb16-crop512-140e_coco.py',
     'centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py',
     {'type', 'heatmap_act'}),
    ('centernet/centernet-update_r50_fpn_logits_8xb8-amp-lsj-200e_coco.py',
     'centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco.py',
     {'type', 'loss_cls.type'}),
    ('cornernet/cornernet_hourglass104_clipsigmoid_8xb6-210e-mstest_coco.py',
     'cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py',
     {'type', 'heatmap_act'}),
])
def test_image_heads_change_nothing_else(tmp_path, ours, stock, changed):
    (tmp_path / 'stock.py').write_text(f"_base_ = 'mmdet::{stock}'")
    assert differences(
        load(ROOT / 'configs' / ours).to_dict(),
        load(tmp_path / 'stock.py').to_dict()
    ) == {f'model.bbox_head.{key}' for key in changed}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_name_says_how_it_is_trained(path):
    """As OpenMMLab writes it, and with what the config holds."""
    cfg = load(path)
    part = re.search(r'_(\d+)xb(\d+)(-amp)?[-_]', path.stem)
    # mmdet's older names leave out that of 8 GPUs with 2 images each.
    gpus, size, amp = part.groups() if part else (8, 2, None)
    assert cfg.train_dataloader.batch_size == int(size)
    assert (cfg.optim_wrapper.get('type') == 'AmpOptimWrapper') == bool(
        amp)
    if 'auto_scale_lr' in cfg:
        assert cfg.auto_scale_lr.base_batch_size == int(gpus) * int(size)


@pytest.mark.parametrize(
    'path', [path for folder in ('configs', 'sigplug/configs')
             for path in sorted((ROOT / folder).glob('**/*.py'))],
    ids=lambda path: path.stem)
def test_sets_each_of_its_values_once(path):
    """The last one alone would count: a dict does not add to the one above."""
    names = Counter(
        target.id for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) for target in node.targets
        if isinstance(target, ast.Name))
    assert not names or names.most_common(1)[0][1] == 1, names


@pytest.mark.parametrize('path', [
    path for path in CONFIGS if path.stem.startswith('centerpoint')],
    ids=lambda path: path.stem)
def test_detectors_of_points_stop_at_a_nan_and_keep_their_checkpoints(path):
    hooks = load(path).default_hooks
    assert hooks.check_loss.type == 'sigplug.CheckLossHook'
    assert hooks.checkpoint.type == 'sigplug.CheckpointHook'
    assert hooks.checkpoint.interval == 1


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'configs').glob('*/metafile.yml')),
    ids=lambda path: path.parent.name)
def test_metafile_lists_the_configs_of_its_folder(path):
    meta = yaml.safe_load(path.read_text())
    collections = {collection['Name'] for collection in meta['Collections']}
    assert sorted(model['Config'] for model in meta['Models']) == sorted(
        f'configs/{path.parent.name}/{config.name}'
        for config in path.parent.glob('*.py'))
    for model in meta['Models']:
        assert model['Name'] == Path(model['Config']).stem
        assert model['In Collection'] in collections
    for collection in meta['Collections']:
        assert (ROOT / collection['README']).is_file()


FIVE_LINES = """
_base_ = 'mmdet3d::centerpoint/{}'
custom_imports = dict(imports=['sigplug'], allow_failed_imports=False)
model = dict(
    pts_bbox_head=dict(
        type='sigplug.CenterHead', heatmap_act=dict(type='ClipSigmoid')))
"""


def test_five_lines_on_a_stock_config_keep_losses_and_checkpoints(tmp_path):
    name = 'centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py'
    init_default_scope('mmdet3d')
    (tmp_path / 'ours.py').write_text(FIVE_LINES.format(name))
    (tmp_path / 'stock.py').write_text(
        f"_base_ = 'mmdet3d::centerpoint/{name}'")
    ours, stock = (
        MODELS.build(Config.fromfile(tmp_path / f'{which}.py').model)
        for which in ('ours', 'stock'))
    torch.save(stock.state_dict(), tmp_path / 'stock.pth')
    ours.load_state_dict(torch.load(tmp_path / 'stock.pth'), strict=True)

    generator = torch.Generator().manual_seed(0)
    feats = [torch.randn(1, 384, 128, 128, generator=generator)]
    boxes = torch.rand(30, 9, generator=generator)
    boxes = boxes * torch.tensor([100., 100, 2, 4, 2, 2, 6, 9, 9]) - 50 * (
        torch.arange(9) < 2)
    gt = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
        labels_3d=torch.randint(10, (30, ), generator=generator))
    with torch.no_grad():
        expected, got = (
            model.pts_bbox_head.loss_by_feat(
                model.pts_bbox_head(feats), [gt]) for model in (stock, ours))
    assert expected.keys() == got.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-6, atol=0)


def names_of_types(value):
    """The value with each type as the last part of its name."""
    if isinstance(value, dict):
        return {key: names_of_types(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [names_of_types(entry) for entry in value]
    if isinstance(value, (type, LazyObject)):
        return getattr(value, '__name__', None) or value.name
    if isinstance(value, str):
        return value.removeprefix('sigplug.').removeprefix('mmdet.')
    return value


def test_config_in_plain_python_is_the_quickstart():
    python = Config.fromfile(
        ROOT / 'sigplug/configs/centerpoint' / SMALL.format('gem').replace(
            '-', '_'))
    text = load(SMALL.format('gem')).to_dict()
    del text['power_paramwise_cfg']
    # Beside the values it holds what it imports.
    got = names_of_types({key: python[key] for key in text})
    assert got == names_of_types(text)
