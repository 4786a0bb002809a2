"""One clear message per known failure, and a traceback for the others."""
import datetime
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import build_model_from_cfg

from sigplug.engine import preflight
from sigplug.engine.checkpoint import allow_mmengine_checkpoints
from sigplug.engine.preflight import PreflightError


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


def test_run_tool_prints_a_known_error(capsys):

    def tool():
        raise PreflightError('no data at x')

    assert preflight.run_tool(tool) == 2
    captured = capsys.readouterr()
    assert captured.err == 'error: no data at x\n' and not captured.out


def test_run_tool_lets_unknown_errors_pass():

    def tool():
        raise ValueError('a bug')

    with pytest.raises(ValueError, match='a bug'):
        preflight.run_tool(tool)
    assert preflight.run_tool(lambda: None) == 0


@pytest.mark.parametrize('name', ['RANK', 'SLURM_PROCID'])
def test_only_the_first_rank_prints(monkeypatch, capsys, name):
    monkeypatch.setenv(name, '1')
    preflight.print_once('text')
    assert capsys.readouterr().out == ''
    monkeypatch.setenv(name, '0')
    preflight.print_once('text')
    assert capsys.readouterr().out == 'text\n'


def test_load_config_of_a_folder(tmp_path):
    with pytest.raises(PreflightError, match='is a folder'):
        preflight.load_config(str(tmp_path))


@pytest.mark.parametrize('scope, key, name, hint', [
    ('mmdet3d', 'model.type', 'CenterPont', 'CenterPoint'),
    ('mmdet3d', 'model.head.type', 'sigplug.CenterHaed',
     'sigplug.CenterHead'),
    ('mmdet3d', 'model.head.loss.type', 'mmdet.GaussianFocalLos',
     'mmdet.GaussianFocalLoss'),
    ('mmdet3d', 'model.head.coder.type', 'CenterPointBBoxCodr',
     'CenterPointBBoxCoder'),
    ('mmdet3d', 'model.necks.0.act_cfg.type', 'ClipSigmod', 'ClipSigmoid'),
    ('mmdet3d', 'model.head.heatmap_act.type', 'ClipSigmod', 'ClipSigmoid'),
    ('mmdet3d', 'data.dataset.type', 'NuScenesDatset', 'NuScenesDataset'),
    ('mmdet3d', 'custom_hooks.0.type', 'HeatmapSaturationHok',
     'HeatmapSaturationHook'),
    ('mmdet', 'model.bbox_head.type', 'CenterNetHed', 'CenterNetHead'),
])
def test_a_misspelt_type_has_a_near_one(scope, key, name, hint):
    """Of mmdet3d, mmdet and ours, however deep it lies."""
    cfg = Config(dict(default_scope=scope))
    node = name
    for part in reversed(key.split('.')):
        node = [node] if part.isdigit() else {part: node}
    cfg.merge_from_dict(node)
    preflight.check_stack(cfg)
    (found, got, words), = preflight.unknown_types(cfg)
    assert (found, got) == (key.removesuffix('.type'), name)
    assert words.startswith(f' Did you mean {hint!r}')


