"""Each error of a config names its key, and what to write instead."""
import pickle

import pytest
from conftest import QUICKSTART
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    HOOKS,
    MODELS,
    PARAM_SCHEDULERS,
    DefaultScope,
    init_default_scope,
)
from mmengine.runner import Runner
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import filter_eval_boxes
from torch import nn

from sigplug.cli import explain, preflight
from sigplug.errors import UserError


def explained(cfg, build):
    with pytest.raises(UserError) as error:
        with explain.explain_build_errors(cfg):
            with DefaultScope.overwrite_default_scope('mmdet3d'):
                build()
    return str(error.value)


# -- types ------------------------------------------------------------------
@pytest.mark.parametrize('name, hint', [
    ('ClipSigmod', "Did you mean 'ClipSigmoid'"),
    ('sigplug.CenterHaed', "Did you mean 'sigplug.CenterHead'"),
    ('mmdet.GaussianFocalLos', "Did you mean 'mmdet.GaussianFocalLoss'"),
    ('GeMPillarFeatureNet', "Write 'sigplug.GeMPillarFeatureNet': it has no "
     'bare name.'),
    ('GeMPilarFeatureNet', "Did you mean 'sigplug.GeMPillarFeatureNet'"),
    ('Zzzzzzzzzz', 'is not registered.'),
])
def test_type_that_is_not_registered(name, hint):
    cfg = Config(dict(default_scope='mmdet3d',
                      model=dict(type='Sequential', act=[dict(type=name)])))
    preflight.check_stack(cfg)
    message = explained(cfg, lambda: MODELS.build(cfg.model.act[0]))
    assert f"model.act.0.type = '{name}' is not registered." in message
    assert hint in message


def test_type_of_another_kind():
    cfg = Config(dict(default_scope='mmdet3d',
                      custom_hooks=[dict(type='ClipSigmoid')]))
    message = explained(cfg, lambda: HOOKS.build(cfg.custom_hooks[0]))
    assert message.startswith(
        'custom_hooks.0.type: KeyError: ClipSigmoid is not in the')


# -- values -----------------------------------------------------------------
class Mine(nn.Module):
    """A part of the user's."""

    def __init__(self, size=1):
        super().__init__()
        if size < 0:
            raise ValueError('size is below 0')
        self.size = size + 1


@pytest.fixture
def mine():
    MODELS.register_module(module=Mine)
    yield
    MODELS._module_dict.pop('Mine')


def build_parts(cfg):
    """Build what a runner builds, in its order."""
    for part in cfg.model.values():
        MODELS.build(part)
    for hook in cfg.custom_hooks:
        HOOKS.build(hook)
    wrapper = build_optim_wrapper(nn.Linear(2, 2), cfg.optim_wrapper)
    for scheduler in cfg.param_scheduler:
        PARAM_SCHEDULERS.build(scheduler, default_args=dict(
            optimizer=wrapper, epoch_length=10))


@pytest.mark.parametrize('key, value, message', [
    ('model.neck.p', -2, 'p must be above 0, but got -2'),
    ('model.neck.pp', 2, "GeMNeck takes no argument 'pp'. Did you mean 'p'?"),
    ('model.act.epsilon', 1, "ClipSigmoid takes no argument 'epsilon'."),
    # One of torch's, with an error of torch's.
    ('optim_wrapper.optimizer', dict(type='SGD', lr=-1.0),
     'Invalid learning rate: -1.0'),
    ('optim_wrapper.optimizer.lrr', 2,
     "SGD takes no argument 'lrr'. Did you mean 'lr'?"),
    ('param_scheduler.0.end', -3, 'end should be larger than begin'),
    ('custom_hooks.0.intervall', 5, 'HeatmapSaturationHook takes no '
     "argument 'intervall'. Did you mean 'interval'?"),
    ('model.mine.siz', 2,
     "Mine takes no argument 'siz'. Did you mean 'size'?"),
    ('model.mine.size', -1, 'size is below 0 ('),
])
def test_value_that_is_refused(mine, key, value, message):
    cfg = Config(dict(
        default_scope='mmdet3d', not_read=dict(type='GeMNeck', p=-2),
        model=dict(act=dict(type='ClipSigmoid'), neck=dict(type='GeMNeck'),
                   mine=dict(type='Mine', size=0)),
        custom_hooks=[dict(type='HeatmapSaturationHook')],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, begin=0,
                              end=2, convert_to_iter_based=True)]))
    preflight.check_stack(cfg)
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        build_parts(cfg)
    cfg.merge_from_dict({key: value})
    assert explained(cfg, lambda: build_parts(cfg)).startswith(
        f'{key}: {message}')


