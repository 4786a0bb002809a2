"""A whole detector without torch, against the PyTorch model."""
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, load_tool
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes

from sigplug.deploy import Detections, Detector
from sigplug.deploy.folder import DENSE, DESCRIPTION, ENCODER, checksum
from sigplug.errors import UserError

from .deployed import SMALL, cloud, export

STOCK = SMALL + """
model['data_preprocessor'] = dict(type='Det3DDataPreprocessor')
model['pts_voxel_encoder'] = dict(
    _delete_=True, type='PillarFeatureNet', in_channels=4,
    feat_channels=[8, 16], with_distance=True, voxel_size=[0.4, 0.4, 8],
    point_cloud_range=[-51.2, -51.2, -5.0, 51.2, 51.2, 3.0], legacy=False)
"""


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported')
    return folder / 'epoch_1', export(folder)


@pytest.fixture
def copy(exported, tmp_path):
    """The folder for one test alone."""
    return shutil.copytree(exported[0], tmp_path / 'copy')


def assert_equal(model, found, points):
    sample = Det3DDataSample()
    sample.set_metainfo(dict(box_type_3d=LiDARInstance3DBoxes))
    with torch.no_grad():
        result, = model.test_step(dict(
            inputs=dict(points=[torch.from_numpy(points.copy())]),
            data_samples=[sample]))
    wanted = result.pred_instances_3d
    assert len(wanted) > 50
    # Scores that are nearly equal come in any order.
    tool = load_tool('deployment/test_onnx.py')
    assert tool.same_boxes(found, Detections(
        wanted.bboxes_3d.tensor.numpy(), wanted.scores_3d.numpy(),
        wanted.labels_3d.numpy()))


def test_the_quickstart_with_two_tasks(exported):
    folder, model = exported
    detector = Detector(folder)
    assert detector.classes == ['car', 'bus', 'truck']
    assert_equal(model, detector(cloud()), cloud())


def test_description(exported):
    about = Detector(exported[0]).about
    assert (about['opset'], about['cfg_options']) == (18, {})
    assert {'torch', 'onnx', 'onnxruntime', 'onnxscript'} <= set(
        about['versions'])


@pytest.mark.parametrize('config, options', [
    (STOCK, ['--decode']), (SMALL, ['--heatmap', 'probability']),
    (SMALL.replace('feat_channels=[16]', 'feat_channels=[8, 16], '
                   'per_channel=True, p=7.0'), [])])
def test_other_models_and_outputs(config, options, tmp_path):
    """Stock encoders of two layers, decoding in the graph, GeM."""
    model = export(tmp_path, config, *options)
    assert_equal(model, Detector(tmp_path / 'epoch_1')(cloud()), cloud())


def test_float16_is_near(exported, tmp_path):
    export(tmp_path, SMALL, '--precision', 'float16')
    folders = tmp_path / 'epoch_1', exported[0]
    small, large = ((folder / DENSE).stat().st_size for folder in folders)
    assert small < 0.6 * large
    half, single = map(Detector, folders)
    canvas = half.encode(cloud())
    maps = half.infer(canvas)
    for name, wanted in single.infer(canvas).items():
        assert maps[name].dtype == np.float32
        np.testing.assert_allclose(
            maps[name], wanted, rtol=0, atol=0.02 * np.abs(wanted).max())


def test_a_frame_without_points_in_range_has_no_boxes(exported):
    found = Detector(exported[0])(cloud() + 500)
    assert [len(value) for value in found] == [0, 0, 0]
    assert found.boxes.shape[1] == 9


def test_columns_of_a_file(exported):
    detector = Detector(exported[0])
    row = np.arange(5, dtype=np.float32)[None]
    # Of 5 columns the intensity is not used, and the time is 0.
    np.testing.assert_array_equal(detector.adapt(row), [[0, 1, 2, 0]])
    np.testing.assert_array_equal(detector.adapt(row[:, :3]), [[0, 1, 2, 0]])
    with pytest.raises(UserError, match='at least 3 values'):
        detector.adapt(row[:, :2])


