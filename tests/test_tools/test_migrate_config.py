"""Stock configs that are made to use sigplug."""
import copy
import os
import subprocess
from pathlib import Path

import mmdet
import mmdet3d
import pytest
from conftest import QUICKSTART, differences, load_tool, tool_command
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

import sigplug.models.dense_heads as heads
from sigplug.errors import UserError

STOCK = str(QUICKSTART).replace('_gem_', '_stock_')
VOXEL = ('mmdet3d::centerpoint/'
         'centerpoint_voxel01_second_secfpn_8xb4-cyclic-20e_nus-3d.py')
# The first of each family of mmdet3d and mmdet, and its heatmap loss.
HEATMAPS = dict(
    centerpoint=(mmdet3d, 'loss_cls'),
    smoke=(mmdet3d, 'loss_cls'),
    centernet=(mmdet, 'loss_cls'),
    cornernet=(mmdet, 'loss_heatmap'),
    centripetalnet=(mmdet, 'loss_heatmap'))
CENTER_HEAD = """dict(
    type='CenterHead', in_channels=8,
    loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'))"""
OPTIMIZER = "optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.01)"

migrate_config = load_tool('misc/migrate_config.py')
migrate = migrate_config.migrate


@pytest.fixture
def write(tmp_path):
    """A function that writes a config and returns its path."""

    def write(text, name='mine.py'):
        path = tmp_path / name
        path.write_text(f"default_scope = 'mmdet3d'\n{text}\n")
        return str(path)

    return write


def load(text):
    return Config(migrate_config.load_text(text))


def refused(*args, **kwargs):
    with pytest.raises(UserError) as error:
        migrate(*args, **kwargs)
    return str(error.value)


@pytest.mark.parametrize('family', HEATMAPS)
def test_shipped_heatmap_config(family):
    package, loss = HEATMAPS[family]
    path = min((Path(package.__file__).parent / '.mim/configs').glob(
        f'{family}/{family}_*b*.py'))
    stock = Config.fromfile(path)
    key = 'pts_bbox_head' if family == 'centerpoint' else 'bbox_head'
    kind = stock.model[key].type
    if kind == 'CenterNetHead':
        loss = 'loss_center_heatmap'
    clipped = ['.heatmap_act'] if kind == 'CenterHead' else []

    text, changes = migrate(str(path))
    cfg = load(text)
    drop_ins = ['model.data_preprocessor.type',
                'model.pts_middle_encoder.type',
                'model.pts_middle_encoder.channels_last'
                ] if family == 'centerpoint' else []
    expected = {'custom_imports', *drop_ins, *(
        f'model.{key}{end}' for end in ['.type', *clipped])}
    assert differences(stock.to_dict(), cfg.to_dict()) == expected
    assert {line.partition(': ')[0] for line in changes} == expected
    assert cfg.model[key].type == f'sigplug.{kind}'
    init_default_scope(cfg.default_scope)
    # To build changes the config.
    ours, theirs = (
        MODELS.build(copy.deepcopy(c.model[key])) for c in (cfg, stock))
    assert type(ours) is getattr(heads, kind)
    ours.load_state_dict(theirs.state_dict(), strict=True)

    cfg = load(migrate(str(path), logits=True)[0])
    assert differences(stock.to_dict(), cfg.to_dict()) == {
        'custom_imports', *drop_ins, f'model.{key}.type',
        f'model.{key}.{loss}.type'}
    assert cfg.model[key][loss] == dict(
        stock.model[key][loss], type='sigplug.GaussianFocalLossWithLogits')
    MODELS.build(cfg.model[key]).load_state_dict(theirs.state_dict())


@pytest.mark.parametrize('name, found', [
    ('mmdet3d::pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-car.py',
     "model.bbox_head.type = 'Anchor3DHead'"),
    ('mmdet3d::centerpoint/nowhere.py', 'cannot be found'),
])
def test_other_shipped_configs_are_refused(name, found):
    assert found in refused(name)


