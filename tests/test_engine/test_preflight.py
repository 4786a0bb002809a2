"""One clear message per known failure."""
import datetime
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from conftest import QUICKSTART
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import build_model_from_cfg, init_default_scope

from sigplug.engine import preflight
from sigplug.engine.checkpoint import allow_mmengine_checkpoints
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


def test_load_config_of_a_folder(tmp_path):
    with pytest.raises(UserError, match='is a folder'):
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
    with pytest.raises(UserError, match=r'--cfg-options a.c.7.d=4'):
        preflight.load_config(str(path), {'a.c.7.d': 4})


def test_load_config_names_a_similar_file(tmp_path):
    (tmp_path / 'centerpoint.py').touch()
    with pytest.raises(UserError, match="Did you mean 'centerpoint.py'"):
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
    with pytest.raises(UserError, match='config.py.* cannot be read'):
        preflight.load_config(str(path))


def test_load_config_wrong_suffix(tmp_path):
    path = tmp_path / 'config.txt'
    path.touch()
    with pytest.raises(UserError, match='cannot be read.*py/yml/yaml'):
        preflight.load_config(str(path))


def test_check_stack_names_the_broken_package(monkeypatch):
    # None in sys.modules makes an import fail.
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    preflight.check_stack(Config(dict(default_scope='mmengine')))
    with pytest.raises(UserError, match='mmcv.ops cannot be imported'):
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
    with pytest.raises(UserError) as error:
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
    with pytest.raises(UserError, match=r'pipeline\.1\.db_sampler\.info'):
        preflight.check_data(cfg, 'train')
    with pytest.raises(UserError, match=r'val_evaluator\.0\.ann_file'):
        preflight.check_data(cfg, 'val')
    preflight.check_data(cfg, 'test')


def test_check_data_looks_for_the_tables_that_are_evaluated(data_root):
    cfg = data_config(data_root)
    cfg.val_evaluator[0].type = 'NuScenesMetric'
    with pytest.raises(UserError, match='nuscenes/v1.0-trainval'):
        preflight.check_data(cfg, 'val')
    cfg.val_dataloader.dataset.metainfo = dict(version='v1.0-mini')
    with pytest.raises(UserError, match='nuscenes/v1.0-mini'):
        preflight.check_data(cfg, 'val')
    (data_root / 'v1.0-mini').mkdir()
    preflight.check_data(cfg, 'val')


def test_check_data_gives_the_command_that_makes_synthetic_data(tmp_path):
    cfg = data_config('data/synthetic_nuscenes')
    with pytest.raises(UserError) as error:
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


# -- info files that are there but cannot be used ---------------------------
def edit(change):

    def edited(data):
        infos = pickle.loads(data)
        change(infos)
        return pickle.dumps(infos)

    return edited


def entry(change):
    return edit(lambda infos: change(infos['data_list'][3]))


INFO_FAULTS = {
    'empty file': (lambda data: b'', 'cannot be used .EOFError'),
    'truncated': (lambda data: data[:-1000], 'cannot be used .*truncated'),
    'no pickle': (lambda data: b'<html>404</html>', 'cannot be used .Unpick'),
    'a list': (lambda data: pickle.dumps([]), 'TypeError.*should be a dict'),
    'version 1': (lambda data: pickle.dumps(dict(infos=[], metadata={})),
                  'ValueError.*data_list and metainfo'),
    'no metainfo': (edit(lambda infos: infos.pop('metainfo')),
                    'ValueError.*data_list and metainfo'),
    'metainfo of another type': (
        edit(lambda infos: infos.update(metainfo=3)), 'AttributeError'),
    'empty list': (edit(lambda infos: infos['data_list'].clear()),
                   'it holds no sample'),
    'data_list of another type': (
        edit(lambda infos: infos.update(data_list=7)), 'TypeError'),
    'entry of another type': (
        edit(lambda infos: infos['data_list'].insert(3, 'text')),
        'entry 3 is wrong .TypeError'),
    'no lidar_points': (entry(lambda info: info.pop('lidar_points')),
                        'entry 3 is wrong .KeyError: lidar_points'),
    'path of another type': (
        entry(lambda info: info['lidar_points'].update(lidar_path=5)),
        'entry 3 is wrong .TypeError'),
    'no instances': (entry(lambda info: info.pop('instances')),
                     'entry 3 is wrong .KeyError: instances'),
    'box without bbox_3d': (
        entry(lambda info: info['instances'][0].pop('bbox_3d')),
        'entry 3 is wrong .KeyError'),
    'box of a text': (
        entry(lambda info: info['instances'][0].update(bbox_3d=['x'] * 7)),
        'entry 3 is wrong .ValueError'),
    'box of six values': (
        entry(lambda info: info['instances'][1]['bbox_3d'].pop()),
        'entry 3 is wrong .ValueError'),
    'label beyond the classes': (
        entry(lambda info: info['instances'][0].update(bbox_label_3d=10)),
        'entry 3 is wrong .KeyError: 10'),
}


