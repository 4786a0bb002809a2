"""One clear message per known failure."""
import os
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from mmdet3d.evaluation import NuScenesMetric
from mmengine.config import Config

from sigplug.cli import preflight
from sigplug.errors import UserError


@pytest.fixture
def data_root(tmp_path):
    root = tmp_path / 'nuscenes'
    (root / 'samples').mkdir(parents=True)
    for name in ('infos', 'dbinfos', 'annotations'):
        (root / f'{name}.pkl').touch()
    return root


def data_config(root):
    dataset = dict(
        type='CBGSDataset',
        dataset=dict(
            data_root=f'{root}/', ann_file='infos.pkl',
            data_prefix=dict(pts='samples', img=''),
            pipeline=[dict(type='A'),
                      dict(db_sampler=dict(info_path=f'{root}/dbinfos.pkl'))]))
    return Config(
        dict(
            train_dataloader=dict(dataset=dataset),
            val_dataloader=dict(dataset=dict(data_root=f'{root}/')),
            val_evaluator=[dict(
                data_root=f'{root}/', ann_file=f'{root}/annotations.pkl')]))


@pytest.fixture
def config(tmp_path):
    """A function that writes a config and returns its path."""

    def config(text):
        (tmp_path / 'config.py').write_text(text)
        return str(tmp_path / 'config.py')

    return config


def test_load_config_merges_options(config):
    path = config('a = dict(b=1, c=[dict(d=2)])\n')
    cfg = preflight.load_config(path, {'a.b': 3, 'a.c.0.d': 4})
    assert cfg.a == dict(b=3, c=[dict(d=4)])
    with pytest.raises(UserError, match=r'--cfg-options a.c.7.d=4'):
        preflight.load_config(path, {'a.c.7.d': 4})


@pytest.mark.parametrize('key, words', [
    ('load_form', "the config has no 'load_form'. Did you mean 'load_from'?"),
    ('foo', "the config has no 'foo', and nothing reads it"),
    ('train_dataloader.batchsize', "train_dataloader has no 'batchsize'. Did "
     "you mean 'batch_size'?"),
    ('hooks.0.intervall', "hooks.0 has no 'intervall'. Did you mean "
     "'interval'?"),
    ('load_from', None), ('randomness.seed', None), ('compile', None),
    # Arguments that the config leaves out.
    ('train_dataloader.num_workers', None), ('hooks.0.priority', None),
    ('hooks.0.new.thing', None),
])
def test_option_that_nothing_reads(config, key, words):
    path = config('train_dataloader = dict(batch_size=4)\n'
                  "hooks = [dict(type='A', interval=3)]\n")
    if words is None:
        preflight.load_config(path, {key: 2})
    else:
        with pytest.raises(UserError, match=re.escape(
                f'--cfg-options {key}: {words}')):
            preflight.load_config(path, {key: 2})


def test_config_of_an_installed_package():
    name = ('mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_8xb4-'
            'cyclic-20e_nus-3d.py')
    cfg = preflight.load_config(name, {'model.pts_bbox_head.norm_bbox': False})
    assert cfg.model.type == 'CenterPoint'
    assert not cfg.model.pts_bbox_head.norm_bbox
    with pytest.raises(UserError, match='cannot be found') as error:
        preflight.load_config('mmdet3d::no/such.py')
    assert len(str(error.value)) < 400


@pytest.mark.parametrize('text', [
    'a = dict(', "_base_ = './missing.py'", 'a = dict(b=1)["c"]'])
def test_load_config_broken(config, text):
    with pytest.raises(UserError, match='config.py.* cannot be read'):
        preflight.load_config(config(text))


@pytest.mark.parametrize('name, words', [
    ('honest_plugin', 'ImportError: pip install it (from ModuleNotFoundError: '
     "No module named 'no_such_library') (while importing 'honest_plugin' of "
     'custom_imports)'),
    ('broken_plugin', "ModuleNotFoundError: No module named 'no_such_library' "
     "(while importing 'broken_plugin' of custom_imports)"),
    ('no_such_folder.plugin', "No module named 'no_such_folder'. It is in "
     'custom_imports of the config: add the folder that holds it to PYTHONP'),
])
def test_first_cause_of_a_failed_import(tmp_path, monkeypatch, config, name,
                                        words):
    """PYTHONPATH helps only where the module itself is missing."""
    (tmp_path / 'broken_plugin.py').write_text('import no_such_library')
    (tmp_path / 'honest_plugin.py').write_text(
        'try:\n    import no_such_library\n'
        "except ImportError:\n    raise ImportError('pip install it')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError) as error:
        preflight.load_config(config(
            f"custom_imports = dict(imports=['json', {name!r}])"))
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
    ('dbinfos.pkl',
     'train_dataloader.dataset.dataset.pipeline.1.db_sampler.info_path'),
    ('annotations.pkl', 'val_evaluator.0.ann_file'),
])
def test_check_data_names_what_is_missing(data_root, missing, key):
    cfg = data_config(data_root)
    os.rename(data_root / missing, data_root.parent / 'elsewhere')
    with pytest.raises(UserError, match=re.escape(f'({key})')):
        preflight.check_data(cfg, key.partition('_')[0])
    preflight.check_data(cfg, 'test')


def test_tables_that_are_evaluated(data_root):
    """The version is that of the data set."""
    cfg = data_config(data_root)
    dataset = SimpleNamespace(metainfo=dict(version='v1.0-mini'))
    for kind in ('mmdet3d.NuScenesMetric', NuScenesMetric):
        cfg.val_evaluator[0].type = kind
        with pytest.raises(UserError, match='nuscenes/v1.0-mini'):
            preflight.check_tables(cfg, 'val', dataset)
    preflight.check_tables(cfg, 'val', None)
    cfg.val_evaluator[0].format_only = True
    preflight.check_tables(cfg, 'val', dataset)
    cfg.val_evaluator[0].format_only = False
    (data_root / 'v1.0-mini').mkdir()
    preflight.check_tables(cfg, 'val', dataset)


def test_check_checkpoint(tmp_path, monkeypatch):
    good = str(tmp_path / 'good.pth')
    torch.save(dict(a=torch.zeros(3)), good)
    assert preflight.check_checkpoint(good, 'x')['a'].sum() == 0
    monkeypatch.setenv('HOME', str(tmp_path))
    assert 'a' in preflight.check_checkpoint('~/good.pth', 'x')
    assert preflight.check_checkpoint('https://a.org/x.pth', 'x') == {}
    # The format of torch before 1.6.
    torch.save(dict(a=1), good, _use_new_zipfile_serialization=False)
    assert preflight.check_checkpoint(good, 'x') == dict(a=1)
    with pytest.raises(UserError, match="^x '.*Did you mean 'good.pth'"):
        preflight.check_checkpoint(str(tmp_path / 'god.pth'), 'x')
    with pytest.raises(UserError, match='x: .* has no b, c. .* load_from='):
        preflight.check_checkpoint(good, 'x', 'abc')
