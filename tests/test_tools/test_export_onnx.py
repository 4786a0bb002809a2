"""Exported detectors in onnxruntime, against mmdet3d's own forward."""
import functools
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import OLD_TORCH, QUICKSTART, load_tool
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import save_checkpoint

from sigplug.errors import UserError

# The quickstart with half of its channels, and two tasks.
SMALL = f"""
_base_ = ['{QUICKSTART}']
model = dict(
    pts_voxel_encoder=dict(feat_channels=[16]),
    pts_middle_encoder=dict(in_channels=16),
    pts_backbone=dict(
        in_channels=16, out_channels=[16, 32, 64], layer_nums=[1, 1, 1]),
    pts_neck=dict(in_channels=[16, 32, 64], out_channels=[16, 16, 16]),
    pts_bbox_head=dict(
        in_channels=48, share_conv_channel=16,
        tasks=[dict(num_class=1, class_names=['car']),
               dict(num_class=2, class_names=['bus', 'truck'])],
        separate_head=dict(head_conv=16)))
"""
CENTERNET = """
_base_ = 'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py'
model = dict(
    backbone=dict(base_channels=8, init_cfg=None),
    neck=dict(in_channels=64, num_deconv_filters=(16, 16, 16)),
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
BRANCHES = ['heatmap', 'reg', 'height', 'dim', 'rot', 'vel']


@pytest.fixture(scope='module')
def tool():
    return load_tool('deployment/export_onnx.py')


def make(folder, config):
    """The config, a model of it, and its checkpoint; both stay in files."""
    (folder / 'config.py').write_text(config)
    cfg = Config.fromfile(folder / 'config.py')
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    # As after a training: other statistics, and nothing still at 0.
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    meta = dict(dataset_meta=dict(classes=('a', 'b', 'c')))
    save_checkpoint(
        dict(state_dict=model.state_dict(), meta=meta),
        str(folder / 'epoch_1.pth'))
    return model.eval()


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


def run_onnx(path, x):
    session = onnxruntime.InferenceSession(
        path, providers=['CPUExecutionProvider'])
    name, = (value.name for value in session.get_inputs())
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, {name: x.numpy()})))


def check(path, x, wanted):
    found = run_onnx(path, x)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(
            found[name], value.numpy(), rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize('options, opset', [
    ([], 18),
    (['--opset', 17], 17),
])
def test_centerpoint(tool, small, run_here, tmp_path, options,
                     opset):
    folder, model = small
    out = tmp_path / 'new' / 'model.onnx'
    code, printed = run_here(
        tool, folder / 'config.py',
        folder / 'epoch_1.pth', '--out', out, *options)
    assert code == 0, printed.err
    assert 'multiples of 8' in printed.out
    assert list(out.parent.iterdir()) == [out]
    # The traced size, the one of the quickstart's proportions, and others.
    for shape in [(2, 16, 72, 88), (1, 16, 64, 64), (3, 16, 104, 40)]:
        x = 3 * torch.randn(shape)
        check(out, x, stock_outputs(model, x))
    exported = onnx.load(out)
    onnx.checker.check_model(exported, full_check=True)
    assert [(entry.domain, entry.version)
            for entry in exported.opset_import] == [('', opset)]
    extra = {node.op_type for node in exported.graph.node} ^ {
        'Conv', 'Relu', 'ConvTranspose', 'Concat'}
    # Old torch leaves it to the runtime to fold the normalisations.
    assert not extra or (OLD_TORCH and extra <= {
        'BatchNormalization', 'Identity'})
    assert not any(tensor.external_data
                   for tensor in exported.graph.initializer)
    about = {entry.key: entry.value for entry in exported.metadata_props}
    assert about.pop('heatmap') == 'logits'
    assert {key: json.loads(value) for key, value in about.items()} == dict(
        tasks=[['car'], ['bus', 'truck']], voxel_size=[0.4, 0.4, 8],
        point_cloud_range=[-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],
        out_size_factor=2, norm_bbox=True, divisor=8)


def test_the_exporter_of_older_torch(tool, small, monkeypatch, run_here):
    """It traces the model."""
    monkeypatch.setattr(tool, 'EXPORTS_PROGRAMS', False)
    monkeypatch.setattr(
        torch.onnx, 'export',
        functools.partial(torch.onnx.export, dynamo=False))
    folder, model = small
    code, printed = run_here(
        tool, folder / 'config.py',
        folder / 'epoch_1.pth', '--opset', 17, '--heatmap', 'probability')
    assert code == 0, printed.err
    x = torch.randn(1, 16, 64, 104)
    wanted = {
        name: value.sigmoid() if name.endswith('heatmap') else value
        for name, value in stock_outputs(model, x).items()}
    # By default beside the checkpoint.
    check(folder / 'epoch_1.onnx', x, wanted)


def test_exported_logits_decode_to_the_predictions(tool, small, run_here,
                                                   tmp_path):
    """The decoder of the head takes the outputs as they are."""
    from mmdet3d.structures import LiDARInstance3DBoxes
    folder, model = small
    out = tmp_path / 'model.onnx'
    code, printed = run_here(
        tool, folder / 'config.py',
        folder / 'epoch_1.pth', '--out', out)
    assert code == 0, printed.err
    x = torch.randn(1, 16, 64, 64)
    found = {name: torch.from_numpy(value)
             for name, value in run_onnx(out, x).items()}
    metas = [dict(box_type_3d=LiDARInstance3DBoxes)]
    head = model.pts_bbox_head
    results = [
        head.predict_by_feat(tuple(
            [{name: maps[f'task{i}.{name}'].clone() for name in BRANCHES}]
            for i in range(2)), metas)[0]
        for maps in (found, stock_outputs(model, x))]
    assert len(results[0].scores_3d) > 10
    torch.testing.assert_close(
        results[0].scores_3d, results[1].scores_3d, rtol=0, atol=1e-5)
    # Scores that round alike may change places.
    apart = (results[0].bboxes_3d.tensor[:50, None]
             - results[1].bboxes_3d.tensor).abs().amax(2)
    assert apart.amin(1).max() < 1e-3


def test_centernet(tool, run_here, tmp_path):
    """The stock head, whose forward has a sigmoid of its own."""
    model = make(tmp_path, CENTERNET)
    code, printed = run_here(
        tool, tmp_path / 'config.py',
        tmp_path / 'epoch_1.pth', '--heatmap', 'probability')
    assert code == 0, printed.err
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
def test_levels_of_centernet_update(tool, run_here, tmp_path):
    model = make(tmp_path, PYRAMID)
    code, printed = run_here(
        tool, tmp_path / 'config.py',
        tmp_path / 'epoch_1.pth')
    assert code == 0, printed.err
    # Of no common divisor.
    x = torch.randn(1, 3, 97, 130)
    with torch.no_grad():
        levels = zip(*model(x), strict=True)
    wanted = {f'level{i}.{name}': value for i, maps in enumerate(levels)
              for name, value in zip(('heatmap', 'box'), maps)}
    assert len(wanted) == 8
    check(tmp_path / 'epoch_1.onnx', x, wanted)


def check_program(part):
    """``torch.export`` and ONNX keep batch, height and width open."""
    x = torch.randn(2, 16, 72, 88)
    height, width = (8 * torch.export.Dim(n, min=2) for n in 'hw')
    program = torch.export.export(
        part, (x, ), dynamic_shapes=(
            {0: torch.export.Dim('batch'), 2: height, 3: width}, ))
    assert not any(
        isinstance(value, torch.Tensor) and value.dtype == torch.float64
        for value in (node.meta.get('val') for node in program.graph.nodes))
    y = torch.randn(3, 16, 104, 40)
    for name, value in part(y).items():
        torch.testing.assert_close(
            program.module()(y)[name], value, rtol=1e-5, atol=1e-5)


def test_torch_export(tool, small):
    _, model = small
    part = tool.dense_part(model, True)
    with torch.no_grad():
        check_program(part)


def test_gem_in_the_dense_part(tool, run_here, tmp_path):
    model = make(tmp_path, CONTEXT)
    code, printed = run_here(
        tool, tmp_path / 'config.py',
        tmp_path / 'epoch_1.pth')
    assert code == 0, printed.err
    path = tmp_path / 'epoch_1.onnx'
    for shape in [(1, 16, 64, 104), (2, 16, 120, 64)]:
        x = torch.randn(shape)
        check(path, x, stock_outputs(model, x))
    # The trained power and its reciprocal are constants, 4.5 among them.
    graph = onnx.load(path).graph
    powers = [onnx.numpy_helper.to_array(tensor).item()
              for node in graph.node if node.op_type == 'Pow'
              for tensor in graph.initializer
              if tensor.name == node.input[1]]
    assert powers == [4.5, pytest.approx(1 / 4.5)]
    with torch.no_grad():
        check_program(tool.dense_part(model, False))


# --- refusals -------------------------------------------------------------

DCN = SMALL.replace('separate_head=dict(head_conv=16)', """
        separate_head=dict(
            type='DCNSeparateHead', head_conv=16, dcn_config=dict(
                type='DCN', in_channels=16, out_channels=16, kernel_size=3,
                padding=1, groups=4))""")


def test_deformable_convolution_is_refused(tool, run_here,
                                           tmp_path):
    make(tmp_path, DCN)
    code, printed = run_here(
        tool, tmp_path / 'config.py',
        tmp_path / 'epoch_1.pth')
    assert code == 2
    assert 'feature_adapt_cls is a deformable convolution' in printed.err
    assert "type='SeparateHead'" in printed.err
    assert not list(tmp_path.glob('*.onnx'))


def test_another_detector_is_refused(tool):
    with pytest.raises(UserError, match='Linear with .*'
                       'NoneType has no dense part .* CenterNetUpdateHead'):
        tool.dense_part(torch.nn.Linear(1, 1), False)


@pytest.mark.parametrize('args, words', [
    (['nothing.py', 'epoch_1.pth'], "'nothing.py' does not exist"),
    (['config.py', 'x.pth'], "the checkpoint 'x.pth' does not exist"),
    (['config.py', 'foreign.pth'], 'does not fit the model'),
    (['empty.py', 'epoch_1.pth'], 'has no model'),
    (['config.py', 'epoch_1.pth', '--out', 'x.pt'], 'must end with .onnx'),
    (['config.py', 'epoch_1.pth', '--opset', '11'], 'at least 17, got 11'),
    (['config.py', 'https://x.org/a.pth'], 'needs --out'),
    (['config.py', 'epoch_1.pth', '--cfg-options', 'a'], 'KEY=VALUE pairs'),
])
def test_wrong_arguments(tool, small, monkeypatch, run_here, args, words):
    folder, _ = small
    monkeypatch.chdir(folder)
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), 'foreign.pth')
    (folder / 'empty.py').write_text("default_scope = 'mmdet3d'")
    code, printed = run_here(tool, *args)
    assert code == 2
    assert words in printed.err
    assert 'Traceback' not in printed.err and len(printed.err) < 2000


def test_missing_packages_are_named(tool, small, monkeypatch, run_here):
    folder, _ = small
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    code, printed = run_here(
        tool, folder / 'config.py',
        folder / 'epoch_1.pth')
    assert code == 2
    assert 'pip install onnx onnxruntime onnxscript' in printed.err


def drop_dynamic_shapes(function, *args, **kwargs):
    # The exporters of old and new torch call them by other names.
    for name in ('dynamic_axes', 'dynamic_shapes'):
        kwargs.pop(name, None)
    function(*args, **kwargs)


@pytest.mark.parametrize('mistake', ['values', 'size', 'interrupted'])
def test_nothing_is_left_of_a_wrong_export(tool, small, monkeypatch, run_here,
                                           tmp_path, mistake):
    folder, _ = small
    out = tmp_path / 'model.onnx'
    out.write_text('of an earlier run')
    export = tool.export

    def wrong(part, path, divisor, opset):
        if mistake == 'values':
            # Of a model with other weights.
            bias = part.head.task_heads[0].heatmap[-1].bias
            bias.add_(1e-3)
            export(part, path, divisor, opset)
            bias.sub_(1e-3)
        elif mistake == 'size':
            monkeypatch.setattr(
                tool.torch.onnx, 'export',
                functools.partial(drop_dynamic_shapes, torch.onnx.export))
            export(part, path, divisor, opset)
        else:
            path.write_text('half a mod')
            raise KeyboardInterrupt

    monkeypatch.setattr(tool, 'export', wrong)
    arguments = (folder / 'config.py', folder / 'epoch_1.pth', '--out', out)
    if mistake == 'size':
        with pytest.raises(Exception, match='Got invalid dimensions'):
            run_here(tool, *arguments)
    else:
        code, printed = run_here(tool, *arguments)
        expected, words = {
            'values': (2, 'task0.heatmap is off by 0.001'),
            'interrupted': (130, 'Stopped by SIGINT'),
        }[mistake]
        assert code == expected and words in printed.err
    assert out.read_text() == 'of an earlier run'
    assert list(tmp_path.iterdir()) == [out]


def test_float64_and_other_domains_are_refused(tool):
    make_model = onnx.helper.make_model
    x, y = (onnx.helper.make_tensor_value_info(
        name, onnx.TensorProto.FLOAT, [1]) for name in 'xy')
    cast = [onnx.helper.make_node('Cast', ['x'], ['z'], to=11),
            onnx.helper.make_node('Cast', ['z'], ['y'], to=1)]
    opset = [onnx.helper.make_opsetid('', 18)]
    model = make_model(
        onnx.helper.make_graph(cast, 'g', [x], [y]), opset_imports=opset)
    with pytest.raises(UserError, match='float64'):
        tool.check_standard(model, 18)
    with pytest.raises(UserError, match='opset 18'):
        tool.check_standard(model, 17)
    custom = [onnx.helper.make_node('F', ['x'], ['y'], domain='mmcv')]
    opset.append(onnx.helper.make_opsetid('mmcv', 1))
    model = make_model(
        onnx.helper.make_graph(custom, 'g', [x], [y]), opset_imports=opset)
    with pytest.raises(UserError, match='mmcv::F'):
        tool.check_standard(model, 18)
