"""Exported detectors in onnxruntime, against mmdet3d's own forward."""
import copy
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import OLD_TORCH, load_tool
from test_deploy.deployed import SMALL, make, trace

from sigplug.errors import UserError

CENTERNET = """
_base_ = 'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py'
model = dict(
    backbone=dict(
        base_channels=8, init_cfg=None, num_stages=2, strides=(1, 2),
        dilations=(1, 1), out_indices=(0, 1)),
    neck=dict(in_channels=16, num_deconv_filters=(16, 16, 16)),
    bbox_head=dict(in_channels=16, feat_channels=16, num_classes=3))
"""
# With GeM in the part that is exported.
CONTEXT = SMALL.replace("""
    pts_neck=dict(in_channels=[16, 32, 64], out_channels=[16, 16, 16]),""", """
    pts_neck=dict(
        _delete_=True, type='sigplug.GeMContext', in_channels=48, ratio=0.5,
        p=4.5, inner=dict(
            type='SECONDFPN', in_channels=[16, 32, 64],
            out_channels=[16, 16, 16], upsample_strides=[1, 2, 4],
            use_conv_for_no_stride=True)),""")
PYRAMID = """
_base_ = 'mmdet::centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco.py'
model = dict(
    backbone=dict(depth=18, base_channels=8, init_cfg=None),
    neck=dict(
        _delete_=True, type='sigplug.GeMPyramid', num_outs=4, inner=dict(
            type='FPN', in_channels=[8, 16, 32, 64], out_channels=32,
            start_level=1, num_outs=3)),
    bbox_head=dict(
        type='sigplug.CenterNetUpdateHead', in_channels=32, feat_channels=32,
        stacked_convs=1, num_classes=3, strides=[8, 16, 32, 64]))
"""
GEM = ['Clip', 'ReduceMax', 'Where', 'Div', 'Pow', 'ReduceMean', 'Mul',
       'Sigmoid']
BRANCHES = ['heatmap', 'reg', 'height', 'dim', 'rot', 'vel']


@pytest.fixture(scope='module')
def tool():
    return load_tool('deployment/export_onnx.py')


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp('small')
    return folder, make(folder, SMALL)


def stock_outputs(model, canvas):
    """What mmdet3d computes, by the names of the exported outputs."""
    with torch.no_grad():
        outs = model.pts_bbox_head(
            model.pts_neck(model.pts_backbone(canvas)))
    return {f'task{i}.{name}': maps[name] for i, (maps, ) in enumerate(outs)
            for name in BRANCHES}


def check(path, x, wanted):
    session = onnxruntime.InferenceSession(
        path, providers=['CPUExecutionProvider'])
    source, = session.get_inputs()
    names = [value.name for value in session.get_outputs()]
    assert names == list(wanted)
    for name, found in zip(names, session.run(None, {source.name: x.numpy()})):
        np.testing.assert_allclose(
            found, wanted[name].numpy(), rtol=0, atol=1e-4, err_msg=name)


def files(folder):
    return folder / 'config.py', folder / 'epoch_1.pth'


def test_centerpoint(tool, succeed, tmp_path):
    model = make(tmp_path, CONTEXT)
    out = tmp_path / 'new' / 'model.onnx'
    succeed(tool, *files(tmp_path), '--out', out)
    # No folder, but one file of the dense part.
    assert list(out.parent.iterdir()) == [out]
    # The traced size, the one of the quickstart's proportions, and others.
    for shape in [(2, 16, 72, 88), (1, 16, 64, 64), (3, 16, 104, 40)]:
        x = 3 * torch.randn(shape)
        check(out, x, stock_outputs(model, x))
    exported = onnx.load(out)
    onnx.checker.check_model(exported, full_check=True)
    assert [(entry.domain, entry.version)
            for entry in exported.opset_import] == [('', 18)]
    extra = {node.op_type for node in exported.graph.node} ^ {
        'Conv', 'Relu', 'ConvTranspose', 'Concat', *GEM}
    # Old torch leaves it to the runtime to fold the normalisations.
    assert not extra or (OLD_TORCH and extra <= {
        'BatchNormalization', 'Cast', 'Identity'})
    assert not any(tensor.external_data
                   for tensor in exported.graph.initializer)
    # Not all runtimes have float64.
    graph = onnx.shape_inference.infer_shapes(exported).graph
    kinds = {value.type.tensor_type.elem_type for value in graph.value_info}
    assert kinds and onnx.TensorProto.DOUBLE not in kinds
    # The trained power and its reciprocal are constants, 4.5 among them.
    powers = [onnx.numpy_helper.to_array(tensor).item()
              for node in graph.node if node.op_type == 'Pow'
              for tensor in graph.initializer
              if tensor.name == node.input[1]]
    assert powers == [4.5, pytest.approx(1 / 4.5)]
    about = {entry.key: entry.value for entry in exported.metadata_props}
    assert about.pop('heatmap') == 'logits'
    assert {key: json.loads(value) for key, value in about.items()} == dict(
        tasks=[['car'], ['bus', 'truck']], voxel_size=[0.4, 0.4, 8],
        point_cloud_range=[-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],
        out_size_factor=2, norm_bbox=True, divisor=8)


@pytest.fixture
def traced(tool, monkeypatch):
    """The exporter of older torch, which traces the model; it is quicker."""
    trace(tool, monkeypatch)