@pytest.mark.parametrize('fault', INFO_FAULTS)
def test_info_file_is_named(damageable, fault):
    change, words = INFO_FAULTS[fault]
    path = damageable / 'nuscenes_infos_train.pkl'
    path.write_bytes(change(path.read_bytes()))
    cfg = Config.fromfile(QUICKSTART)
    preflight.check_stack(cfg)
    from mmdet3d.registry import DATASETS
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = f'{damageable}/'
    init_default_scope('mmdet3d')
    with pytest.raises(UserError, match=words) as error:
        with preflight.explain_data_errors():
            DATASETS.build(dataset)
    assert f"The info file '{path}' cannot be used" in str(error.value)
    assert 'Make it anew: docs/datasets.md' in str(error.value)


@pytest.mark.parametrize('root', ['data/mine', 'data/mine/', './data/mine'])
def test_data_root_by_any_spelling(monkeypatch, root):
    monkeypatch.setenv('SIGPLUG_DATA_ROOT', 'data/mine/')
    cfg = Config.fromfile(QUICKSTART)
    preflight.check_data_root(cfg, root)
    cfg.val_dataloader.dataset.data_root = 'elsewhere'
    with pytest.raises(UserError, match="val_dataloader.dataset.data_root"
                       " = 'elsewhere' in place of '.*data/mine"):
        preflight.check_data_root(cfg, root)


@pytest.mark.parametrize('kind', [
    'NuScenesMetric', 'mmdet3d.NuScenesMetric', type('NuScenesMetric', (), {})
])
def test_tables_of_the_evaluation_are_looked_for(data_root, kind):
    cfg = data_config(data_root)
    cfg.val_evaluator[0]['type'] = kind
    with pytest.raises(UserError, match='data_root with its tables'):
        preflight.check_data(cfg, 'val')


@pytest.mark.parametrize('indices, words', [
    ([0, 99], r'indices=\[0, 99\] does not fit a NuScenesDataset of \d+ '
     r'samples \(IndexError'),
    ('all', "indices='all' does not fit .*TypeError"),
    (2.5, r'indices=2\.5 does not fit.*TypeError'),
    ([], r'indices=\[\] leaves no sample of .*_train\.pkl'),
    (0, 'indices=0 leaves no sample of')])
def test_indices_are_not_blamed_on_the_info_file(damageable, indices, words):
    cfg = Config.fromfile(QUICKSTART)
    preflight.check_stack(cfg)
    from mmdet3d.registry import DATASETS
    dataset = cfg.train_dataloader.dataset
    dataset.update(data_root=f'{damageable}/', indices=indices)
    init_default_scope('mmdet3d')
    with pytest.raises(UserError, match=words) as error:
        with preflight.explain_data_errors():
            DATASETS.build(dataset)
    assert 'cannot be used' not in str(error.value)


def test_other_errors_than_those_of_info_files_pass():
    for error in (KeyError('x'), UserError('y')):
        with pytest.raises(type(error)) as caught:
            with preflight.explain_data_errors():
                raise error
        assert caught.value is error


# -- parts of a model that do not fit one another ---------------------------
def test_check_model_accepts_what_fits():
    for path in (QUICKSTART.parent).glob('*.py'):
        preflight.check_model(Config.fromfile(path))
    preflight.check_model(Config(dict(model=dict(type='RetinaNet'))))
    # A config in Python may hold arrays.
    cfg = Config.fromfile(QUICKSTART)
    cfg.model.train_cfg.pts.update(
        voxel_size=np.array([0.4, 0.4, 8]), grid_size=np.array([256, 256, 1]))
    preflight.check_model(cfg)


@pytest.mark.parametrize('name', [
    'centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d',
    'centerpoint_voxel0075_second_secfpn_head-dcn_8xb4-flip-tta-cyclic-20e_'
    'nus-3d', 'centerpoint_voxel01_second_secfpn_8xb4-cyclic-20e_nus-3d'])
def test_check_model_accepts_those_of_mmdet3d(name):
    preflight.check_model(get_config(f'mmdet3d::centerpoint/{name}.py'))


