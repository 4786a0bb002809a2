"""Stock configs that are made to use sigplug."""
import copy
import os
import shutil
from pathlib import Path

import mmdet
import mmdet3d
import pytest
import torch
from conftest import differences
from mmdet3d.models.dense_heads import CenterHead as StockHead
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

import sigplug.models.dense_heads as heads
from sigplug.engine import migration
from sigplug.engine.migration import migrate
from sigplug.errors import UserError

ROOT = Path(__file__).parents[2]
SMALL = str(ROOT / 'configs/centerpoint/centerpoint_pillar04_second_secfpn_'
            '{}_1xb4-onecycle-8e_nus-mini-3d.py')
PILLAR = ('mmdet3d::centerpoint/'
          'centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py')
SHIPPED = {
    package.__name__: Path(package.__file__).parent / '.mim/configs'
    for package in (mmdet, mmdet3d)
}
HEATMAPS = sorted(
    path for root in SHIPPED.values()
    for folder in ('centerpoint', 'centernet', 'cornernet', 'centripetalnet')
    for path in root.glob(f'{folder}/*.py') if path.name != 'centernet_tta.py')
LOSSES = dict(
    CenterHead='loss_cls',
    CenterNetHead='loss_center_heatmap',
    CenterNetUpdateHead='loss_cls',
    CornerHead='loss_heatmap',
    CentripetalHead='loss_heatmap')
CENTER_HEAD = """dict(
    type='CenterHead', in_channels=8, share_conv_channel=4,
    tasks=[dict(num_class=1, class_names=['a'])],
    common_heads=dict(reg=(2, 1), height=(1, 1), dim=(3, 1), rot=(2, 1)),
    bbox_coder=dict(
        type='CenterPointBBoxCoder', pc_range=[0, 0], out_size_factor=1,
        voxel_size=[1, 1]),
    separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3),
    loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'))"""
OPTIMIZER = "optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.01)"


@pytest.fixture
def write(tmp_path):
    """A function that writes a config and returns its path."""

    def write(text, name='mine.py'):
        path = tmp_path / name
        path.write_text(f"default_scope = 'mmdet3d'\n{text}\n")
        return str(path)

    return write


@pytest.fixture
def load(tmp_path):
    """A function that loads the text of a config."""

    def load(text):
        path = tmp_path / 'loaded.py'
        path.write_text(text)
        return Config.fromfile(path)

    return load


def refused(*args, **kwargs):
    with pytest.raises(UserError) as error:
        migrate(*args, **kwargs)
    return str(error.value)


@pytest.mark.parametrize('path', HEATMAPS, ids=lambda path: path.stem)
def test_every_shipped_heatmap_config(path, load):
    stock, name = Config.fromfile(path), str(path)
    key = 'pts_bbox_head' if 'centerpoint' in name else 'bbox_head'
    kind = stock.model[key].type
    where = f'model.{key}'
    is_center_head = kind == 'CenterHead'

    text, changes, notes = migrate(name)
    assert not notes
    cfg = load(text)
    expected = {'custom_imports', f'{where}.type'}
    expected |= {f'{where}.heatmap_act'} if is_center_head else set()
    assert differences(stock.to_dict(), cfg.to_dict()) == expected
    assert {line.partition(': ')[0] for line in changes} == expected
    assert cfg.model[key].type == f'sigplug.{kind}'
    assert cfg.model[key].get('heatmap_act') == (
        dict(type='ClipSigmoid') if is_center_head else None)

    init_default_scope(cfg.default_scope)
    # To build changes the config.
    ours, theirs = (
        MODELS.build(copy.deepcopy(c.model[key])) for c in (cfg, stock))
    assert type(ours) is getattr(heads, kind)
    assert type(theirs) is type(ours).__mro__[
        2 if kind == 'CentripetalHead' else 1]
    ours.load_state_dict(theirs.state_dict(), strict=True)

    cfg = load(migrate(name, logits=True).text)
    loss = LOSSES[kind]
    assert differences(stock.to_dict(), cfg.to_dict()) == {
        'custom_imports', f'{where}.type', f'{where}.{loss}.type'}
    assert cfg.model[key][loss] == dict(
        stock.model[key][loss], type='sigplug.GaussianFocalLossWithLogits')
    ours = MODELS.build(cfg.model[key])
    assert isinstance(ours.heatmap_act, torch.nn.Identity)
    ours.load_state_dict(theirs.state_dict(), strict=True)


