"""Configs and checkpoints in the hands of the rest of the stack."""
import json
import re

import numpy as np
import pytest
import torch
from conftest import QUICKSTART
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import save_checkpoint

from sigplug.engine.checkpoint import load_safely


def build(cfg):
    from mmdet3d.registry import MODELS
    from mmdet3d.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        torch.manual_seed(0)
        return MODELS.build(cfg.model)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('checkpoint') / 'model.pth'
    cfg = Config.fromfile(QUICKSTART)
    save_checkpoint(
        dict(state_dict=build(cfg).state_dict(),
             meta=dict(dataset_meta=dict(classes=cfg.class_names))), str(path))
    return path


@pytest.fixture(scope='module')
def scan(synthetic_nuscenes):
    return str(sorted(synthetic_nuscenes.glob('samples/LIDAR_TOP/*.bin'))[0])


def test_dump_and_reload(tmp_path):
    cfg = Config.fromfile(QUICKSTART)
    cfg.dump(tmp_path / 'dumped.py')
    again = Config.fromfile(tmp_path / 'dumped.py')
    first, second = build(cfg), build(again)
    # mmengine sorts what it dumps, and with it the branches of the head.
    assert sorted(repr(first).split()) == sorted(repr(second).split())
    second.load_state_dict(first.state_dict(), strict=True)
    again.dump(tmp_path / 'twice.py')
    assert Config.fromfile(tmp_path / 'twice.py').to_dict() == again.to_dict()


def test_inference_of_a_scan(checkpoint, scan):
    from mmdet3d.apis import (
        LidarDet3DInferencer,
        inference_detector,
        init_model,
    )
    model = init_model(str(QUICKSTART), str(checkpoint), device='cpu')
    result, _ = inference_detector(model, scan)
    boxes = result.pred_instances_3d
    assert boxes.bboxes_3d.tensor.shape == (200, 9)

    inferencer = LidarDet3DInferencer(
        model=str(QUICKSTART), weights=str(checkpoint), device='cpu')
    out = inferencer(dict(points=scan), no_save_vis=True)
    predicted, = out['predictions']
    np.testing.assert_allclose(
        predicted['scores_3d'], boxes.scores_3d, rtol=1e-5)
    np.testing.assert_allclose(
        predicted['bboxes_3d'], boxes.bboxes_3d.tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_ema_accumulation_and_scaled_rate(folder, run_here):
    """Four batches of one sample; the rate is meant for batches of four."""
    (folder / 'fit.py').write_text("""
_base_ = './small.py'
custom_hooks = [
    dict(type='EMAHook', momentum=0.5),
    dict(type='sigplug.HeatmapSaturationHook', interval=1),
]
optim_wrapper = dict(accumulative_counts=2)
train_cfg = dict(max_epochs=1)
train_dataloader = dict(dataset=dict(indices=4))
param_scheduler = None
""")
    code, printed = run_here('train.py', 'fit.py', '--work-dir', 'fit',
                             '--auto-scale-lr', cwd=folder)
    assert code == 0, printed.err
    rates = re.findall(r'\blr: (\S+)', printed.out)
    assert len(rates) == 4
    assert {float(rate) for rate in rates} == {3e-4 / 4}
    saved = load_safely(folder / 'fit/epoch_1.pth')
    assert saved['optimizer']['state'][0]['step'] == 2
    averaged = {key.removeprefix('module.'): value
                for key, value in saved['ema_state_dict'].items()}
    assert averaged.keys() - {'steps'} == saved['state_dict'].keys()
    power = 'pts_voxel_encoder.pfn_layers.0.gem.p'
    assert saved['state_dict'][power] != averaged[power]


def test_print_config(run_here, tmp_path):
    code, printed = run_here(
        'misc/print_config.py', QUICKSTART, '--cfg-options',
        'model.pts_voxel_encoder.p=4.5', cwd=tmp_path)
    assert code == 0, printed.err
    (tmp_path / 'printed.py').write_text(printed.out)
    cfg = Config.fromfile(tmp_path / 'printed.py')
    assert cfg.model.pts_voxel_encoder.p == 4.5
    assert cfg.train_dataloader.batch_size == 4
    code, printed = run_here(
        'misc/print_config.py', QUICKSTART, '--out', 'sub/out.json',
        cwd=tmp_path)
    assert 'Wrote: sub/out.json' in printed.out
    written = json.loads((tmp_path / 'sub/out.json').read_text())
    assert written['model']['pts_voxel_encoder']['p'] == 3.0


def test_print_config_writes_configs_alone(fail, tmp_path):
    assert 'must end in .py' in fail(
        'misc/print_config.py', QUICKSTART, '--out', 'x.txt', cwd=tmp_path)