@pytest.mark.parametrize('option, value, words', [
    ('train_cfg.pts.voxel_size', [0.2, 0.2, 8], 'train_cfg.pts.voxel_size = '),
    ('test_cfg.pts.voxel_size', [0.2, 0.2], 'test_cfg.pts.voxel_size = '),
    ('pts_voxel_encoder.voxel_size', [0.2, 0.2, 8], 'pts_voxel_encoder.voxel'),
    ('pts_bbox_head.bbox_coder.voxel_size', [0.4, 0.2], 'bbox_coder.voxel'),
    ('data_preprocessor.voxel_layer.voxel_size', [0.2, 0.2, 8], 'voxel_layer'),
    ('data_preprocessor.voxel_layer.point_cloud_range',
     [-51.2, -51.2, -5, 51.2, 25.6, 3], r'grid_size .* \[256.0, 256.0\]'),
    ('train_cfg.pts.point_cloud_range', [0, -51.2, -5, 102.4, 51.2, 3],
     r'train_cfg.pts.point_cloud_range .* = \[0.0'),
    ('train_cfg.pts.grid_size', [512, 512, 1], 'train_cfg.pts.grid_size'),
    ('train_cfg.pts.out_size_factor', 4, r'train_cfg.pts.out_size_factor'),
    ('pts_bbox_head.bbox_coder.out_size_factor', 4, 'out_size_factor = .2.0'),
    ('test_cfg.pts.out_size_factor', 8, 'test_cfg.pts.out_size_factor = .8'),
    ('pts_middle_encoder.output_shape', (256, 128), 'output_shape'),
    ('train_cfg.pts.voxel_size', [0.4], 'train_cfg.pts.voxel_size = '),
    ('train_cfg.pts.voxel_size', [], 'train_cfg.pts.voxel_size = '),
    ('test_cfg.pts.out_size_factor', 0, 'test_cfg.pts.out_size_factor = .0'),
    ('pts_bbox_head.tasks', [dict(num_class=10)],
     'tasks.0 has no class_names.*num_class'),
    ('pts_bbox_head.tasks.0.num_class', 9, 'num_class is 9.* has 10 names'),
    ('pts_bbox_head.tasks.0.num_class', 11, 'num_class is 11'),
    ('pts_bbox_head.tasks', [dict(num_class=1, class_names=['car'])],
     r"train_dataloader.dataset.metainfo.classes = .*class_names \['car'\]"),
    ('pts_bbox_head.tasks', [dict(class_names=[
        'truck', 'car', 'construction_vehicle', 'bus', 'trailer', 'barrier',
        'motorcycle', 'bicycle', 'pedestrian', 'traffic_cone'])],
     'same order'),
])
def test_check_model_names_what_does_not_fit(option, value, words):
    cfg = Config.fromfile(QUICKSTART)
    cfg.merge_from_dict({f'model.{option}': value})
    with pytest.raises(UserError, match=words):
        preflight.check_model(cfg)


def test_check_model_compares_each_data_set():
    cfg = Config.fromfile(QUICKSTART)
    cfg.val_dataloader.dataset.metainfo.classes = ['car']
    with pytest.raises(UserError, match='val_dataloader.dataset.meta'):
        preflight.check_model(cfg)


@pytest.mark.parametrize('names, accepted', [
    (['car', 'truck', 'construction_vehicle'], True),
    # mmdet3d's filter lets the first three labels by, whatever their names.
    (['car', 'truck', 'bus'], False),
    (['car', 'truck'], False),
])
def test_check_model_takes_a_head_of_the_first_classes(names, accepted):
    """If that is all that it is trained on."""
    cfg = Config.fromfile(QUICKSTART)
    dataset = cfg.train_dataloader.dataset
    first = dataset.metainfo.classes[:3]
    assert first == ['car', 'truck', 'construction_vehicle']
    cfg.model.pts_bbox_head.tasks = [dict(num_class=len(names),
                                          class_names=names)]
    with pytest.raises(UserError, match='with these'):
        preflight.check_model(cfg)
    step, = (step for step in dataset.pipeline
             if step.type == 'ObjectNameFilter')
    step.classes = first
    if accepted:
        preflight.check_model(cfg)
        return
    with pytest.raises(UserError, match='in the same order'):
        preflight.check_model(cfg)


def test_check_model_takes_other_names_for_the_same_places():
    cfg = Config.fromfile(QUICKSTART)
    task, = cfg.model.pts_bbox_head.tasks
    names = [name.replace('_', ' ').title() for name in task.class_names]
    names[names.index('Pedestrian')] = 'person'
    task.class_names = names
    preflight.check_model(cfg)
    task.class_names = [*names[1::-1], *names[2:]]
    with pytest.raises(UserError, match='in the same order'):
        preflight.check_model(cfg)


