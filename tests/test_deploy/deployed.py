"""A small detector with two tasks, exported quickly."""
import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICKSTART, load_tool
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import save_checkpoint

# The quickstart with half of its channels, and two tasks.
SMALL = f"""
_base_ = ['{QUICKSTART}']
model = dict(
    pts_voxel_encoder=dict(feat_channels=[16]),
    pts_middle_encoder=dict(in_channels=16),
    pts_backbone=dict(
        in_channels=16, out_channels=[16, 32, 64], layer_nums=[1, 1, 1]),
    pts_neck=dict(in_channels=[16, 32, 64], out_channels=[16, 16, 16]),
    pts_bbox_head=dict(
        in_channels=48, share_conv_channel=16,
        tasks=[dict(num_class=1, class_names=['car']),
               dict(num_class=2, class_names=['bus', 'truck'])],
        separate_head=dict(head_conv=16), bbox_coder=dict(
            score_threshold=0.3)))
"""


def make(folder, config, points=None):
    """The config, a model of it, and its checkpoint; both stay in files.

    Of the points, if any, it predicts some boxes, as after a training.
    """
    (folder / 'config.py').write_text(config)
    cfg = Config.fromfile(folder / 'config.py')
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    # As after a training: other statistics, and nothing still at 0.
    for layer in model.modules():
        if isinstance(layer, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
        if points is not None:
            spread_scores(model.eval(), points)
    meta = dict(dataset_meta=dict(classes=('a', 'b', 'c')))
    save_checkpoint(
        dict(state_dict=model.state_dict(), meta=meta),
        str(folder / 'epoch_1.pth'))
    return model.eval()


def spread_scores(model, points):
    """Give the logits of each class a mean of -2 and a deviation of 1.5."""
    inputs = model.data_preprocessor(
        dict(inputs=dict(points=[torch.from_numpy(points)])))['inputs']
    _, maps = model.extract_feat(inputs, [{}])
    for task, (outputs, ) in zip(model.pts_bbox_head.task_heads,
                                 model.pts_bbox_head(maps)):
        last, logits = task.heatmap[-1], outputs['heatmap']
        scale = 1.5 / logits.std((0, 2, 3))
        last.weight.mul_(scale.view(-1, 1, 1, 1))
        last.bias.sub_(logits.mean((0, 2, 3))).mul_(scale).sub_(2)


def cloud(n=6000):
    """Points everywhere: empty places would all get the same score."""
    points = np.random.default_rng(0).uniform(-1, 1, (n, 4)) * [52, 52, 3, 0.1]
    return points.astype(np.float32)


def trace(tool, patch):
    """Use the exporter of older torch, which traces the model; it is quicker.
    """
    patch.setattr(tool, 'EXPORTS_PROGRAMS', False)
    patch.setattr(torch.onnx, 'export',
                  functools.partial(torch.onnx.export, dynamo=False))


def export(folder: Path, config: str = SMALL, *options: str):
    """Return the model of ``folder``, exported to ``folder / 'epoch_1'``."""
    model = make(folder, config, cloud())
    tool = load_tool('deployment/export_onnx.py')
    with pytest.MonkeyPatch.context() as patch:
        trace(tool, patch)
        patch.setattr(sys, 'argv', [
            'export_onnx.py', str(folder / 'config.py'),
            str(folder / 'epoch_1.pth'), *options])
        tool.main()
    return model
