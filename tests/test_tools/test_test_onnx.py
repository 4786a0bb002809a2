"""The evaluation and the quantisation of exported detectors."""
import json
import shutil
from argparse import Namespace

import numpy as np
import onnx
import pytest
from conftest import load_tool
from test_deploy.deployed import SMALL, export

from sigplug.deploy import Detections, Detector
from sigplug.deploy.folder import DENSE, DESCRIPTION

# As many classes as the evaluation of nuScenes has.
ALL = SMALL.replace("tasks=[dict(num_class=1, class_names=['car']),", """
        tasks=[dict(num_class=8, class_names=[
            'car', 'trailer', 'construction_vehicle', 'barrier', 'motorcycle',
            'bicycle', 'pedestrian', 'traffic_cone']),""")


@pytest.fixture(scope='module')
def exported(tmp_path_factory, synthetic_nuscenes):
    folder = tmp_path_factory.mktemp('exported')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SIGPLUG_DATA_ROOT', f'{synthetic_nuscenes}/')
        export(folder, ALL)
        yield folder


@pytest.mark.slow
def test_quantised_and_evaluated(exported, run_here, tmp_path):
    config, folder = exported / 'config.py', exported / 'epoch_1'
    small = tmp_path / 'int8'
    code, printed = run_here('deployment/quantize_onnx.py', config, folder,
                             '--num', 3, '--out', small)
    assert code == 0, printed.err
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
    code, printed = run_here('deployment/test_onnx.py', config, folder, small,
                             '--out', out)
    assert code == 0, printed.err
    results = json.loads(out.read_text())['results']
    torch_result, same, other = results.values()
    # Untrained, it gives equal scores to empty places, in any order.
    assert same['frames'] == 6
    assert 6 >= same['same_frames'] > other['same_frames'] == 0
    assert same['mAP'] == pytest.approx(torch_result['mAP'], abs=1e-4)
    assert same['NDS'] == pytest.approx(torch_result['NDS'], abs=1e-4)
    assert 0 < same['milliseconds']['network'] < same['milliseconds']['total']
    assert 'frames equal to 0.001' in printed.out


def test_the_checkpoint_must_be_that_of_the_folder(exported, fail, tmp_path):
    other = tmp_path / 'other.pth'
    other.write_bytes((exported / 'epoch_1.pth').read_bytes())
    with other.open('ab') as file:
        file.write(b'x')
    message = fail('deployment/test_onnx.py', exported / 'config.py',
                   exported / 'epoch_1', '--checkpoint', other)
    assert 'was exported from another checkpoint' in message


def rewrite(folder, **changes):
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_from_the_net_needs_its_file(exported, fail, tmp_path):
    folder = shutil.copytree(exported / 'epoch_1', tmp_path / 'copy')
    rewrite(folder, checkpoint='https://a/b.pth', checkpoint_sha256=None)
    message = fail('deployment/test_onnx.py', exported / 'config.py', folder)
    assert 'exported from https://a/b.pth' in message
    tool = load_tool('deployment/test_onnx.py')
    path = str(exported / 'epoch_1.pth')
    assert tool.find_checkpoint(Namespace(checkpoint=path), {
        'copy': Detector(folder)}) == path


def test_other_evaluations_are_refused(exported, fail):
    message = fail(
        'deployment/test_onnx.py', exported / 'config.py', 'folder',
        '--cfg-options', 'test_evaluator.type=KittiMetric')
    assert 'test_evaluator of the config is KittiMetric' in message


# -- the quantisation -------------------------------------------------------
def test_the_float32_model_is_not_replaced(exported, fail):
    folder = exported / 'epoch_1'
    message = fail('deployment/quantize_onnx.py', exported / 'config.py',
                   folder, '--out', folder / '..' / 'epoch_1')
    assert 'would replace the float32 model' in message


def test_samples_without_points_in_range(exported, fail, monkeypatch):
    tool = load_tool('deployment/quantize_onnx.py')
    monkeypatch.setattr(tool.Detector, 'encode', lambda *_: None)
    message = fail(tool, exported / 'config.py', exported / 'epoch_1',
                   '--num', 2)
    assert 'None of the 2 training samples has a point in the' in message


def test_samples_are_those_of_the_run_before(exported):
    tool = load_tool('deployment/quantize_onnx.py')
    args = Namespace(
        config=str(exported / 'config.py'), cfg_options=None, num=1)
    first, again = (next(tool.read_maps(args, Detector(exported / 'epoch_1')))
                    for _ in range(2))
    np.testing.assert_array_equal(*first.values(), *again.values())


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


def test_only_float32_is_quantised(exported, fail, monkeypatch):
    tool = load_tool('deployment/quantize_onnx.py')
    read = tool.Detector

    def half(folder):
        detector = read(folder)
        detector.about['precision'] = 'float16'
        return detector

    monkeypatch.setattr(tool, 'Detector', half)
    message = fail(tool, exported / 'config.py', exported / 'epoch_1')
    assert 'is in float16' in message


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
def test_published_checkpoint(exported, run_here, fail, tmp_path):
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
    code, printed = run_here(tool, work_dir, '--out', tmp_path / 'release')
    assert code == 0, printed.err
    about, weights = sorted((tmp_path / 'release').iterdir())
    about = json.loads(about.read_text())
    assert about['file'] == weights.name == f'a-{about["sha256"][:8]}.pth'
    assert about['metrics'] == summary['metrics']