def test_there_are_configs_of_every_kind():
    assert len(HEATMAPS) == 15 + 6 + 3 + 1


@pytest.mark.parametrize('name, found', [
    ('mmdet3d::pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-car.py',
     "model.bbox_head.type = 'Anchor3DHead'"),
    ('mmdet3d::second/second_hv_secfpn_8xb6-80e_kitti-3d-car.py',
     "model.bbox_head.type = 'Anchor3DHead'"),
    ('mmdet3d::fcos3d/fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d.py',
     "model.bbox_head.type = 'FCOSMono3DHead'"),
    ('mmdet3d::smoke/smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d.py',
     "model.bbox_head.type = 'SMOKEMono3DHead' looks like a heatmap head"),
    # Upstream left one of its bases out of the package.
    ('mmdet3d::mvfcos3d/'
     'multiview-fcos3d_r101-dcn_centerhead_16xb2_waymoD5-3d-3class.py',
     'multiview-dfm_r101-dcn_16xb2_waymoD5-3d-3class.py'),
    ('mmdet::centernet/centernet_tta.py', 'no heatmap head'),
    ('mmdet3d::_base_/datasets/nus-3d.py', 'no heatmap head'),
    ('mmdet3d::minkunet/minkunet18_w16_torchsparse_8xb2-amp-15e_semantickitti'
     '.py', "model.decode_head.type = 'MinkUNetHead'"),
])
def test_other_shipped_configs_are_refused(name, found):
    assert found in refused(name)
    assert found in refused(name, logits=True, gem=True)


@pytest.mark.parametrize('folder', ['pointpillars', 'votenet', 'pv_rcnn'])
@pytest.mark.parametrize('gem', [False, True])
def test_nothing_but_refusals(folder, gem):
    paths = list((SHIPPED['mmdet3d'] / folder).glob('*.py'))
    assert paths
    for path in paths:
        assert refused(str(path), gem=gem)


def test_pillar_net_gives_the_shipped_config(load):
    stock, shipped = SMALL.format('stock'), SMALL.format('gem')
    expected = Config.fromfile(shipped)
    cfg = load(migrate(stock, gem=True).text)
    # The shipped one has a hook besides, and a variable, and takes samples
    # without points.
    assert differences(cfg.to_dict(), expected.to_dict()) == {
        'custom_imports', 'custom_hooks', 'power_paramwise_cfg',
        'model.data_preprocessor.type'}
    cfg = load(migrate(stock, gem=True, logits=True).text)
    assert differences(cfg.model, expected.model) == {
        'pts_bbox_head.loss_cls.type', 'pts_bbox_head.heatmap_act',
        'data_preprocessor.type'}
    assert cfg.optim_wrapper == expected.optim_wrapper
    init_default_scope('mmdet3d')
    ours, theirs = (MODELS.build(c.model) for c in (cfg, expected))
    ours.load_state_dict(theirs.state_dict(), strict=True)


@pytest.mark.parametrize('kind, ours', [
    ('PillarFeatureNet', 'GeMPillarFeatureNet'),
    ('mmdet3d.DynamicPillarFeatureNet', 'GeMDynamicPillarFeatureNet'),
])
@pytest.mark.parametrize('weight_decay', [True, False])
def test_pillar_net_with_a_mode_and_a_paramwise_cfg(write, load, kind, ours,
                                                    weight_decay):
    optimizer = OPTIMIZER
    if not weight_decay:
        optimizer = optimizer.replace(', weight_decay=0.01', '')
    base = write(
        'model = dict(pts_bbox_head=' + CENTER_HEAD + ', voxel_encoder=dict('
        f"type={kind!r}, in_channels=4, feat_channels=[8], mode='avg'))\n"
        f'optim_wrapper = dict({optimizer}, paramwise_cfg=dict('
        "bias_lr_mult=2.0, custom_keys={'norm': dict(lr_mult=3.0)}))")
    text = migrate(base, gem=True).text
    cfg = load(text)
    assert cfg.model.voxel_encoder == dict(
        type=f'sigplug.{ours}', in_channels=4, feat_channels=[8], p=3.0)
    assert cfg.optim_wrapper.paramwise_cfg.bias_lr_mult == 2.0
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert set(keys) == {'norm', 'gem.p'}

    # The optimiser sees to what the key says.
    init_default_scope('mmdet3d')
    net = MODELS.build(cfg.model.voxel_encoder)
    optimizer = build_optim_wrapper(net, cfg.optim_wrapper).optimizer
    power, = (group for group in optimizer.param_groups
              if group['params'][0] is dict(net.named_parameters()).get(
                  'pfn_layers.0.gem.p', dict(net.named_parameters()).get(
                      'pfn_scatter.0.gem.p')))
    assert power['lr'] == pytest.approx(1.0)
    assert power['weight_decay'] == 0