def test_pillar_net_gives_the_shipped_config():
    expected = Config.fromfile(QUICKSTART)
    cfg = load(migrate(STOCK, gem=True, logits=True)[0])
    assert cfg.model.pts_voxel_encoder == expected.model.pts_voxel_encoder
    assert cfg.optim_wrapper == expected.optim_wrapper
    # On top of what is there already.
    assert migrate(str(QUICKSTART), gem=True) == ('', [])


@pytest.mark.parametrize('kind, ours', [
    ('PillarFeatureNet', 'GeMPillarFeatureNet'),
    ('mmdet3d.DynamicPillarFeatureNet', 'GeMDynamicPillarFeatureNet'),
])
def test_power_is_trained_by_its_own_settings(write, kind, ours):
    base = write(
        f'model = dict(head={CENTER_HEAD}, voxel_encoder=dict('
        f"type={kind!r}, in_channels=4, feat_channels=[8], mode='avg'))\n"
        f'optim_wrapper = dict({OPTIMIZER}, paramwise_cfg=dict('
        "bias_lr_mult=2.0, custom_keys={'norm': dict(lr_mult=3.0)}))")
    cfg = load(migrate(base, gem=True)[0])
    assert cfg.model.voxel_encoder == dict(
        type=f'sigplug.{ours}', in_channels=4, feat_channels=[8], p=3.0)
    assert cfg.optim_wrapper.paramwise_cfg.bias_lr_mult == 2.0
    init_default_scope('mmdet3d')
    net = MODELS.build(cfg.model.voxel_encoder)
    optimizer = build_optim_wrapper(net, cfg.optim_wrapper).optimizer
    p, = (p for name, p in net.named_parameters() if name.endswith('gem.p'))
    power, = (group for group in optimizer.param_groups
              if group['params'][0] is p)
    assert power['lr'] == pytest.approx(1.0) and power['weight_decay'] == 0


def test_pillar_net_that_cannot_be(write):
    message = refused(VOXEL, gem=True)
    assert "model.pts_voxel_encoder.type = 'HardSimpleVFE'" in message
    base = write(f"model = dict(head={CENTER_HEAD}, encoder=dict("
                 "type='PillarFeatureNet'))\noptim_wrapper = dict("
                 f"{OPTIMIZER}, constructor='Mine')")
    assert 'Leave it out' in refused(base, gem=True)
    assert migrate(base)[0]


def test_heads_anywhere(write):
    base = write(
        f'head = {CENTER_HEAD}\n'
        "custom_imports = dict(imports=['json'], allow_failed_imports=True)\n"
        "model = dict(type='Wrapper', limit=float('inf'),\n"
        f"    roi=dict(heads=[dict(type='Stage', limits=(1, )),\n"
        f"        {CENTER_HEAD}], limits=[float('nan')]))\n"
        f"tta_model = dict(type='TTA', module=dict(head={CENTER_HEAD}))")
    text, changes = migrate(base)
    cfg, old = load(text), Config.fromfile(base)
    for head in (cfg.model.roi.heads[1], cfg.tta_model.module.head):
        assert head == dict(old.head, type='sigplug.CenterHead',
                            heatmap_act=dict(type='ClipSigmoid'))
    # A variable of the config is not built.
    assert cfg.head == old.head
    assert cfg.custom_imports == dict(
        imports=['json', 'sigplug'], allow_failed_imports=True)
    assert {line.partition(': ')[0] for line in changes} == {
        'custom_imports.imports', 'model.roi.heads.1.type',
        'model.roi.heads.1.heatmap_act', 'tta_model.module.head.type',
        'tta_model.module.head.heatmap_act'}


def test_head_of_the_users_own(write):
    message = refused(write("model = dict(bbox_head=dict(type='Mine', "
                            "loss_heatmap=dict(type='MyLoss')))"))
    assert "model.bbox_head.type = 'Mine'" in message


OWN = """
from mmdet3d.registry import MODELS
from {module} import CenterHead as Base

@MODELS.register_module(force=True, name={name!r})
class CenterHead(Base):
    {body}
"""


