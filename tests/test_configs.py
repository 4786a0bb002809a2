"""Every sample config builds, and is what its name says."""
import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import differences
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.utils import import_modules_from_strings
from torch import nn

from sigplug.models.layers.learnable_power import LearnablePower

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('[!_]*/*.py'))
SMALL = 'centerpoint_pillar04_second_secfpn_{}_1xb2-onecycle-5e_nus-mini-3d.py'


def load(name: str | Path) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / 'centerpoint' / name)
    # mmpretrain as a whole needs torchvision.
    scope = cfg.default_scope.replace('mmpretrain', 'mmdet3d')
    init_default_scope(scope)
    import_modules_from_strings([f'{scope}.models', f'{scope}.datasets'])
    return cfg


def check_optimizer(cfg: Config, model: nn.Module, fixed: bool) -> None:
    """Every parameter named p, and no other one, has settings of its own."""
    if cfg.optim_wrapper.type == 'AmpOptimWrapper':
        # That one insists on a GPU.
        del cfg.optim_wrapper.loss_scale
        cfg.optim_wrapper.type = 'OptimWrapper'
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    found = {param: (group['weight_decay'], group['lr'])
             for group in optimizer.param_groups for param in group['params']}
    rate = cfg.optim_wrapper.optimizer.lr
    decay = cfg.optim_wrapper.optimizer.weight_decay
    assert rate > 0 and decay > 0
    powers = {f'{name}.p' for name, module in model.named_modules()
              if isinstance(module, LearnablePower)}
    for name, param in model.named_parameters():
        # The optimiser leaves out what a backbone has frozen.
        if param.requires_grad:
            assert found.pop(param) == pytest.approx(
                (0, 10 * rate) if name in powers else (decay, rate)), name
    assert not found
    trained = powers & {name for name, _ in model.named_parameters()}
    assert bool(trained) != fixed


def check_name(cfg: Config, name: str) -> None:
    """It is as OpenMMLab writes it, and as the config trains."""
    part = re.search(r'_(\d+)xb(\d+)(-amp)?[-_]', name)
    # mmdet's older names leave out that of 8 GPUs with 2 images each.
    gpus, size, amp = part.groups() if part else (8, 2, None)
    assert cfg.train_dataloader.batch_size == int(size)
    assert (cfg.optim_wrapper.get('type') == 'AmpOptimWrapper') == bool(amp)
    if 'auto_scale_lr' in cfg:
        assert cfg.auto_scale_lr.base_batch_size == int(gpus) * int(size)
    if name.startswith('centerpoint'):
        # It stops at a NaN and keeps its checkpoints.
        hooks = cfg.default_hooks
        assert hooks.check_loss.type == 'sigplug.CheckLossHook'
        assert hooks.checkpoint.type == 'sigplug.CheckpointHook'
        assert hooks.checkpoint.interval == 1


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_builds_and_is_trained_as_its_name_says(path):
    cfg = load(path)
    check_name(cfg, path.stem)
    if cfg.default_scope == 'mmpretrain':
        # Of a classifier the neck alone, which does not need torchvision.
        with DefaultScope.overwrite_default_scope(None):
            assert MODELS.build(cfg.model.neck) is not None
        return
    # The larger ones without the time that random numbers take.
    device = 'cpu' if path.stem.startswith('centerpoint') else 'meta'
    with DefaultScope.overwrite_default_scope(
            cfg.default_scope), torch.device(device):
        model = MODELS.build(cfg.model)
    if 'gem' in path.stem:
        check_optimizer(cfg, model, fixed='gemfixed' in path.stem)


def test_quickstart_differs_from_its_stock_twin_in_the_plugged_parts_only():
    ours, stock = load(SMALL.format('gem')), load(SMALL.format('stock'))
    assert differences(ours.to_dict(), stock.to_dict()) == {
        'model.data_preprocessor.type', 'model.pts_voxel_encoder.type',
        'model.pts_voxel_encoder.p', 'model.pts_middle_encoder.type',
        'model.pts_middle_encoder.channels_last', 'model.pts_bbox_head.type',
        'model.pts_bbox_head.loss_cls.type',
        'model.pts_bbox_head.loss_cls.clip',
        'optim_wrapper.paramwise_cfg', 'power_paramwise_cfg', 'custom_hooks'
    }
    # The heatmaps are measured whenever the log is written.
    hook, = ours.custom_hooks
    assert hook == dict(type='sigplug.HeatmapSaturationHook',
                        interval=ours.default_hooks.logger.interval)


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
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert loader.dataset.data_root == root
        assert loader.dataset.metainfo.version == 'v1.0-trainval'
    assert cfg.test_evaluator.data_root == root
    assert cfg.test_evaluator.ann_file == 'elsewhere/nuscenes_infos_val.pkl'


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
    ('centripetalnet/centripetalnet_hourglass104_clipsigmoid_16xb6-crop511-'
     '210e-mstest_coco.py',
     'centripetalnet/centripetalnet_hourglass104_16xb6-crop511-210e-mstest_'
     'coco.py', {'type', 'heatmap_act'}),
    ('smoke/smoke_dla34_dlaneck_gn-all_logits_4xb8-6x_kitti-mono3d.py',
     'smoke/smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d.py',
     {'type', 'loss_cls.type'}),
])
def test_image_heads_change_nothing_else(tmp_path, ours, stock, changed):
    scope = 'mmdet3d' if 'mono3d' in stock else 'mmdet'
    (tmp_path / 'stock.py').write_text(f"_base_ = '{scope}::{stock}'")
    assert differences(
        load(ROOT / 'configs' / ours).to_dict(),
        load(tmp_path / 'stock.py').to_dict()
    ) == {f'model.bbox_head.{key}' for key in changed}


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