def test_the_users_settings_of_the_power_stay(write, load):
    model = ('model = dict(pts_bbox_head=' + CENTER_HEAD + ', encoder=dict('
             "type='PillarFeatureNet'))\n")
    base = write(
        model + f"optim_wrapper = dict({OPTIMIZER}, paramwise_cfg=dict("
        "custom_keys={'gem.p': dict(lr_mult=5.0)}))")
    cfg = load(migrate(base, gem=True).text)
    assert cfg.optim_wrapper == Config.fromfile(base).optim_wrapper
    base = write(model + f'optim_wrapper = dict({OPTIMIZER}, '
                 'paramwise_cfg=None)')
    cfg = load(migrate(base, gem=True).text)
    assert cfg.optim_wrapper.paramwise_cfg == dict(
        custom_keys={'gem.p': dict(lr_mult=10.0, decay_mult=0.0)})
    # A config for testing has no optimiser, and gets none.
    assert 'optim_wrapper' not in load(migrate(write(model), gem=True).text)


@pytest.mark.parametrize('wrapper, found', [
    (f"{OPTIMIZER}, paramwise_cfg=dict(custom_keys="
     "{'encoder': dict(lr_mult=0.1)})", "custom_keys has 'encoder'"),
    (f"{OPTIMIZER}, constructor='Mine'", "constructor = 'Mine'"),
    ('a=dict(optimizer=dict()), b=dict(optimizer=dict())',
     'optim_wrapper.optimizer = None'),
])
def test_an_optimiser_that_would_not_do_it(write, wrapper, found):
    base = write(
        'model = dict(pts_bbox_head=' + CENTER_HEAD + ', encoder=dict('
        f"type='PillarFeatureNet'))\noptim_wrapper = dict({wrapper})")
    message = refused(base, gem=True)
    assert found in message and 'Leave out --pillar gem' in message
    assert migrate(base).text


def test_there_is_no_pillar_net():
    name = ('mmdet3d::centerpoint/'
            'centerpoint_voxel01_second_secfpn_8xb4-cyclic-20e_nus-3d.py')
    message = refused(name, gem=True)
    assert "model.pts_voxel_encoder.type = 'HardSimpleVFE'" in message
    assert 'PillarFeatureNet' in message and '--pillar gem' in message


def test_heads_anywhere(write, load):
    other = CENTER_HEAD.replace("'CenterHead'", "'mmdet3d.CenterHead'")
    base = write(
        f'head = {CENTER_HEAD}\n'
        "model = dict(type='Wrapper', limit=float('inf'),\n"
        f'    student=dict(bbox_head={other}),\n'
        f"    roi=dict(heads=[dict(type='Stage', limits=(float('inf'), )),\n"
        f"        {CENTER_HEAD}], limits=[float('nan')]))\n"
        f"tta_model = dict(type='TTA', module=dict(head={CENTER_HEAD}))")
    text, changes, notes = migrate(base)
    assert not notes
    cfg, old = load(text), Config.fromfile(base)
    for parent, key in ((cfg.model.student, 'bbox_head'),
                        (cfg.model.roi.heads, 1),
                        (cfg.tta_model.module, 'head')):
        assert parent[key].type == 'sigplug.CenterHead'
        assert parent[key].heatmap_act == dict(type='ClipSigmoid')
        assert dict(parent[key], type='CenterHead') == dict(
            old.head, heatmap_act=dict(type='ClipSigmoid'))
    # A variable of the config is not built.
    assert cfg.head == old.head
    assert cfg.model.roi.heads[0] == old.model.roi.heads[0]
    assert [line.partition(': ')[0] for line in changes] == [
        f'{where}.{key}' for where in (
            'model.student.bbox_head', 'model.roi.heads.1',
            'tta_model.module.head')
        for key in ('type', 'heatmap_act')] + ['custom_imports']