@pytest.mark.parametrize('points, words', [
    (np.zeros((3, 5)), r'the shape \(N, 4\).* has the shape \(3, 5\)'),
    (np.zeros(4), r'\(4,\)'), (np.zeros((0, 4)), 'the cloud is empty'),
    ([[0, 0, 0, 0], [1, np.nan, 0, 0]], '1 of 2 are not, first row 1')])
def test_bad_points(exported, points, words):
    with pytest.raises(UserError, match=words):
        Detector(exported[0])(points)


def edit(key, value=None):
    """Return a damage: another value of a dotted key, or none at all."""

    def damage(folder):
        path = folder / DESCRIPTION
        about = part = json.loads(path.read_text())
        *parents, last = key.split('/')
        for name in parents:
            part = part[name]
        del part[last]
        if value is not None:
            part[last] = value
        path.write_text(json.dumps(about))

    return damage


def damage_model(folder):
    """A file that is no model, with its own checksum."""
    (folder / DENSE).write_bytes(b'x')
    edit(f'files/{DENSE}', checksum(folder / DENSE))(folder)


@pytest.mark.parametrize('damage, words', [
    (lambda f: (f / DESCRIPTION).unlink(), 'There is no .*deploy.json'),
    (lambda f: (f / DESCRIPTION).write_text('{"format"'), 'is damaged'),
    (lambda f: (f / DESCRIPTION).write_text('[]'), 'is damaged'),
    (edit('files'), 'is damaged'),
    (edit('format', 9), 'has the format 9, this sigplug reads 1'),
    (lambda f: (f / ENCODER).unlink(), f'lists {ENCODER}, which cannot'),
    (lambda f: (f / DENSE).write_bytes(b'x'), 'SHA-256'),
    (edit(f'files/{DENSE}', 'abc'), 'its SHA-256 is .*, not abc'),
    (damage_model, 'onnxruntime .* cannot run'),
    (edit('tasks', 3), 'cannot run .* not iterable'),
    (edit('points/columns', [0, 1, 2]), 'input_features'),
    (edit('voxels/max_points', '10'), 'UFuncTypeError'),
    (edit('map_size', [256, 128]), 'out of bounds'),
    (edit('coder/max_num'), 'KeyError: .max_num'),
    (edit('nms/nms_thr'), 'KeyError: .nms_thr'),
    (edit('nms', dict(nms_type='circle', min_radius=[1.0], post_max_size=9)),
     'IndexError')])
def test_damaged_folders(copy, damage, words):
    damage(copy)
    with pytest.raises(UserError, match=words) as info:
        Detector(copy)
    assert '\n' not in str(info.value)


def test_a_file_is_no_folder(exported):
    with pytest.raises(UserError, match='give the folder'):
        Detector(exported[0] / DENSE)


# -- the command ------------------------------------------------------------
HIDE = """
import runpy, sys
for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmdet3d'):
    sys.modules[name] = None
runpy.run_module('sigplug.deploy', run_name='__main__')
"""


def run(*args):
    """Run the command where neither torch nor OpenMMLab is."""
    done = subprocess.run(
        [sys.executable, '-c', HIDE, *map(str, args)], cwd=REPOSITORY,
        capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize('options', [[], ['--merged']])
def test_command(exported, tmp_path, options):
    points = cloud()
    np.save(tmp_path / 'a.npy', points)
    picture = tmp_path / 'a.png'
    code, printed, error = run(
        exported[0], tmp_path / 'a.npy', '--score-thr', 0.6, '--picture',
        picture, *options)
    assert code == 0, error
    # Of a single sweep the ages are 0.
    if not options:
        points[:, 3] = 0
    found = Detector(exported[0])(points)
    good = found.scores >= 0.6
    lines = printed.splitlines()[1:1 + good.sum()]
    assert len(lines) > 3
    for line, box, score in zip(lines, found.boxes[good], found.scores[good]):
        values = [float(value) for value in line.split()[1:]]
        np.testing.assert_allclose(values, [score, *box], atol=6e-3)
    assert re.search(rf'(?m)^{good.sum()} boxes in 6000 points', printed)
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_command_with_bad_input(exported, tmp_path):
    code, printed, error = run(exported[0], tmp_path / 'missing.bin')
    assert code == 2 and not printed
    assert error.startswith('error: Cannot read the point cloud')
    assert error.count('\n') == 1
