"""Parts of a LiDAR heatmap detector that do not fit one another."""
import numpy as np
import pytest
from conftest import QUICKSTART
from mmengine.config import Config
from mmengine.hub import get_config

from sigplug.engine.model_check import check_model
from sigplug.errors import UserError


@pytest.fixture
def cfg():
    return Config.fromfile(QUICKSTART)


def test_accepts_what_fits(cfg):
    for path in QUICKSTART.parent.glob('*.py'):
        check_model(Config.fromfile(path))
    check_model(get_config('mmdet3d::centerpoint/centerpoint_voxel01_second_'
                           'secfpn_8xb4-cyclic-20e_nus-3d.py'))
    check_model(Config(dict(model=dict(type='RetinaNet'))))
    cfg.model.train_cfg.pts.update(
        voxel_size=np.array([0.4, 0.4, 8]), grid_size=np.array([256, 256, 1]))
    check_model(cfg)


@pytest.mark.parametrize('option, value, words', [
    ('train_cfg.pts.voxel_size', [0.2, 0.2, 8], 'train_cfg.pts.voxel_size = '),
    ('pts_bbox_head.bbox_coder.voxel_size', [0.4, 0.2], 'bbox_coder.voxel'),
    ('data_preprocessor.voxel_layer.point_cloud_range',
     [-51.2, -51.2, -5, 51.2, 25.6, 3], r'grid_size .* \[256.0, 256.0\]'),
    ('train_cfg.pts.point_cloud_range', [0, -51.2, -5, 102.4, 51.2, 3],
     r'train_cfg.pts.point_cloud_range .* = \[0.0'),
    ('test_cfg.pts.out_size_factor', 8, 'test_cfg.pts.out_size_factor = .8'),
    ('pts_middle_encoder.output_shape', (256, 128), 'output_shape'),
    ('pts_bbox_head.tasks.0.num_class', 9, 'tasks.0 needs .* as many'),
    ('pts_bbox_head.tasks', [dict(num_class=1, class_names=['car'])],
     r"train_dataloader.dataset.metainfo.classes = .*class_names \['car'\]"),
    ('pts_bbox_head.tasks', [dict(class_names=[
        'truck', 'car', 'construction_vehicle', 'bus', 'trailer', 'barrier',
        'motorcycle', 'bicycle', 'pedestrian', 'traffic_cone'])],
     'same order'),
])
def test_names_what_does_not_fit(cfg, option, value, words):
    cfg.merge_from_dict({f'model.{option}': value})
    with pytest.raises(UserError, match=words):
        check_model(cfg)


def test_takes_a_head_of_the_first_classes_if_trained_on_them_alone(cfg):
    dataset = cfg.train_dataloader.dataset
    names = dataset.metainfo.classes[:3]
    cfg.model.pts_bbox_head.tasks = [dict(num_class=3, class_names=names)]
    with pytest.raises(UserError, match='with these'):
        check_model(cfg)
    step, = (step for step in dataset.pipeline
             if step.type == 'ObjectNameFilter')
    step.classes = names
    check_model(cfg)