def checkpoint(path, **content):
    torch.save(content, path)
    return str(path)


def test_check_checkpoint(tmp_path):
    allow_mmengine_checkpoints()
    good = checkpoint(tmp_path / 'good.pth', message_hub={},
                      meta=dict(epoch=1, iter=2),
                      optimizer={}, state_dict=dict(p=torch.zeros(3)),
                      scores=np.zeros(3))
    preflight.check_checkpoint(good, 'checkpoint', resume=True)
    assert not preflight.check_checkpoint('https://a.org/x.pth', 'checkpoint')
    with pytest.raises(UserError, match="Did you mean 'good.pth'"):
        preflight.check_checkpoint(str(tmp_path / 'god.pth'), 'checkpoint')
    with open(good, 'rb') as file:
        half = file.read()[:-400]
    for name, data in (('cut', half), ('empty', b''), ('text', b'no weights')):
        path = tmp_path / f'{name}.pth'
        path.write_bytes(data)
        with pytest.raises(UserError, match='cannot be loaded'):
            preflight.check_checkpoint(str(path), 'checkpoint')
    with pytest.raises(UserError, match="is a folder. .*epoch_1.pth'"):
        preflight.check_checkpoint(str(tmp_path), 'checkpoint')
    torch.save(torch.zeros(2), tmp_path / 'tensor.pth')
    with pytest.raises(UserError, match='it holds a Tensor'):
        preflight.check_checkpoint(str(tmp_path / 'tensor.pth'), 'checkpoint')


def test_check_checkpoint_does_not_run_code(tmp_path):
    marker = tmp_path / 'marker'

    class Attack:

        def __reduce__(self):
            return os.system, (f'touch {marker}', )

    path = checkpoint(tmp_path / 'bad.pth', state_dict=Attack())
    with pytest.raises(UserError, match='holds posix.system, which'):
        preflight.check_checkpoint(path, 'checkpoint')
    assert not marker.exists()
    other = checkpoint(tmp_path / 'other.pth', meta=datetime.timezone.utc)
    with pytest.raises(UserError, match='holds datetime.timezone, which'):
        preflight.check_checkpoint(other, 'checkpoint')


def test_check_checkpoint_for_resuming(tmp_path):
    weights = checkpoint(tmp_path / 'best.pth', meta={}, message_hub={})
    preflight.check_checkpoint(weights, '--resume')
    with pytest.raises(UserError, match='has no optimizer'):
        preflight.check_checkpoint(weights, '--resume', resume=True)
    # Runner.resume would execute this text.
    code = checkpoint(tmp_path / 'code.pth', message_hub={}, optimizer={},
                      meta=dict(config='import os', epoch=1, iter=2))
    with pytest.raises(UserError, match='would execute'):
        preflight.check_checkpoint(code, '--resume', resume=True)
    other = checkpoint(tmp_path / 'other.pth', message_hub={}, optimizer={},
                       meta=dict(epoch=1))
    with pytest.raises(UserError, match=r"has no meta\['iter'\]\."):
        preflight.check_checkpoint(other, '--resume', resume=True)


@pytest.mark.parametrize('name, hint', [
    ('ClipSigmod', "'ClipSigmoid'"),
    ('sigplug.GeMm', "'sigplug.GeM'"),
    ('Zzzzzzzzzz', ''),
])
def test_registry_errors_name_the_type(name, hint):
    import sigplug  # noqa: F401
    cfg = Config(dict(model=dict(type='Sequential', act=[dict(type=name)])))
    with pytest.raises(UserError) as error:
        with preflight.explain_registry_errors(cfg):
            build_model_from_cfg(cfg.model.act[0], preflight_models())
    assert f"model.act.0.type = '{name}' is not registered." in str(
        error.value)
    assert hint in str(error.value)


def preflight_models():
    from mmengine.registry import MODELS
    return MODELS


def test_other_key_errors_keep_their_traceback():
    with pytest.raises(KeyError, match='gt_bboxes_3d'):
        with preflight.explain_registry_errors(Config()):
            dict()['gt_bboxes_3d']


def test_a_type_of_the_wrong_kind_is_named():
    """It is registered, but elsewhere: the registry's own words serve."""
    cfg = Config(dict(model=dict(type='EMAHook')))
    with pytest.raises(UserError, match='EMAHook is not in the .*model'):
        with preflight.explain_registry_errors(cfg):
            build_model_from_cfg(cfg.model, preflight_models())
