"""Parts of a LiDAR heatmap detector that do not fit one another."""
import copy
from functools import cache

import pytest
from conftest import QUICKSTART
from mmdet3d.datasets import CBGSDataset, NuScenesDataset
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import (
    BaseDataset,
    ClassBalancedDataset,
    ConcatDataset,
    RepeatDataset,
)
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from torch import nn

from sigplug.cli.model_check import check_model
from sigplug.errors import UserError

CLASSES = Config.fromfile(QUICKSTART).class_names
# Of mmdet3d itself: trailer before bus.
OWN = NuScenesDataset.METAINFO['classes']


class Data(BaseDataset):
    """Two samples of every class."""

    def load_data_list(self):
        return [{}, {}]

    def get_cat_ids(self, index):
        return set(range(len(self.metainfo['classes'])))


def data(classes=CLASSES, *steps):
    dataset = Data(metainfo=dict(classes=list(classes)))
    dataset.pipeline.transforms = list(steps)
    return dataset


@cache
def load(path):
    return get_config(path) if '::' in str(path) else Config.fromfile(path)


def build(path=QUICKSTART, **options):
    cfg = copy.deepcopy(load(path))
    cfg.merge_from_dict({
        f'model.{key}': value for key, value in options.items()})
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        return MODELS.build(cfg.model)


def check(model=None, dataset=None, **options):
    check_model(model or build(**options), dict(train=dataset or data()))


def refused(*args, **kwargs):
    with pytest.raises(UserError) as error:
        check(*args, **kwargs)
    return str(error.value)


def own(part, method):
    """Let a part have a method of its own, which is never called."""
    part.__class__ = type('Mine', (type(part), ), {method: None})


@pytest.fixture(scope='module')
def model():
    return build()


@pytest.mark.parametrize('path', [
    *QUICKSTART.parent.glob('*pillar*mini*.py'),
    'mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_'
    'nus-3d.py',
], ids=lambda path: str(path)[-60:])
def test_accepts_what_is_shipped(path):
    model = build(path)
    before = {name: value.device for name, value in model.state_dict().items()}
    check(model)
    # The layers were asked in a copy.
    assert model.training and before == {
        name: value.device for name, value in model.state_dict().items()}


def test_leaves_other_models_alone():
    check(nn.Linear(2, 2), data(OWN))


# -- classes ----------------------------------------------------------------
@pytest.mark.parametrize('wrap', [
    lambda dataset: dataset,
    lambda dataset: RepeatDataset(dataset, times=2),
    lambda dataset: ClassBalancedDataset(dataset, oversample_thr=0.1),
    CBGSDataset,
    lambda dataset: ConcatDataset([data(), dataset],
                                  ignore_keys=['classes']),
])
def test_classes_inside_wrappers(model, wrap):
    message = refused(model, wrap(data(OWN)))
    assert "'truck', 'trailer', 'bus'" in message
    assert 'model.pts_bbox_head has the class_names' in message
    check(model, wrap(data()))


def test_other_heads(model):
    detector = nn.Module()
    detector.bbox_head = model.pts_bbox_head
    assert 'model.bbox_head has the class' in refused(detector, data(OWN))
    # Two heads share the classes in a way of their own.
    detector.aux_head = nn.Module()
    detector.aux_head.class_names = [['bus'], ['car']]
    check(detector, data(OWN))


def test_head_with_labels_of_its_own():
    model = build()
    own(model.pts_bbox_head, 'get_targets')
    check(model, data(OWN))


@pytest.mark.parametrize('classes', [
    CLASSES[:9], [*CLASSES, 'animal'], [name.title() for name in CLASSES]])
def test_classes_that_only_one_of_them_has(model, classes):
    check(model, data(classes))


# -- grids ------------------------------------------------------------------
@pytest.mark.parametrize('option, value, words', [
    ('train_cfg.pts.voxel_size', [0.2, 0.2, 8], 'model.train_cfg.pts gives'),
    ('train_cfg.pts.out_size_factor', 4, 'the voxel_size * out_size_factor'),
    ('pts_bbox_head.bbox_coder.voxel_size', [0.4, 0.2],
     'model.pts_bbox_head.bbox_coder gives'),
    ('pts_voxel_encoder.voxel_size', [0.2, 0.2, 8], 'model.pts_voxel_encoder'),
    ('data_preprocessor.voxel_layer.point_cloud_range',
     [-51.2, -25.6, -5, 51.2, 51.2, 3], '[-51.2, -25.6]'),
    ('train_cfg.pts.point_cloud_range', [0, -51.2, -5, 102.4, 51.2, 3],
     '[0.0, -51.2]'),
])
def test_grids_that_differ(option, value, words):
    assert words in refused(**{option: value})


