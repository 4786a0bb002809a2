"""Every sample config builds, and is what its name says."""
from pathlib import Path

import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from mmengine.utils import import_modules_from_strings

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('[!_]*/*.py'))
SMALL = 'centerpoint_pillar04_second_secfpn_{}_1xb4-onecycle-8e_nus-mini-3d.py'


def load(name: str) -> Config:
    init_default_scope('mmdet3d')
    import_modules_from_strings(['mmdet3d.models', 'mmdet3d.datasets'])
    return Config.fromfile(ROOT / 'configs' / 'centerpoint' / name)


def differences(a, b, prefix=''):
    """Dotted keys whose values differ between two config dicts."""
    keys = set()
    for key in set(a) | set(b):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            keys |= differences(left, right, f'{prefix}{key}.')
        elif left != right:
            keys.add(f'{prefix}{key}')
    return keys


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_builds(path):
    cfg = load(path.relative_to(ROOT / 'configs' / 'centerpoint'))
    assert MODELS.build(cfg.model) is not None


def test_quickstart_differs_from_its_stock_twin_in_the_plugged_parts_only():
    ours, stock = load(SMALL.format('gem')), load(SMALL.format('stock'))
    assert differences(ours.to_dict(), stock.to_dict()) == {
        'model.pts_voxel_encoder.type', 'model.pts_voxel_encoder.p',
        'model.pts_bbox_head.type', 'model.pts_bbox_head.heatmap_act',
        'optim_wrapper.paramwise_cfg'
    }


def test_data_set_is_changed_from_the_environment(monkeypatch):
    monkeypatch.setenv('SIGPLUG_DATA_ROOT', 'elsewhere/')
    monkeypatch.setenv('SIGPLUG_DATA_VERSION', 'v1.0-trainval')
    cfg = load(SMALL.format('gem'))
    assert cfg.train_dataloader.dataset.data_root == 'elsewhere/'
    assert cfg.val_dataloader.dataset.data_root == 'elsewhere/'
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert loader.dataset.metainfo.version == 'v1.0-trainval'
    assert cfg.test_evaluator.data_root == 'elsewhere/'
    assert cfg.test_evaluator.ann_file == 'elsewhere/nuscenes_infos_val.pkl'


def test_power_has_its_own_optimiser_settings():
    from mmengine.optim import build_optim_wrapper
    cfg = load(SMALL.format('gem'))
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    p = model.pts_voxel_encoder.pfn_layers[0].gem.p
    group, = (g for g in wrapper.param_groups if g['params'][0] is p)
    assert group['weight_decay'] == 0
    assert group['lr'] == pytest.approx(10 * cfg.optim_wrapper.optimizer.lr)
    assert p.shape == torch.Size([1])


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
