"""Every sample config computes losses and predicts; the small ones train."""
import copy
import re

import pytest
import torch
from conftest import QUICKSTART
from mmdet.testing import demo_mm_inputs
from mmdet3d.registry import DATASETS, MODELS
from mmdet3d.structures import (
    CameraInstance3DBoxes,
    Det3DDataSample,
    LiDARInstance3DBoxes,
)
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from test_configs import CONFIGS, load
from torch import nn

from sigplug.engine.upstream_fixes import train_spconv_on_cpu


def shrink(part, factor: int) -> None:
    """Divide the extent in x and y, so that a CPU is quick."""
    if isinstance(part, list):
        for entry in part:
            shrink(entry, factor)
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        if key in ('point_cloud_range', 'post_center_range',
                   'post_center_limit_range', 'pc_range'):
            part[key] = [v if i % 3 == 2 else v / factor
                         for i, v in enumerate(value)]
        elif key in ('grid_size', 'output_shape'):
            part[key] = [v // factor if i < 2 else v
                         for i, v in enumerate(value)]
        elif key == 'sparse_shape':
            part[key] = [v // factor if i else v for i, v in enumerate(value)]
        else:
            shrink(value, factor)


def need_spconv(model: dict) -> None:
    """Skip a test of sparse convolution where mmcv alone would do it."""
    if model.pts_middle_encoder.type == 'SparseEncoder':
        pytest.importorskip('spconv', reason='without spconv sparse '
                            'convolution needs CUDA')
        train_spconv_on_cpu()


def random_scene(model: dict) -> dict:
    """Points and boxes all over the map."""
    head = model.pts_bbox_head
    low, high = torch.tensor(
        model.train_cfg.pts.point_cloud_range).float().view(2, 3)
    size = 9 if 'vel' in head.common_heads else 7
    encoder = model.pts_voxel_encoder
    points = torch.rand(
        2000, encoder.get('in_channels') or encoder.num_features)
    points[:, :3] = low + points[:, :3] * (high - low)
    boxes = 1 + torch.rand(8, size)
    boxes[:, :3] = low + torch.rand(8, 3) * (high - low)
    labels = torch.randint(sum(t.num_class for t in head.tasks), (8, ))
    sample = Det3DDataSample(
        metainfo=dict(box_type_3d=LiDARInstance3DBoxes))
    sample.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=size), labels_3d=labels)
    return dict(inputs=dict(points=[points]), data_samples=[sample])


def check_predictions(model: nn.Module, batch: dict, size: int) -> None:
    model.eval()
    with torch.no_grad():
        out = model(**model.data_preprocessor(batch, False), mode='predict')
    for sample in out:
        pred = sample.pred_instances_3d
        assert pred.bboxes_3d.tensor.shape == (len(pred.scores_3d), size)
        assert pred.bboxes_3d.tensor.isfinite().all()
        assert ((pred.scores_3d > 0) & (pred.scores_3d < 1)).all()
        assert len(pred.scores_3d) > 0


@pytest.mark.parametrize(
    'path', [path for path in CONFIGS if 'centerpoint' in path.stem],
    ids=lambda path: path.stem)
def test_loss_and_predictions_of_centerpoint(path):
    cfg = load(path)
    need_spconv(cfg.model)
    # What the strides divide.
    shrink(cfg.model, 2 if 'kitti' in path.stem else
           5 if 'voxel0075' in path.stem else 4)
    cfg.model.pts_bbox_head.bbox_coder.max_num = 50
    cfg.model.test_cfg.pts.pre_max_size = 50
    model = MODELS.build(cfg.model)
    batch = random_scene(cfg.model)
    with torch.no_grad():
        losses = model(
            **model.data_preprocessor(copy.deepcopy(batch), True), mode='loss')
    tasks = len(cfg.model.pts_bbox_head.tasks)
    assert losses.keys() == {f'task{i}.loss_{part}' for i in range(tasks)
                             for part in ('heatmap', 'bbox')}
    assert all(loss.isfinite() for loss in losses.values())
    check_predictions(model, batch, cfg.model.pts_bbox_head.bbox_coder.
                      code_size)