@pytest.mark.parametrize('given, expected', [
    ('', dict(imports=['sigplug'], allow_failed_imports=False)),
    ('custom_imports = None',
     dict(imports=['sigplug'], allow_failed_imports=False)),
    ("custom_imports = dict(imports=['json', 'csv'], "
     'allow_failed_imports=True)',
     dict(imports=['json', 'csv', 'sigplug'], allow_failed_imports=True)),
    ("custom_imports = dict(imports='json')",
     dict(imports=['json', 'sigplug'])),
    ("custom_imports = dict(imports=['sigplug', 'json'])",
     dict(imports=['sigplug', 'json'])),
])
def test_custom_imports_are_extended(write, load, given, expected):
    base = write(f'model = dict(head={CENTER_HEAD})\n{given}')
    assert load(migrate(base).text).custom_imports == expected


@pytest.mark.parametrize('name', ['gem', 'stock'])
def test_nothing_to_do_after_it_is_done(name, tmp_path, load):
    first = str(tmp_path / 'first.py')
    if name == 'gem':
        first = SMALL.format('gem')
    else:
        migrate(SMALL.format('stock'), first, gem=True)
    for kwargs in ({}, dict(gem=True)):
        assert migrate(first, str(tmp_path / 'x.py'), **kwargs) == ('', [], [])
    assert not (tmp_path / 'x.py').exists()
    text = migrate(first, logits=True).text
    assert load(text).model.pts_bbox_head.heatmap_act is None
    assert migrate(str(tmp_path / 'loaded.py'), logits=True).text == ''


class StockChild(StockHead):
    """Of the user's own."""


class OurChild(heads.CenterHead):
    """Of the user's own."""


def test_a_class_of_the_users_own(monkeypatch, write, load):
    for cls in (StockChild, OurChild):
        monkeypatch.setitem(MODELS._module_dict, cls.__name__, cls)
    base = write(
        f"model = dict(head={CENTER_HEAD.replace('CenterHead', 'StockChild')})"
    )
    for kwargs in ({}, dict(logits=True)):
        message = refused(base, **kwargs)
        assert "model.head.type = 'StockChild' looks like" in message
        assert ('derives from the stock CenterHead: import CenterHead from '
                'sigplug.models.dense_heads') in message
    base = write(
        f"model = dict(head={CENTER_HEAD.replace('CenterHead', 'OurChild')})")
    assert migrate(base).text == ''
    head = load(migrate(base, logits=True).text).model.head
    assert head.type == 'OurChild'
    assert head.loss_cls == dict(
        type='sigplug.GaussianFocalLossWithLogits', reduction='mean')
    # Under the name of the stock head.
    monkeypatch.setitem(MODELS._module_dict, 'CenterHead', StockChild)
    message = refused(write(f'model = dict(head={CENTER_HEAD})'))
    assert "model.head.type = 'CenterHead' is " in message
    assert 'StockChild here, which sigplug.CenterHead is not' in message


@pytest.mark.parametrize('head', [
    "dict(type='MineOfNowhere', loss_cls=dict(type='GaussianFocalLoss'))",
    "dict(type='mine.CenterHead')",
    "dict(type='FancyCenterHead')",
    "dict(type='Mine', loss_heatmap=dict(type='MyLoss'))",
])
def test_what_looks_like_a_heatmap_head(write, head):
    base = write(f'model = dict(bbox_head={head}, aux_head={CENTER_HEAD})')
    message = refused(base)
    assert "model.bbox_head.type = '" in message
    assert 'looks like a heatmap head' in message
    assert 'sigplug.models.dense_heads' in message


@pytest.mark.parametrize('loss, found', [
    ("loss_cls=dict(type='mmdet.FocalLoss'),",
     "model.head.loss_cls type = 'mmdet.FocalLoss'"),
    ('loss_cls=None,', 'model.head.loss_cls = None'),
    ('', 'model.head.loss_cls = (absent)'),
])
def test_logits_of_another_loss(write, loss, found):
    stock = "loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean')"
    assert stock in CENTER_HEAD
    base = write(f'model = dict(head={CENTER_HEAD.replace(stock, loss)})')
    message = refused(base, logits=True)
    assert found in message
    assert 'Write loss_cls=dict(' in message


LAZY = """
from mmengine.config import read_base
with read_base():
    from .mine import *
from mmdet3d.models.dense_heads import CenterHead
from mmdet3d.models.voxel_encoders import PillarFeatureNet
from mmdet.models.losses import GaussianFocalLoss
model.update(
    head=dict(type=CenterHead, loss_cls=dict(type=GaussianFocalLoss)),
    encoder=dict(type=PillarFeatureNet, mode='avg', in_channels=4))
"""


