"""Every sample config computes losses and predicts; the small ones train."""
import copy
from pathlib import Path

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
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from mmengine.utils import import_modules_from_strings
from torch import nn

from sigplug.engine.upstream_fixes import train_spconv_on_cpu

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('[!_]*/*.py'))


def load(path: Path) -> Config:
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    import_modules_from_strings(
        [f'{cfg.default_scope}.{part}' for part in ('models', 'datasets')])
    return cfg


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


# Those with an Hourglass network take 8 s here.
@pytest.mark.parametrize('path', [
    pytest.param(path, id=path.stem, marks=(
        pytest.mark.slow if 'hourglass' in path.stem else ()))
    for path in CONFIGS if 'coco' in path.stem])
def test_loss_and_predictions_of_image_detectors(path):
    cfg = load(path)
    cfg.model.backbone.init_cfg = None  # no weights from elsewhere
    cfg.model.data_preprocessor.batch_augments = None  # to 1024 x 1024
    model = MODELS.build(cfg.model)
    inputs = demo_mm_inputs(2, [[3, 128, 128]] * 2, num_items=[3, 0])
    with torch.no_grad():
        losses = model(
            **model.data_preprocessor(copy.deepcopy(inputs), True),
            mode='loss')
        assert len(losses) >= 2
        assert model.parse_losses(losses)[0].isfinite()
        model.eval()
        inputs['data_samples'][0].set_metainfo(
            dict(border=[0, 128, 0, 128], batch_input_shape=(128, 128)))
        batch = {key: value[:1] for key, value in inputs.items()}
        out, = model(**model.data_preprocessor(batch, False), mode='predict')
    pred = out.pred_instances
    assert pred.bboxes.shape == (len(pred.scores), 4)
    assert pred.bboxes.isfinite().all()


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


def train(model: nn.Module, batch: dict, steps: int, lr: float) -> list[float]:
    """The losses of a short training on one batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    history = []
    for _ in range(steps):
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


@pytest.mark.parametrize(
    'path', [path for path in CONFIGS if 'mono3d' in path.stem],
    ids=lambda path: path.stem)
def test_monocular_detectors_train_and_predict(path):
    cfg = load(path)
    cfg.model.backbone.init_cfg = None  # no weights from elsewhere
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    model.bbox_head.init_weights()
    batch = mono_scene()
    history = train(model, batch, 4, 1e-3)
    assert history[-1] < 0.8 * history[0], history
    model.eval()
    with torch.no_grad():
        out = model(**model.data_preprocessor(batch, False), mode='predict')
    for sample in out:
        pred = sample.pred_instances_3d
        assert pred.bboxes_3d.tensor.shape == (len(pred.scores_3d), 7)


# A ResNet-50 takes 8 s here, an Hourglass network 31 s.
@pytest.mark.parametrize('path', [
    pytest.param(path, id=path.stem, marks=(
        () if path.stem.startswith('centernet_') else pytest.mark.slow))
    for path in CONFIGS if path.stem.startswith(
        ('centernet', 'centripetalnet', 'cornernet'))])
def test_training_of_image_detectors_lowers_the_loss(path):
    cfg = load(path)
    cfg.model.backbone.init_cfg = None
    cfg.model.data_preprocessor.batch_augments = None  # to 1024 x 1024
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    model.bbox_head.init_weights()
    batch = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_items=[3, 2])
    history = train(model, batch, 4, 1e-3)
    assert history[-1] < 0.8 * history[0], history


TASKS = [['car'], ['truck', 'construction_vehicle', 'bus', 'trailer'],
         ['barrier', 'motorcycle', 'bicycle', 'pedestrian', 'traffic_cone']]
VARIANTS = {
    'quickstart': {},
    'straight-through': dict(pts_bbox_head=dict(
        heatmap_act=dict(type='ClipSigmoid', grad='straight_through'),
        loss_cls=dict(_delete_=True, type='mmdet.GaussianFocalLoss'))),
    # And without a clip.
    'no velocity': dict(
        pts_bbox_head=dict(
            common_heads=dict(vel=None), bbox_coder=dict(code_size=7),
            loss_cls=dict(clip=None)),
        train_cfg=dict(pts=dict(code_weights=[1.0] * 8))),
    'three tasks, circle NMS, p per channel': dict(
        pts_voxel_encoder=dict(per_channel=True),
        pts_bbox_head=dict(tasks=[
            dict(num_class=len(names), class_names=names)
            for names in TASKS]),
        test_cfg=dict(pts=dict(
            nms_type='circle', min_radius=[4, 10, 0.5]))),
    'maximum': dict(pts_voxel_encoder=dict(
        p=float('inf'), p_trainable=False)),
    'voxels': {},
}
VOXELS = QUICKSTART.with_name(
    QUICKSTART.name.replace('pillar04', 'dv-voxel01'))


@pytest.fixture(scope='module')
def frames(synthetic_nuscenes) -> dict:
    """Two frames of the synthetic data set, as the data loader gives them."""
    cfg = load(QUICKSTART)
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = f'{synthetic_nuscenes}/'
    samples = DATASETS.build(dataset)
    return pseudo_collate([samples[0], samples[1]])


@pytest.mark.parametrize('variant', VARIANTS)
def test_training_lowers_the_loss(variant, frames):
    cfg = load(VOXELS if variant == 'voxels' else QUICKSTART)
    need_spconv(cfg.model)
    cfg.merge_from_dict(dict(model=copy.deepcopy(VARIANTS[variant])))
    head = cfg.model.pts_bbox_head
    for name in [k for k, v in head.common_heads.items() if v is None]:
        del head.common_heads[name]
    cfg.model.test_cfg.pts.score_threshold = 0.0
    head.bbox_coder.score_threshold = 0.0
    shrink(cfg.model, 2)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    model.pts_bbox_head.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(15):
        batch = model.data_preprocessor(copy.deepcopy(frames), True)
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
        if history[-1] < 0.6 * history[0]:
            break
    assert history[-1] < 0.6 * history[0], history
    assert all(p.grad is not None and p.grad.isfinite().all()
               for p in model.parameters())
    check_predictions(model, copy.deepcopy(frames), head.bbox_coder.code_size)