def mono_scene() -> dict:
    """A noise image with boxes in front of the camera."""
    camera = [[45.0, 0, 32, 0], [0, 45, 32, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    place = torch.tensor([[-2, 0.5, 12], [3, 1, 15], [0.5, -1, 20]])
    center = 45 * place[:, :2] / place[:, 2:] + 32
    size, labels = torch.tensor([[10.0, 6.0]]), torch.tensor([0, 1, 2])
    sample = Det3DDataSample(metainfo=dict(
        cam2img=camera, box_type_3d=CameraInstance3DBoxes, affine_aug=False,
        trans_mat=[[.25, 0, 0], [0, .25, 0], [0, 0, 1]], img_shape=(64, 64)))
    sample.gt_instances_3d = InstanceData(
        bboxes_3d=CameraInstance3DBoxes(
            torch.cat((place, torch.rand(3, 4) + 1), 1), box_dim=7,
            origin=(0.5, 0.5, 0.5)),
        labels_3d=labels, centers_2d=center, depths=place[:, 2])
    sample.gt_instances = InstanceData(
        bboxes=torch.cat((center - size, center + size), 1), labels=labels)
    image = torch.randint(255, (3, 64, 64), dtype=torch.uint8)
    return dict(inputs=dict(img=[image]), data_samples=[sample])


def train(model: nn.Module, batch: dict, steps: int, lr: float,
          share: float) -> None:
    """Train on one batch until the loss has fallen to a share."""
    model.train()
    head, = (part for name, part in model.named_children()
             if name.endswith('bbox_head'))
    head.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    history: list[float] = []
    while not history or history[-1] >= share * history[0]:
        assert len(history) < steps, history
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())


# That with a ResNet-50 takes 8 s here, those with an Hourglass network 31 s.
@pytest.mark.parametrize('path', [
    pytest.param(path, id=path.stem, marks=(
        pytest.mark.slow if re.search('update|hourglass', path.stem) else ()))
    for path in CONFIGS if path.stem.endswith(('coco', 'mono3d'))])
def test_image_detectors_train_and_predict(path):
    cfg = load(path)
    cfg.model.backbone.init_cfg = None  # no weights from elsewhere
    cfg.model.data_preprocessor.batch_augments = None  # to 1024 x 1024
    model = MODELS.build(cfg.model)
    mono = 'mono3d' in path.stem
    batch = mono_scene() if mono else demo_mm_inputs(
        2, [[3, 64, 64]] * 2, num_items=[3, 2])
    # One step of those without a heatmap.
    train(model, batch, 4, 1e-3, 2 if 'retinanet' in path.stem else 0.8)
    model.eval()
    # Corner heads take one image.
    batch = {name: value if mono else value[:1]
             for name, value in batch.items()}
    batch['data_samples'][0].set_metainfo(dict(
        border=[0, 64, 0, 64], batch_input_shape=(64, 64)))
    with torch.no_grad():
        out, = model(**model.data_preprocessor(batch, False), mode='predict')
    boxes = (out.pred_instances_3d.bboxes_3d.tensor if mono else
             out.pred_instances.bboxes)
    assert boxes.shape[1] == (7 if mono else 4) and boxes.isfinite().all()


@pytest.fixture(scope='module')
def frames(synthetic_nuscenes) -> dict:
    """Two frames of the synthetic data set, as the data loader gives them."""
    cfg = load(QUICKSTART)
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = f'{synthetic_nuscenes}/'
    samples = DATASETS.build(dataset)
    return pseudo_collate([samples[0], samples[1]])


@pytest.mark.parametrize('voxels', ['pillar04', 'dv-voxel01'])
def test_training_lowers_the_loss(voxels, frames):
    cfg = load(QUICKSTART.with_name(
        QUICKSTART.name.replace('pillar04', voxels)))
    need_spconv(cfg.model)
    cfg.model.test_cfg.pts.score_threshold = 0.0
    coder = cfg.model.pts_bbox_head.bbox_coder
    coder.score_threshold = 0.0
    shrink(cfg.model, 4)
    model = MODELS.build(cfg.model)
    train(model, frames, 15, 2e-3, 0.6)
    assert all(p.grad is not None and p.grad.isfinite().all()
               for p in model.parameters())
    check_predictions(model, copy.deepcopy(frames), coder.code_size)
