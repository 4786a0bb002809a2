"""The evaluation and the quantisation of exported detectors."""
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import load_tool
from mmengine.registry import MODELS
from test_deploy.deployed import SMALL, cloud, export, make
from torch import nn

from sigplug.deploy import Detections, Detector
from sigplug.deploy.folder import DENSE, DESCRIPTION
from sigplug.models import ClipSigmoid

# As many classes as the evaluation of nuScenes has.
ALL = SMALL.replace("tasks=[dict(num_class=1, class_names=['car']),", """
        tasks=[dict(num_class=8, class_names=[
            'car', 'trailer', 'construction_vehicle', 'barrier', 'motorcycle',
            'bicycle', 'pedestrian', 'traffic_cone']),""")


# With GeM and ClipSigmoid in the neck.
GATED = ALL + """
model['pts_neck'] = dict(
    _delete_=True, type='sigplug.GeMContext', in_channels=48, ratio=0.5, p=4.5,
    inner=[dict(type='SECONDFPN', in_channels=[16, 32, 64],
                out_channels=[16, 16, 16], upsample_strides=[1, 2, 4],
                use_conv_for_no_stride=True), dict(type='GateOfTest')])
"""


@MODELS.register_module()
class GateOfTest(nn.Module):
    """Scales a map by a score for each cell, most of them at a bound."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Conv2d(48, 48, 1)
        nn.init.normal_(self.gate.weight, std=100)
        self.act = ClipSigmoid()

    def forward(self, levels):
        x, = levels
        return [x * self.act(self.gate(x))]


@pytest.fixture(scope='module')
def exported(tmp_path_factory, synthetic_nuscenes):
    folder = tmp_path_factory.mktemp('exported')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SIGPLUG_DATA_ROOT', f'{synthetic_nuscenes}/')
        export(folder, ALL)
        yield folder


@pytest.mark.slow
def test_quantised_and_evaluated(exported, succeed, tmp_path):
    config, folder = exported / 'config.py', exported / 'epoch_1'
    small = tmp_path / 'int8'
    succeed('deployment/quantize_onnx.py', config, folder, '--num', 3,
            '--out', small)
    graph = onnx.load(small / DENSE).graph
    assert {'QuantizeLinear', 'DequantizeLinear'} <= {
        node.op_type for node in graph.node}
    about = json.loads((small / DESCRIPTION).read_text())
    assert about['precision'] == 'int8'
    assert about['calibration']['kept'] == ['first', 'last']
    # Half of these layers is transposed, or kept.
    assert (small / DENSE).stat().st_size < 0.7 * (
        folder / DENSE).stat().st_size

    out = tmp_path / 'results.json'
    assert 'frames equal to 0.001' in succeed(
        'deployment/test_onnx.py', config, folder, small, '--out', out)
    results = json.loads(out.read_text())['results']
    torch_result, same, other = results.values()
    # Untrained, it gives equal scores to empty places, in any order.
    assert same['frames'] == 6
    assert 6 >= same['same_frames'] > other['same_frames'] == 0
    assert same['mAP'] == pytest.approx(torch_result['mAP'], abs=1e-4)
    assert same['NDS'] == pytest.approx(torch_result['NDS'], abs=1e-4)
    assert 0 < same['milliseconds']['network'] < same['milliseconds']['total']


def show_gate(path):
    """Make what the network multiplies by its ClipSigmoid an output too."""
    model = onnx.load(path)
    kinds = {name: node.op_type for node in model.graph.node
             for name in node.output}
    gate, = (node for node in model.graph.node if node.op_type == 'Clip'
             and kinds[node.input[0]] == 'Sigmoid')
    name, = gate.output
    # In float16 its inside is float32.
    name = next((node.output[0] for node in model.graph.node
                 if node.op_type == 'Cast' and name in node.input), name)
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=['CPUExecutionProvider']), name


@pytest.mark.slow
def test_gem_and_clip_sigmoid_in_smaller_models(
        synthetic_nuscenes, succeed, tmp_path, monkeypatch):
    monkeypatch.setenv('SIGPLUG_DATA_ROOT', f'{synthetic_nuscenes}/')
    make(tmp_path, GATED, cloud())
    config = tmp_path / 'config.py'
    for precision in ('float32', 'float16'):
        succeed('deployment/export_onnx.py', config, tmp_path / 'epoch_1.pth',
                '--precision', precision, '--out', tmp_path / precision)
    succeed('deployment/quantize_onnx.py', config, tmp_path / 'float32',
            '--num', 2, '--out', tmp_path / 'int8')

    detector = Detector(tmp_path / 'float32')
    canvas = detector.encode(cloud())
    for precision in ('float16', 'int8'):
        session, name = show_gate(tmp_path / precision / DENSE)
        for x in (canvas, np.zeros_like(canvas), 30 * canvas):
            gate, = session.run([name], dict(spatial_features=x))
            assert (gate > 0).all() and (gate < 1).all()
            assert gate.min() < 2e-4 and gate.max() > 1 - 1e-3
            for values in session.run(None, dict(spatial_features=x)):
                assert np.isfinite(values).all()
        found = Detector(tmp_path / precision)(cloud())
        assert len(found.boxes) > 50 and np.isfinite(found.boxes).all()
        assert (found.scores > 0).all() and (found.scores < 1).all()


def rewrite(exported, tmp_path, **changes):
    """A copy of the folder with another description."""
    folder = shutil.copytree(exported / 'epoch_1', tmp_path / 'copy')
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_the_checkpoint_must_be_that_of_the_folder(exported, fail, tmp_path):
    other = tmp_path / 'other.pth'
    other.write_bytes((exported / 'epoch_1.pth').read_bytes() + b'x')
    message = fail('deployment/test_onnx.py', exported / 'config.py',
                   exported / 'epoch_1', '--checkpoint', other)
    assert 'was exported from another checkpoint' in message


def test_a_model_from_the_net_needs_its_file(exported, fail, tmp_path):
    folder = rewrite(exported, tmp_path, checkpoint='https://a/b.pth',
                     checkpoint_sha256=None)
    message = fail('deployment/test_onnx.py', exported / 'config.py', folder)
    assert 'exported from https://a/b.pth' in message


def test_other_evaluations_are_refused(exported, fail):
    message = fail(
        'deployment/test_onnx.py', exported / 'config.py', 'folder',
        '--cfg-options', 'test_evaluator.type=KittiMetric')
    assert 'test_evaluator of the config has no NuScenesMetric' in message


# -- the quantisation -------------------------------------------------------
@pytest.mark.parametrize('changes, out, words', [
    ({}, 'copy', 'would replace the float32 model'),
    (dict(precision='float16'), 'new', 'is in float16')])
def test_what_is_not_quantised(exported, fail, tmp_path, changes, out, words):
    folder = rewrite(exported, tmp_path, **changes)
    assert words in fail('deployment/quantize_onnx.py', 'config.py', folder,
                         '--out', tmp_path / out)


@pytest.mark.parametrize('keep, kept', [
    (['last'], ['a', 'b']), (['first'], ['first']), ([], []),
    (['first', 'last'], ['a', 'b', 'first'])])
def test_last_convolutions_before_other_nodes(tmp_path, keep, kept):
    """Two heads, one with a sigmoid and a decoder behind it."""
    nodes = [('Conv', 'x', 'u', 'first'), ('Conv', 'u', 'v', 'middle'),
             ('Conv', 'v', 'w', 'a'), ('Conv', 'v', 'boxes', 'b'),
             ('Sigmoid', 'w', 's', ''), ('Flatten', 's', 'scores', '')]
    values = {name: onnx.helper.make_tensor_value_info(
        name, onnx.TensorProto.FLOAT, None) for name in (
            'x', 'boxes', 'scores')}
    x, *outputs = values.values()
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(
        [onnx.helper.make_node(kind, [source], [result], name=name)
         for kind, source, result, name in nodes], 'g', [x], outputs)),
        tmp_path / 'a.onnx')
    tool = load_tool('deployment/quantize_onnx.py')
    assert sorted(tool.find_kept(tmp_path / 'a.onnx', keep)) == kept


@pytest.mark.parametrize('change, same', [
    (lambda boxes: boxes, True), (lambda boxes: boxes[::-1], True),
    (lambda boxes: boxes + [0, 0, 9e-4, 0, 0, 0, 2 * np.pi], True),
    (lambda boxes: boxes + [2e-3, 0, 0, 0, 0, 0, 0], False),
    (lambda boxes: boxes + [0, 0, 0, 0, 0, 0, np.pi], False),
    (lambda boxes: boxes[1:], False), (lambda boxes: boxes[:0], False)])
def test_same_boxes(change, same):
    tool = load_tool('deployment/test_onnx.py')
    boxes = np.random.default_rng(0).normal(size=(5, 7))
    other = change(boxes)

    def found(values):
        return Detections(values, np.ones(len(values)), np.ones(len(values)))

    assert tool.same_boxes(found(boxes), found(other)) is same


# -- the files of a release -------------------------------------------------
def test_published_checkpoint(exported, succeed, fail, tmp_path):
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    tool = 'deployment/publish_checkpoint.py'
    assert 'no results of tools/quickstart.py' in fail(tool, work_dir)
    (work_dir / 'epoch_1.pth').symlink_to(exported / 'epoch_1.pth')
    summary = dict(
        config='configs/a.py', files=dict(checkpoint='elsewhere/epoch_1.pth'),
        metrics=dict(mAP=0.5, NDS=0.4), seed=0, amp=False, data_seed=0,
        machine={}, versions={})
    (work_dir / 'summary.json').write_text(json.dumps(summary))
    succeed(tool, work_dir, '--out', tmp_path / 'release')
    about, weights = sorted((tmp_path / 'release').iterdir())
    about = json.loads(about.read_text())
    assert about['file'] == weights.name == f'a-{about["sha256"][:8]}.pth'
    assert about['metrics'] == summary['metrics']