def test_nothing_to_evaluate():
    boxes = EvalBoxes()
    boxes.add_boxes('sample', [])
    message = explained(
        Config(), lambda: filter_eval_boxes(None, boxes, {}))
    assert 'no box' in message and 'train_cfg.val_begin' in message


def test_fault_of_ones_own_keeps_its_traceback(mine):
    cfg = Config(dict(model=dict(type='Mine', size='x')))
    with pytest.raises(TypeError, match='<'):
        with explain.explain_build_errors(cfg):
            MODELS.build(cfg.model)
    # Outside of a config.
    with pytest.raises(ValueError, match='of a training'):
        with explain.explain_build_errors(cfg):
            raise ValueError('of a training')


@pytest.mark.parametrize('key, value, message', [
    ('batchsize', 2, "train_dataloader.batchsize: DataLoader takes no "
     "argument 'batchsize'. Did you mean 'batch_size'?"),
    ('batch_size', -1, 'train_dataloader: batch_size should be a positive'),
])
def test_data_loader(key, value, message):
    cfg = Config(dict(train_dataloader=dict(
        batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler'))))
    cfg.train_dataloader[key] = value
    data = BaseDataset(lazy_init=True, serialize_data=False)
    data.data_list, data._fully_initialized = [{}], True

    def build():
        with explain.explain_data_errors(cfg.train_dataloader,
                                         'train_dataloader'):
            Runner.build_dataloader(dict(cfg.train_dataloader, dataset=data))

    assert explained(cfg, build).startswith(message)


# -- data sets --------------------------------------------------------------
def build_quickstart(root, classes=None, balanced=False):
    """Build the training data, as a runner does."""
    cfg = Config.fromfile(QUICKSTART)
    preflight.check_stack(cfg)
    from mmdet3d.registry import DATASETS
    dataset = cfg.train_dataloader.dataset
    dataset.update(data_root=f'{root}/',
                   metainfo=dict(classes=classes or cfg.class_names))
    if balanced:
        dataset = dict(type='CBGSDataset', dataset=dataset)
    init_default_scope('mmdet3d')
    with explain.explain_data_errors(dict(dataset=dataset)):
        return DATASETS.build(dataset)


@pytest.mark.parametrize('change, words', [
    (lambda infos: pickle.dumps(infos)[:-1000], 'truncated'),
    (lambda infos: infos['data_list'][3].pop('lidar_points') and
     pickle.dumps(infos), 'KeyError: lidar_points'),
])
def test_info_file_is_named(damageable, change, words):
    path = damageable / 'nuscenes_infos_train.pkl'
    path.write_bytes(change(pickle.loads(path.read_bytes())))
    with pytest.raises(UserError, match=words) as error:
        build_quickstart(damageable)
    assert f"The info file '{path}' cannot be used" in str(error.value)


@pytest.mark.parametrize('balanced', [False, True])
def test_class_that_the_data_set_does_not_have(synthetic_nuscenes, balanced):
    with pytest.raises(UserError) as error:
        build_quickstart(synthetic_nuscenes, ['cars', 'bus'], balanced)
    assert str(error.value).startswith(
        "metainfo.classes of NuScenesDataset names 'cars', which it does not "
        "have. Did you mean 'car'? It has ['car', 'truck', ")


@pytest.mark.parametrize('error', [
    ValueError('x is in no list'), KeyError('cars'), FileNotFoundError()])
def test_other_errors_are_not_those_of_classes(error):
    node = dict(type='mmdet3d.NuScenesDataset',
                metainfo=dict(classes=['cars']))
    with pytest.raises(type(error)):
        with explain.explain_data_errors(node):
            raise error


def test_class_without_a_sample(damageable):
    """CBGSDataset would divide by zero."""
    path = damageable / 'nuscenes_infos_train.pkl'
    infos = pickle.loads(path.read_bytes())
    for info in infos['data_list']:
        info['instances'] = []
    path.write_bytes(pickle.dumps(infos))
    with pytest.raises(UserError, match='one of the classes has no sample'):
        build_quickstart(damageable, balanced=True)
