"""Configs and checkpoints in the hands of the rest of the stack."""
import re

import numpy as np
import pytest
from conftest import QUICKSTART
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import save_checkpoint

from sigplug.engine.checkpoint import load_safely


def test_inference_of_a_scan(synthetic_nuscenes, tmp_path):
    from mmdet3d.apis import (
        LidarDet3DInferencer,
        inference_detector,
        init_model,
    )
    scan = str(min(synthetic_nuscenes.glob('samples/LIDAR_TOP/*.bin')))
    checkpoint, cfg = tmp_path / 'model.pth', Config.fromfile(QUICKSTART)
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        state = MODELS.build(cfg.model).state_dict()
    save_checkpoint(dict(state_dict=state, meta=dict(
        dataset_meta=dict(classes=cfg.class_names))), str(checkpoint))
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
def test_ema_accumulation_and_scaled_rate(folder, succeed):
    """Four batches of one sample; the rate is meant for batches of two."""
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
    printed = succeed('train.py', 'fit.py', '--work-dir', 'fit',
                      '--auto-scale-lr', cwd=folder)
    rates = re.findall(r'\blr: (\S+)', printed)
    assert len(rates) == 4
    assert {float(rate) for rate in rates} == {1e-3 / 2}
    saved = load_safely(folder / 'fit/epoch_1.pth')
    assert saved['optimizer']['state'][0]['step'] == 2
    averaged = {key.removeprefix('module.'): value
                for key, value in saved['ema_state_dict'].items()}
    assert averaged.keys() - {'steps'} == saved['state_dict'].keys()
    power = 'pts_voxel_encoder.pfn_layers.0.gem.p'
    assert saved['state_dict'][power] != averaged[power]


def test_print_config(succeed, tmp_path):
    (tmp_path / 'printed.py').write_text(succeed(
        'misc/print_config.py', QUICKSTART, '--cfg-options',
        'model.pts_voxel_encoder.p=4.5', cwd=tmp_path))
    cfg = Config.fromfile(tmp_path / 'printed.py')
    assert cfg.model.pts_voxel_encoder.p == 4.5
    assert cfg.train_dataloader.batch_size == 2