def test_centernet(tool, traced, succeed, tmp_path):
    """The stock head, whose forward has a sigmoid of its own."""
    model = make(tmp_path, CENTERNET)
    succeed(tool, *files(tmp_path), '--heatmap', 'probability')
    # By default beside the checkpoint.
    x = torch.randn(3, 3, 96, 64)
    with torch.no_grad():
        (heatmap, ), (wh, ), (offset, ) = model(x)
    path = tmp_path / 'epoch_1.onnx'
    check(path, x, dict(heatmap=heatmap, wh=wh, offset=offset))
    about = {entry.key: entry.value
             for entry in onnx.load(path).metadata_props}
    assert json.loads(about['classes']) == ['a', 'b', 'c']
    assert json.loads(about['mean']) == [123.675, 116.28, 103.53]


@pytest.mark.slow
def test_levels_of_centernet_update(tool, succeed, tmp_path):
    model = make(tmp_path, PYRAMID)
    succeed(tool, *files(tmp_path))
    # Of no common divisor.
    x = torch.randn(1, 3, 97, 130)
    with torch.no_grad():
        levels = zip(*model(x), strict=True)
    wanted = {f'level{i}.{name}': value for i, maps in enumerate(levels)
              for name, value in zip(('heatmap', 'box'), maps)}
    assert len(wanted) == 8
    check(tmp_path / 'epoch_1.onnx', x, wanted)


# --- refusals -------------------------------------------------------------

def test_deformable_convolution_is_refused(tool, run_here, tmp_path):
    make(tmp_path, SMALL.replace('dict(head_conv=16)', """dict(
        type='DCNSeparateHead', head_conv=16, dcn_config=dict(
            type='DCN', in_channels=16, out_channels=16, kernel_size=3,
            padding=1, groups=4))"""))
    code, printed = run_here(tool, *files(tmp_path))
    assert code == 2 and 'is a deformable convolution' in printed.err
    assert not list(tmp_path.glob('*.onnx'))


def test_other_detectors_are_refused(tool, small):
    with pytest.raises(UserError, match='Linear .* has no dense part'):
        tool.dense_part(torch.nn.Linear(1, 1), 'logits')
    model = copy.deepcopy(small[1])
    model.img_backbone = torch.nn.Identity()
    with pytest.raises(UserError, match='has img_backbone.* would miss'):
        tool.dense_part(model, 'logits')


@pytest.mark.parametrize('change, words', [
    (lambda m: setattr(m, 'pts_middle_encoder', torch.nn.Identity()),
     'sparse convolution is no operator of ONNX'),
    (lambda m: setattr(m, 'pts_voxel_encoder', torch.nn.Identity()),
     'pts_voxel_encoder is Identity'),
    (lambda m: setattr(m.data_preprocessor, 'voxel_type', 'dynamic'),
     'no hard voxels'),
    (lambda m: setattr(m.pts_voxel_encoder.pfn_layers[0], 'norm',
                       torch.nn.GroupNorm(2, 16)), 'has a GroupNorm')])
def test_models_without_pillars_are_refused(tool, small, change, words):
    model = copy.deepcopy(small[1])
    change(model)
    with pytest.raises(UserError, match=words):
        tool.pillar_encoder(model)


def describe_points(num_columns, *steps):
    loader = dict(dataset=dict(pipeline=list(steps)))
    return load_tool('deployment/exported.py').describe_points(
        dict(test_dataloader=loader), num_columns)


@pytest.mark.parametrize('steps, load_dim, columns', [
    ([dict(type='LoadPointsFromFile')], 6, [0, 1, 2]),
    ([dict(type='LoadPointsFromFile', load_dim=5, use_dim=4)], 5,
     [0, 1, 2, 3]),
    ([dict(type='LoadPointsFromFile', load_dim=5, use_dim=5),
      dict(type='mmdet3d.LoadPointsFromMultiSweeps')], 5, [0, 1, 2, None])])
def test_columns(steps, load_dim, columns):
    assert describe_points(len(columns), *steps) == dict(
        load_dim=load_dim, columns=columns)


@pytest.mark.parametrize('options, words', [
    (dict(norm_intensity=True), 'has norm_intensity=True'),
    (dict(use_dim=4), r'columns \[0, 1, 2, 3\] .* takes 3 values')])
def test_columns_that_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        describe_points(3, dict(type='LoadPointsFromFile', **options))


@pytest.mark.parametrize('args, words', [
    (['config.py', 'foreign.pth'], 'does not fit the model'),
    (['empty.py', 'epoch_1.pth'], 'has no model'),
    (['config.py', 'epoch_1.pth', '--decode', '--heatmap', 'probability'],
     '--decode leaves no heatmap'),
    (['config.py', 'epoch_1.pth', '--opset', '11'], 'at least 17, got 11'),
])
def test_wrong_arguments(tool, small, monkeypatch, fail, args, words):
    folder, _ = small
    monkeypatch.chdir(folder)
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), 'foreign.pth')
    (folder / 'empty.py').write_text("default_scope = 'mmdet3d'")
    assert words in fail(tool, *args)


def test_missing_packages_are_named(tool, small, monkeypatch, fail):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert 'pip install onnx onnxruntime' in fail(tool, *files(small[0]))


def test_nothing_is_left_of_a_wrong_export(
        tool, traced, small, monkeypatch, fail, tmp_path):
    out = tmp_path / 'model.onnx'
    out.write_text('of an earlier run')
    export = tool.export

    def wrong(part, path, *args):
        # Of a model with other weights.
        bias = part.head.task_heads[0].heatmap[-1].bias
        bias.add_(1e-3)
        export(part, path, *args)
        bias.sub_(1e-3)

    monkeypatch.setattr(tool, 'export', wrong)
    assert 'task0.heatmap is off by 0.001' in fail(
        tool, *files(small[0]), '--out', out)
    assert out.read_text() == 'of an earlier run'
    assert list(tmp_path.iterdir()) == [out]