@pytest.mark.parametrize('logits', [False, True])
def test_read_base_is_explained(write, tmp_path, logits):
    write(f'model = dict(type="X")\noptim_wrapper = dict({OPTIMIZER})')
    path = tmp_path / 'lazy.py'
    path.write_text(LAZY)
    message = refused(str(path), logits=logits, gem=True)
    assert 'by hand' in message
    lines = [line[4:] for line in message.splitlines() if line[:4] == '    ']
    assert ('from sigplug.models.layers import ClipSigmoid' in lines) != logits
    # What it says can be done, and does it.
    path.write_text('\n'.join([LAZY, *lines]))
    cfg = Config.fromfile(path).to_dict()
    head, layers, losses, encoders = (
        f'sigplug.models.{name}.' for name in (
            'dense_heads', 'layers', 'losses', 'voxel_encoders'))
    assert cfg['model']['head'] == (dict(
        type=f'{head}CenterHead',
        loss_cls=dict(type=f'{losses}GaussianFocalLossWithLogits'))
        if logits else dict(
            type=f'{head}CenterHead',
            loss_cls=dict(type='mmdet.models.losses.GaussianFocalLoss'),
            heatmap_act=dict(type=f'{layers}ClipSigmoid')))
    assert cfg['model']['encoder'] == dict(
        type=f'{encoders}GeMPillarFeatureNet', in_channels=4, p=3.0)
    assert cfg['optim_wrapper']['paramwise_cfg'] == dict(
        custom_keys={'gem.p': dict(lr_mult=10.0, decay_mult=0.0)})
    assert 'custom_imports' not in cfg
    assert migrate(str(path), logits=logits, gem=True).text == ''


def test_config_in_plain_python_that_has_it_already():
    path, = (ROOT / 'sigplug/configs/centerpoint').glob('*_gem_*.py')
    assert migrate(str(path)).text == ''


@pytest.mark.parametrize('text, found', [
    ('x = (', 'SyntaxError'),
    ('x = 1 / 0', 'ZeroDivisionError'),
    ("_base_ = 'nowhere.py'", 'nowhere.py'),
    ("custom_imports = dict(imports=['nowhere_at_all'])", 'PYTHONPATH=FOLDER'),
])
def test_unreadable(write, text, found):
    path = write(text)
    message = refused(path)
    assert found in message
    assert path in message and 'cannot be read' in message


@pytest.mark.parametrize('name', [
    'mmdet3d::centerpoint/nowhere.py', 'nowhere::a.py', 'nowhere.py'])
def test_missing(name):
    assert f'{name!r}' in refused(name)


def test_out(write, load, tmp_path):
    base = write(f'model = dict(head={CENTER_HEAD})', 'base.py')
    (tmp_path / 'below').mkdir()
    out = tmp_path / 'below/out.py'
    text = migrate(base, str(out)).text
    assert text == out.read_text()
    assert "_base_ = '../base.py'" in text
    assert os.listdir(tmp_path / 'below') == ['out.py']
    # Both may be moved, and a written file has the usual mode.
    shutil.copytree(tmp_path, tmp_path / 'elsewhere')
    (tmp_path / 'base.py').unlink()
    cfg = Config.fromfile(tmp_path / 'elsewhere/below/out.py')
    assert cfg.model.head.type == 'sigplug.CenterHead'
    assert out.stat().st_mode == (tmp_path / 'elsewhere/base.py').stat(
    ).st_mode


@pytest.mark.parametrize('name', [
    'mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py',
    'mmdet3d::centerpoint/centerpoint_voxel0075_second_secfpn_head-dcn_8xb4-'
    'flip-tta-cyclic-20e_nus-3d.py',
])
def test_a_config_by_its_name(name, load):
    # mmengine then adds the scope of the package to it.
    stock, cfg = load(f'_base_ = {name!r}'), load(migrate(name).text)
    assert stock.model._scope_ == name.partition('::')[0]
    assert {key.rpartition('.')[2] for key in differences(
        stock.to_dict(), cfg.to_dict())} <= {
            'custom_imports', 'type', 'heatmap_act'}