def test_load_config_merges_options(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text('a = dict(b=1, c=[dict(d=2)])\n')
    cfg = preflight.load_config(str(path), {'a.b': 3, 'a.c.0.d': 4})
    assert cfg.a == dict(b=3, c=[dict(d=4)])
    with pytest.raises(PreflightError, match=r'--cfg-options a.c.7.d=4'):
        preflight.load_config(str(path), {'a.c.7.d': 4})


def test_load_config_names_a_similar_file(tmp_path):
    (tmp_path / 'centerpoint.py').touch()
    with pytest.raises(PreflightError, match="Did you mean 'centerpoint.py'"):
        preflight.load_config(str(tmp_path / 'centrepoint.py'))


@pytest.mark.parametrize('text', [
    'a = dict(',
    "_base_ = './missing.py'",
    "_base_ = 'missing.py::x'",
    "_base_ = 'mmnothing::a/missing.py'",
    "custom_imports = dict(imports=['no_such_package'],"
    ' allow_failed_imports=False)',
])
def test_load_config_broken(tmp_path, text):
    path = tmp_path / 'config.py'
    path.write_text(text)
    with pytest.raises(PreflightError, match='config.py.* cannot be read'):
        preflight.load_config(str(path))


def test_load_config_wrong_suffix(tmp_path):
    path = tmp_path / 'config.txt'
    path.touch()
    with pytest.raises(PreflightError, match='cannot be read.*py/yml/yaml'):
        preflight.load_config(str(path))


def test_check_stack_names_the_broken_package(monkeypatch):
    # None in sys.modules makes an import fail.
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    preflight.check_stack(Config(dict(default_scope='mmengine')))
    with pytest.raises(PreflightError, match='mmcv.ops cannot be imported'):
        preflight.check_stack(Config(dict(default_scope='mmdet3d')))


def test_check_stack_lets_mmdet3d_paste_objects(tmp_path, monkeypatch):
    """Which mmdet3d 1.4.0 does with np.long, unknown to numpy 1.26."""
    np.zeros((5, 4), dtype=np.float32).tofile(tmp_path / 'car.bin')
    car = dict(
        name='Car', path='car.bin', group_id=0, num_points_in_gt=5,
        difficulty=0, box3d_lidar=np.array([9, 0, 0, 4, 2, 2, 0.0]))
    with open(tmp_path / 'dbinfos.pkl', 'wb') as file:
        pickle.dump(dict(Car=[car]), file)
    monkeypatch.delitem(vars(np), 'long', raising=False)
    preflight.check_stack(Config(dict(default_scope='mmdet3d')))
    from mmdet3d.registry import TRANSFORMS
    sampler = TRANSFORMS.build(dict(
        type='mmdet3d.DataBaseSampler',
        data_root=str(tmp_path),
        info_path=str(tmp_path / 'dbinfos.pkl'),
        rate=1.0,
        prepare=dict(filter_by_difficulty=[-1]),
        sample_groups=dict(Car=1),
        classes=['Pedestrian', 'Car'],
        points_loader=dict(
            type='mmdet3d.LoadPointsFromFile', coord_type='LIDAR', load_dim=4,
            use_dim=4)))
    pasted = sampler.sample_all(np.empty((0, 7)), np.empty(0, dtype=np.int64))
    assert pasted['gt_labels_3d'].dtype == np.int64
    assert pasted['gt_labels_3d'].tolist() == [1]


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
    with pytest.raises(PreflightError) as error:
        preflight.check_data(cfg, 'train')
    assert str(error.value).startswith(
        f'The data is missing: {os.path.join(f"{data_root}/", missing)!r} '
        f'({key})'.replace('/.', '/'))
    assert 'create_data.py as docs/datasets.md says' in str(error.value)


def test_check_data_looks_into_the_pipeline_and_the_evaluator(data_root):
    cfg = data_config(data_root)
    sampler = cfg.train_dataloader.dataset.dataset.pipeline[1].db_sampler
    sampler.info_path = 'dbinfos.pkl'
    cfg.val_evaluator[0].ann_file = 'nowhere.pkl'
    with pytest.raises(PreflightError, match=r'pipeline\.1\.db_sampler\.info'):
        preflight.check_data(cfg, 'train')
    with pytest.raises(PreflightError, match=r'val_evaluator\.0\.ann_file'):
        preflight.check_data(cfg, 'val')
    preflight.check_data(cfg, 'test')


def test_check_data_looks_for_the_tables_that_are_evaluated(data_root):
    cfg = data_config(data_root)
    cfg.val_evaluator[0].type = 'NuScenesMetric'
    with pytest.raises(PreflightError, match='nuscenes/v1.0-trainval'):
        preflight.check_data(cfg, 'val')
    cfg.val_dataloader.dataset.metainfo = dict(version='v1.0-mini')
    with pytest.raises(PreflightError, match='nuscenes/v1.0-mini'):
        preflight.check_data(cfg, 'val')
    (data_root / 'v1.0-mini').mkdir()
    preflight.check_data(cfg, 'val')


def test_check_data_gives_the_command_that_makes_synthetic_data(tmp_path):
    cfg = data_config('data/synthetic_nuscenes')
    with pytest.raises(PreflightError) as error:
        preflight.check_data(cfg, 'train')
    assert ('python tools/dataset_converters/create_synthetic_nuscenes.py '
            '--out data/synthetic_nuscenes --seed 0') in str(error.value)


def test_check_data_leaves_remote_storage_alone():
    cfg = Config(
        dict(
            train_dataloader=dict(
                dataset=dict(
                    data_root='s3://bucket/', ann_file='infos.pkl'))))
    preflight.check_data(cfg, 'train')
    cfg.train_dataloader.dataset.update(
        data_root='data/', backend_args=dict(backend='lmdb'))
    preflight.check_data(cfg, 'train')


def checkpoint(path, **content):
    torch.save(content, path)
    return str(path)


def test_check_checkpoint(tmp_path):
    allow_mmengine_checkpoints()
    good = checkpoint(tmp_path / 'good.pth', meta={}, message_hub={},
                      optimizer={}, state_dict=dict(p=torch.zeros(3)),
                      scores=np.zeros(3))
    preflight.check_checkpoint(good, 'checkpoint', resume=True)
    assert not preflight.check_checkpoint('https://a.org/x.pth', 'checkpoint')
    with pytest.raises(PreflightError, match="Did you mean 'good.pth'"):
        preflight.check_checkpoint(str(tmp_path / 'god.pth'), 'checkpoint')
    with open(good, 'rb') as file:
        half = file.read()[:-400]
    for name, data in (('cut', half), ('empty', b''), ('text', b'no weights')):
        path = tmp_path / f'{name}.pth'
        path.write_bytes(data)
        with pytest.raises(PreflightError, match='cannot be loaded'):
            preflight.check_checkpoint(str(path), 'checkpoint')


def test_check_checkpoint_does_not_run_code(tmp_path):
    marker = tmp_path / 'marker'

    class Attack:

        def __reduce__(self):
            return os.system, (f'touch {marker}', )

    path = checkpoint(tmp_path / 'bad.pth', state_dict=Attack())
    with pytest.raises(PreflightError, match='holds posix.system, which'):
        preflight.check_checkpoint(path, 'checkpoint')
    assert not marker.exists()
    other = checkpoint(tmp_path / 'other.pth', meta=datetime.timezone.utc)
    with pytest.raises(PreflightError, match='holds datetime.timezone, which'):
        preflight.check_checkpoint(other, 'checkpoint')


def test_check_checkpoint_for_resuming(tmp_path):
    weights = checkpoint(tmp_path / 'best.pth', meta={}, message_hub={})
    preflight.check_checkpoint(weights, '--resume')
    with pytest.raises(PreflightError, match='has no optimizer'):
        preflight.check_checkpoint(weights, '--resume', resume=True)
    # Runner.resume would execute this text.
    code = checkpoint(tmp_path / 'code.pth', message_hub={}, optimizer={},
                      meta=dict(config='import os'))
    with pytest.raises(PreflightError, match='would execute'):
        preflight.check_checkpoint(code, '--resume', resume=True)


@pytest.mark.parametrize('name, hint', [
    ('ClipSigmod', "'ClipSigmoid'"),
    ('sigplug.GeMm', "'sigplug.GeM'"),
    ('Zzzzzzzzzz', ''),
])
def test_registry_errors_name_the_type(name, hint):
    import sigplug  # noqa: F401
    cfg = Config(dict(model=dict(type='Sequential', act=[dict(type=name)])))
    with pytest.raises(PreflightError) as error:
        with preflight.clear_registry_errors(cfg):
            build_model_from_cfg(cfg.model.act[0], preflight_models())
    assert f"model.act.0.type = '{name}' is not registered." in str(
        error.value)
    assert hint in str(error.value)


def preflight_models():
    from mmengine.registry import MODELS
    return MODELS


def test_other_key_errors_keep_their_traceback():
    with pytest.raises(KeyError, match='gt_bboxes_3d'):
        with preflight.clear_registry_errors(Config()):
            dict()['gt_bboxes_3d']


def test_a_type_of_the_wrong_kind_is_named():
    """It is registered, but elsewhere: the registry's own words serve."""
    cfg = Config(dict(model=dict(type='EMAHook')))
    with pytest.raises(PreflightError, match='EMAHook is not in the .*model'):
        with preflight.clear_registry_errors(cfg):
            build_model_from_cfg(cfg.model, preflight_models())