@pytest.mark.parametrize('options', [
    # Read by none.
    {'test_cfg.pts.out_size_factor': 8},
    {'pts_voxel_encoder.with_voxel_center': False,
     'pts_voxel_encoder.voxel_size': [0.2, 0.2, 4]},
    # A canvas beyond the range.
    {'pts_middle_encoder.output_shape': (320, 320),
     'train_cfg.pts.grid_size': [320, 320, 1]},
    # Cells of the map in place of voxels.
    {'pts_bbox_head.bbox_coder.voxel_size': [0.8, 0.8],
     'pts_bbox_head.bbox_coder.out_size_factor': 1},
])
def test_grids_that_work(options):
    check(**options)


def test_targets_do_not_matter_in_a_test():
    model = build(**{'train_cfg.pts.out_size_factor': 4})
    check_model(model, dict(test=None))


# -- strides ----------------------------------------------------------------
def pillars(cells):
    low = -0.2 * cells
    area = [low, low, -5, low + 0.4 * cells, low + 0.4 * cells, 3]
    return {
        'data_preprocessor.voxel_layer.point_cloud_range': area,
        'pts_voxel_encoder.point_cloud_range': area,
        'pts_middle_encoder.output_shape': (cells, cells),
        'pts_bbox_head.bbox_coder.pc_range': area[:2],
        'train_cfg.pts.point_cloud_range': area,
        'train_cfg.pts.grid_size': [cells, cells, 1]}


def test_strides_that_do_not_divide_the_grid():
    assert ('do not divide the 250 cells of the grid in x; 256 would fit'
            in refused(**pillars(250)))


def test_strides_that_divide_another_grid():
    check(**pillars(248))
    # One level has nothing to be joined with.
    check(**pillars(250), **{
        'pts_backbone.layer_nums': [2], 'pts_backbone.layer_strides': [2],
        'pts_backbone.out_channels': [32], 'pts_neck.in_channels': [32],
        'pts_neck.out_channels': [96], 'pts_neck.upsample_strides': [1]})


@pytest.mark.parametrize('place, method', [
    ('', 'extract_feat'), ('pts_middle_encoder', 'forward'),
    ('pts_bbox_head', 'forward')])
def test_layers_of_ones_own(place, method):
    """What happens between the voxels and the head is theirs."""
    model = build(**pillars(250))
    assert 'do not divide' in refused(model)
    own(model.get_submodule(place), method)
    check(model)


@pytest.mark.parametrize('shape, fits', [(1008, True), (1000, False)])
def test_strides_behind_sparse_convolutions(shape, fits):
    """A voxel is an eighth of a cell of the map, rounded up."""
    area = [-50, -50, -5, 50, 50, 3]
    model = build(
        'mmdet3d::centerpoint/centerpoint_voxel01_second_secfpn_8xb4-cyclic-'
        '20e_nus-3d.py', **{
            'data_preprocessor.voxel_layer.point_cloud_range': area,
            'pts_middle_encoder.sparse_shape': [41, shape, shape],
            'pts_bbox_head.bbox_coder.pc_range': area[:2],
            'train_cfg.pts.point_cloud_range': area,
            'train_cfg.pts.grid_size': [shape, shape, 40]})
    if fits:
        check(model)
    else:
        assert 'the 1000 cells of the grid in x; 1024 would' in refused(model)


# -- detectors --------------------------------------------------------------
@pytest.mark.parametrize('method', [
    None, 'extract_feat', 'extract_pts_feat'])
def test_detector_for_hard_voxels(method):
    """Features of the user's own are left alone."""
    model = build(type='CenterPoint', pts_voxel_encoder=dict(
        type='sigplug.GeMDynamicPillarFeatureNet', _delete_=True,
        in_channels=4, feat_channels=[32], voxel_size=[0.4, 0.4, 8],
        point_cloud_range=[-51.2, -51.2, -5, 51.2, 51.2, 3]))
    if method:
        own(model, method)
        check(model)
    else:
        message = refused(model)
        assert "'CenterPoint' is for hard voxels" in message
        assert "type='DynamicMVXFasterRCNN'" in message