def test_a_name_stays_a_name(tmp_path):
    out = tmp_path / 'out.py'
    text = migrate(PILLAR, str(out)).text
    assert text == out.read_text() == (
        f"_base_ = '{PILLAR}'  # noqa: E501\n"
        '\n'
        "custom_imports = dict(imports=['sigplug'], "
        'allow_failed_imports=False)\n'
        'model = dict(\n'
        '    pts_bbox_head=dict(\n'
        "        type='sigplug.CenterHead', "
        "heatmap_act=dict(type='ClipSigmoid')))\n")


def test_out_is_never_overwritten_unasked(write, tmp_path):
    base = write(f'model = dict(head={CENTER_HEAD})')
    out = tmp_path / 'out.py'
    out.write_text('precious = True')
    assert '--overwrite' in refused(base, str(out))
    assert out.read_text() == 'precious = True'
    migrate(base, str(out), overwrite=True)
    assert 'sigplug' in out.read_text()
    before = Path(base).read_text()
    message = refused(base, base, overwrite=True)
    assert 'is the config itself' in message
    assert Path(base).read_text() == before
    assert 'must end in .py' in refused(base, str(tmp_path / 'out.json'))
    assert 'does not exist' in refused(base, str(tmp_path / 'no/out.py'))
    (tmp_path / 'folder.py').mkdir()
    assert 'exists' in refused(
        base, str(tmp_path / 'folder.py'), overwrite=True)


def test_a_child_that_is_not_what_was_meant(monkeypatch, write, tmp_path):
    base = write(f'model = dict(head={CENTER_HEAD})')
    overlay = migration._overlay

    def more(old, new):
        child = overlay(old, new)
        return dict(child, lr=1.0) if 'model' in child else child

    monkeypatch.setattr(migration, '_overlay', more)
    message = refused(base, str(tmp_path / 'out.py'))
    assert 'lr: (absent) -> 1.0' in message
    assert os.listdir(tmp_path) == ['mine.py']


def test_a_head_that_cannot_be_built(write, tmp_path):
    base = write(
        f'model = dict(pts_bbox_head={CENTER_HEAD}, '
        'train_cfg=dict(pts=dict(grid_size=128)))')
    message = refused(base, str(tmp_path / 'out.py'))
    assert "model.pts_bbox_head.type = 'sigplug.CenterHead' cannot" in message
    assert 'train_cfg.grid_size must be two or three numbers' in message
    assert os.listdir(tmp_path) == ['mine.py']


def test_a_head_with_other_parameters(monkeypatch, write, tmp_path):
    base = write(f'model = dict(head={CENTER_HEAD})')
    init = heads.CenterHead.__init__

    def with_scale(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.scale = torch.nn.Parameter(torch.ones(1))

    monkeypatch.setattr(heads.CenterHead, '__init__', with_scale)
    message = refused(base, str(tmp_path / 'out.py'))
    assert "other parameters than 'CenterHead'" in message
    assert "['scale']" in message
    assert os.listdir(tmp_path) == ['mine.py']


def test_a_head_that_its_detector_completes(write):
    head = CENTER_HEAD.replace('bbox_coder=dict(', 'bbox_coder=None, x=dict(')
    text, _, notes = migrate(write(f'model = dict(head={head})'))
    assert text
    note, = notes
    assert "model.head.type = 'CenterHead' could not be built" in note


@pytest.mark.parametrize('value', [
    dict(a=1, b=dict(c='x' * 30, d=[1.5, None, (2, )], e=('y' * 20, ))),
    {'gem.p': dict(x=True), 'class': [{}, [], ()], 3: {'lambda': -1}},
    [[[['z' * 16] * 3] * 3] * 3],
    dict(inf=float('-inf')),
    # As close to the end of a line as can be.
    *(dict(k=dict(k=dict(k=dict(k=['n' * n]), m=dict(k=1))))
      for n in range(20, 50)),
    *([['a', 'b' * n], 'c'] for n in range(40, 66)),
])
def test_code_is_the_value_in_79_columns(value):
    code = f'value = {migration._code(value, 71)}'
    found = {}
    exec(code, found)
    assert found['value'] == value
    assert max(map(len, code.splitlines())) < 80
    assert eval(migration._code(value)) == value


def test_values_that_cannot_be_compared_or_written(write, load):
    functions = 'f=[lambda x: x], nan=[float("nan")]'
    base = write(f'model = dict({functions}, head={CENTER_HEAD})')
    assert migrate(base).text
    base = write(f'model = dict(heads=[dict({functions}), {CENTER_HEAD}])')
    assert 'cannot be written down' in refused(base)
