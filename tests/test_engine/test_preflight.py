"""One clear message per known failure."""
import os
import pickle
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import QUICKSTART
from mmdet3d.evaluation import NuScenesMetric
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from sigplug.engine import preflight
from sigplug.errors import UserError


@pytest.fixture
def data_root(tmp_path):
    root = tmp_path / 'nuscenes'
    (root / 'samples').mkdir(parents=True)
    (root / 'infos.pkl').touch()
    return root


def data_config(root):
    dataset = dict(
        type='CBGSDataset',
        dataset=dict(
            data_root=f'{root}/', ann_file='infos.pkl',
            data_prefix=dict(pts='samples', img=''),
            pipeline=[dict(type='A'),
                      dict(db_sampler=dict(info_path=f'{root}/infos.pkl'))]))
    return Config(
        dict(
            train_dataloader=dict(dataset=dataset),
            val_dataloader=dict(dataset=dict(data_root=f'{root}/')),
            val_evaluator=[
                dict(data_root=f'{root}/', ann_file=f'{root}/infos.pkl')
            ]))


def test_load_config_merges_options(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text('a = dict(b=1, c=[dict(d=2)])\n')
    cfg = preflight.load_config(str(path), {'a.b': 3, 'a.c.0.d': 4})
    assert cfg.a == dict(b=3, c=[dict(d=4)])
    with pytest.raises(UserError, match=r'--cfg-options a.c.7.d=4'):
        preflight.load_config(str(path), {'a.c.7.d': 4})


def test_load_config_names_a_similar_file(tmp_path):
    (tmp_path / 'centerpoint.py').touch()
    with pytest.raises(UserError, match="Did you mean 'centerpoint.py'"):
        preflight.load_config(str(tmp_path / 'centrepoint.py'))


@pytest.mark.parametrize('text', [
    'a = dict(',
    "_base_ = './missing.py'",
    'a = b',
    'a = dict(b=1)["c"]',
    "custom_imports = dict(imports=['no_such_package'],"
    ' allow_failed_imports=False)',
])
def test_load_config_broken(tmp_path, text):
    path = tmp_path / 'config.py'
    path.write_text(text)
    with pytest.raises(UserError, match='config.py.* cannot be read'):
        preflight.load_config(str(path))


@pytest.mark.parametrize('name, words', [
    ('honest_plugin', 'ImportError: pip install it (from ModuleNotFoundError: '
     "No module named 'no_such_library') (while importing 'honest_plugin' of "
     'custom_imports)'),
    ('broken_plugin', "ModuleNotFoundError: No module named 'no_such_library' "
     "(while importing 'broken_plugin' of custom_imports)"),
    ('no_such_folder.plugin', "No module named 'no_such_folder'. It is in "
     'custom_imports of the config: add the folder that holds it to PYTHONP'),
])
def test_first_cause_of_a_failed_import(tmp_path, monkeypatch, name, words):
    """PYTHONPATH helps only where the module itself is missing."""
    (tmp_path / 'broken_plugin.py').write_text('import no_such_library')
    (tmp_path / 'honest_plugin.py').write_text(
        'try:\n    import no_such_library\n'
        "except ImportError:\n    raise ImportError('pip install it')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / 'config.py'
    path.write_text(f"custom_imports = dict(imports=['json', {name!r}])")
    with pytest.raises(UserError) as error:
        preflight.load_config(str(path))
    assert words in str(error.value)
    assert ('PYTHONPATH' in str(error.value)) == (
        name == 'no_such_folder.plugin')


def test_check_stack_names_the_broken_package(monkeypatch):
    # None in sys.modules makes an import fail.
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    preflight.check_stack(Config(dict(default_scope='mmengine')))
    with pytest.raises(UserError, match='mmcv.ops cannot be imported'):
        preflight.check_stack(Config(dict(default_scope='mmdet3d')))


def test_check_data_accepts_what_is_there(data_root):
    preflight.check_data(data_config(data_root), 'train', 'val', 'test')


@pytest.mark.parametrize('missing, key', [
    ('.', 'train_dataloader.dataset.dataset.data_root'),
    ('infos.pkl', 'train_dataloader.dataset.dataset.ann_file'),
    ('samples', 'train_dataloader.dataset.dataset.data_prefix.pts'),
])
def test_check_data_names_what_is_missing(data_root, missing, key):
    cfg = data_config(data_root)
    os.rename(data_root / missing, data_root.parent / 'elsewhere')
    with pytest.raises(UserError, match=re.escape(f'({key})')):
        preflight.check_data(cfg, 'train')


def test_check_data_looks_into_the_pipeline_and_the_evaluator(data_root):
    cfg = data_config(data_root)
    sampler = cfg.train_dataloader.dataset.dataset.pipeline[1].db_sampler
    sampler.info_path = 'dbinfos.pkl'
    cfg.val_evaluator[0].ann_file = 'nowhere.pkl'
    with pytest.raises(UserError, match=r'pipeline\.1\.db_sampler\.info'):
        preflight.check_data(cfg, 'train')
    with pytest.raises(UserError, match=r'val_evaluator\.0\.ann_file'):
        preflight.check_data(cfg, 'val')
    preflight.check_data(cfg, 'test')


def test_tables_that_are_evaluated(data_root):
    """The version is that of the data set."""
    cfg = data_config(data_root)
    evaluator = cfg.val_evaluator[0]
    dataset = SimpleNamespace(metainfo=dict(version='v1.0-mini'))
    for kind in ('mmdet3d.NuScenesMetric', NuScenesMetric):
        evaluator.type = kind
        with pytest.raises(UserError, match='nuscenes/v1.0-mini'):
            preflight.check_tables(cfg, 'val', dataset)
    preflight.check_tables(cfg, 'val', None)
    for change in (dict(format_only=True), dict(type='MyNuScenesMetric'),
                   dict(backend_args=dict(backend='petrel'))):
        other = Config(dict(val_evaluator=dict(evaluator, **change)))
        preflight.check_tables(other, 'val', dataset)
    (data_root / 'v1.0-mini').mkdir()
    preflight.check_tables(cfg, 'val', dataset)


@pytest.mark.parametrize('change, words', [
    (lambda infos: pickle.dumps(infos)[:-1000], 'truncated'),
    (lambda infos: pickle.dumps(dict(infos=[], metadata={})),
     'ValueError.*data_list and metainfo'),
    (lambda infos: infos['data_list'][3].pop('lidar_points') and
     pickle.dumps(infos), 'KeyError: lidar_points'),
])
def test_info_file_is_named(damageable, change, words):
    path = damageable / 'nuscenes_infos_train.pkl'
    path.write_bytes(change(pickle.loads(path.read_bytes())))
    cfg = Config.fromfile(QUICKSTART)
    preflight.check_stack(cfg)
    from mmdet3d.registry import DATASETS
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = f'{damageable}/'
    init_default_scope('mmdet3d')
    with pytest.raises(UserError, match=words) as error:
        with preflight.explain_data_errors(cfg.train_dataloader):
            DATASETS.build(dataset)
    assert f"The info file '{path}' cannot be used" in str(error.value)


def build_quickstart(root, classes, balanced):
    """Build the training data, as a runner does."""
    cfg = Config.fromfile(QUICKSTART)
    preflight.check_stack(cfg)
    from mmdet3d.registry import DATASETS
    dataset = cfg.train_dataloader.dataset
    dataset.update(data_root=f'{root}/', metainfo=dict(classes=classes))
    if balanced:
        dataset = dict(type='CBGSDataset', dataset=dataset)
    init_default_scope('mmdet3d')
    with preflight.explain_data_errors(dict(dataset=dataset)):
        return DATASETS.build(dataset)


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
        with preflight.explain_data_errors(node):
            raise error


def test_class_without_a_sample(damageable):
    """CBGSDataset would divide by zero."""
    path = damageable / 'nuscenes_infos_train.pkl'
    infos = pickle.loads(path.read_bytes())
    bus = infos['metainfo']['categories']['bus']
    for info in infos['data_list']:
        info['instances'] = [
            instance for instance in info['instances']
            if instance['bbox_label_3d'] != bus]
    path.write_bytes(pickle.dumps(infos))
    assert len(build_quickstart(damageable, ['car'], True))
    with pytest.raises(UserError, match="no sample of 'nuscenes_infos_train."
                       "pkl' has a bus. Leave the class out"):
        build_quickstart(damageable, ['car', 'bus'], True)


def save(path, **content):
    torch.save(content, path)
    return str(path)


def test_check_checkpoint(tmp_path, monkeypatch):
    good = save(tmp_path / 'good.pth', state_dict=dict(p=torch.zeros(3)))
    assert preflight.check_checkpoint(good, 'x')['state_dict']['p'].sum() == 0
    monkeypatch.setenv('HOME', str(tmp_path))
    assert 'state_dict' in preflight.check_checkpoint('~/good.pth', 'x')
    assert preflight.check_checkpoint('https://a.org/x.pth', 'x') == {}
    # The format of torch before 1.6.
    torch.save(dict(a=1), good, _use_new_zipfile_serialization=False)
    assert preflight.check_checkpoint(good, 'x') == dict(a=1)
    with pytest.raises(UserError, match="^x '.*Did you mean 'good.pth'"):
        preflight.check_checkpoint(str(tmp_path / 'god.pth'), 'x')
    with pytest.raises(UserError, match='x: .* has no b, c. .* load_from='):
        preflight.check_checkpoint(good, 'x', 'abc')


@pytest.mark.parametrize('name, hint', [
    ('ClipSigmod', "Did you mean 'ClipSigmoid'"),
    ('sigplug.CenterHaed', "Did you mean 'sigplug.CenterHead'"),
    ('mmdet.GaussianFocalLos', "Did you mean 'mmdet.GaussianFocalLoss'"),
    ('Zzzzzzzzzz', 'is not registered.'),
])
def test_registry_errors_name_the_type(name, hint):
    cfg = Config(dict(default_scope='mmdet3d',
                      model=dict(type='Sequential', act=[dict(type=name)])))
    preflight.check_stack(cfg)
    with pytest.raises(UserError) as error:
        with preflight.explain_registry_errors(cfg):
            with DefaultScope.overwrite_default_scope('mmdet3d'):
                MODELS.build(cfg.model.act[0])
    assert f"model.act.0.type = '{name}' is not registered." in str(
        error.value)
    assert hint in str(error.value)