@pytest.mark.parametrize('module, body, refuses', [
    ('sigplug.models.dense_heads', 'pass', False),
    ('sigplug.models.dense_heads',
     'def loss_by_feat(self, *args): return {}', True),
    ('sigplug.models.dense_heads',
     'def loss_by_feat(self, *args): return super().loss_by_feat(*args)',
     False),
    ('mmdet3d.models', 'pass', True),
])
@pytest.mark.parametrize('name', ['MineOfMine', 'CenterHead'])
def test_class_of_the_users_own(write, tmp_path, monkeypatch, name, module,
                                body, refuses, request):
    """It may even have the name of the stock head."""
    import mmdet3d.models
    monkeypatch.syspath_prepend(str(tmp_path))
    for key in (name, 'CenterHead'):
        monkeypatch.setitem(mmdet3d.registry.MODELS._module_dict, key,
                            mmdet3d.models.CenterHead)
    plugin = f'plugin_{abs(hash((name, module, body)))}'
    (tmp_path / f'{plugin}.py').write_text(
        OWN.format(module=module, body=body, name=name))
    base = write(
        f'model = dict(head={CENTER_HEAD})\n'.replace(
            "'CenterHead'", repr(name)) +
        f'custom_imports = dict(imports=[{plugin!r}])')
    if refuses:
        assert 'drop its own loss_by_feat' in refused(base)
    else:
        assert migrate(base) == ('', [])


@pytest.mark.parametrize('old, new, words', [
    ("'mean'", "'none'", "model.head.loss_cls.reduction is 'none'"),
    ('GaussianFocal', 'Focal', 'model.head.loss_cls is ')])
def test_losses_that_are_refused(write, old, new, words):
    base = write(f'model = dict(head={CENTER_HEAD})'.replace(old, new))
    assert words in refused(base, logits=True)


LAZY = """
from mmengine.config import read_base
with read_base():
    from .mine import *
from mmdet3d.models.dense_heads import CenterHead
model.update(head=dict(type=CenterHead))
"""


def test_config_in_plain_python_is_explained(write, tmp_path):
    write('model = dict(type="X")')
    (tmp_path / 'lazy.py').write_text(LAZY)
    message = refused(str(tmp_path / 'lazy.py'))
    assert 'by hand' in message
    assert "-> 'sigplug.CenterHead'" in message


def test_name_stays_a_name(tmp_path):
    out = tmp_path / 'out.py'
    text, _ = migrate(VOXEL, str(out))
    assert text == out.read_text() == (
        f"_base_ = '{VOXEL}'  # noqa: E501\n"
        '\n'
        "custom_imports = dict(imports=['sigplug'], "
        'allow_failed_imports=False)\n'
        'model = dict(\n'
        "    data_preprocessor=dict(type='sigplug.Det3DDataPreprocessor'),\n"
        '    pts_bbox_head=dict(\n'
        "        type='sigplug.CenterHead', "
        "heatmap_act=dict(type='ClipSigmoid')))\n")


def test_out(write, tmp_path):
    base = write(f'model = dict(head={CENTER_HEAD})', 'base.py')
    out = tmp_path / 'below/out.py'
    text, _ = migrate(base, str(out))
    assert text == out.read_text() and "_base_ = '../base.py'" in text
    assert Config.fromfile(out).model.head.type == 'sigplug.CenterHead'
    out.write_text('precious = True')
    assert '--overwrite' in refused(base, str(out))
    assert out.read_text() == 'precious = True'
    migrate(base, str(out), overwrite=True)
    assert out.read_text() == text
    assert 'is the config itself' in refused(base, base, overwrite=True)


# -- the tool ---------------------------------------------------------------
def test_printed_config_is_all_of_the_standard_output(write, tmp_path):
    """Also where the import of a module prints."""
    (tmp_path / 'my_plugin.py').write_text("print('the plugin is imported')")
    base = write(f'model = dict(head={CENTER_HEAD})\n'
                 "custom_imports = dict(imports=['my_plugin'])")
    done = subprocess.run(
        tool_command('misc/migrate_config.py', base), cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [
            str(tmp_path), os.environ.get('PYTHONPATH')]))),
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('_base_ = ')
    assert 'the plugin is imported' in done.stderr
    assert "model.head.type: 'CenterHead' -> 'sigplug.CenterHead'" in (
        done.stderr)
