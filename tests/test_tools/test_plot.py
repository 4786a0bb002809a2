"""The curves of a training, and the other pictures of the tools."""
import json

import matplotlib.image
import numpy as np
import pytest
from PIL import Image
from plots.ablation import draw_ablation
from plots.speedups import draw_speedups
from plots.stages import draw_stages
from plots.training import draw_training, read_training_log

from sigplug.errors import UserError

PREFIX = 'NuScenes metric/pred_instances_3d_NuScenes/'


def train_record(step, loss, **parts):
    return dict(
        lr=1e-3, data_time=0.1, grad_norm=1.0, loss=loss, **parts, time=0.5,
        epoch=1 + (step - 1) // 50, iter=step, step=step)


def val_record(epoch, value):
    return {
        f'{PREFIX}car_AP_dist_0.5': value, f'{PREFIX}car_AP_dist_1.0':
        value + 0.2, f'{PREFIX}bus_AP_dist_0.5': value / 2,
        f'{PREFIX}car_trans_err': 0.3, f'{PREFIX}mATE': 0.4,
        f'{PREFIX}mAP': value, f'{PREFIX}NDS': value + 0.1, 'data_time': 0.01,
        'time': 0.2, 'step': epoch
    }


def write_run(work_dir, stamp, records):
    path = work_dir / stamp / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return path


def steps(records):
    return [record['step'] for record in records]


def test_resumed_runs_are_joined(tmp_path):
    # Killed at iteration 130 of the third epoch; resumed after the second.
    path = write_run(tmp_path, '20260101_000000', [
        train_record(20, 9.0), train_record(40, 8.0), val_record(1, 0.1),
        train_record(70, 7.0), train_record(90, 6.0), val_record(2, 0.2),
        train_record(120, 66.0), train_record(130, 65.0)])
    path.write_text(path.read_text() + '{"loss": 8.0, "it')
    write_run(tmp_path, '20260101_010000', [
        train_record(120, 5.0), train_record(140, 4.0), val_record(3, 0.3)])
    # A test in the same work dir.
    (tmp_path / '20260101_020000' / 'vis_data').mkdir(parents=True)
    write_run(tmp_path, '20260101_030000', [{'loss': 1.0, 'step': 0}])
    train, val = read_training_log(tmp_path)
    assert steps(train) == [20, 40, 70, 90, 120, 140]
    assert [r['loss'] for r in train] == [9, 8, 7, 6, 5, 4]
    assert steps(val) == [40, 90, 140]
    # A new start from the beginning stands alone.
    write_run(tmp_path, '20260102_000000', [train_record(20, 5.0)])
    train, val = read_training_log(tmp_path)
    assert [r['loss'] for r in train] == [5.0] and val == []


def test_what_mmengine_writes(tmp_path):
    from mmengine.visualization import LocalVisBackend
    backend = LocalVisBackend(str(tmp_path / '20260101_000000' / 'vis_data'))
    for record in (train_record(20, 9.0), val_record(1, 0.1)):
        record = dict(record)
        backend.add_scalars(record, step=record.pop('step'),
                            file_path='20260101_000000.json')
    assert list(map(steps, read_training_log(tmp_path))) == [[20], [20]]


@pytest.fixture
def log():
    """Records of a training, and of a validation after each epoch."""
    train = [
        train_record(50 * epoch, loss, **{
            'task0.loss_heatmap': loss / 2, 'task1.loss_heatmap': loss / 4,
            'task0.loss_bbox': loss / 8, 'task1.loss_bbox': loss / 8})
        for epoch, loss in enumerate([1000.0, 100.0, 10.0, 8.0], 1)]
    val = [dict(val_record(epoch, 0.1 * epoch), step=50 * epoch)
           for epoch in range(1, 5)]
    return train, val


def lines(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_losses_of_the_tasks_are_added_up(log):
    curves = lines(draw_training(*log, None, '').axes[0])
    assert list(curves) == ['total', 'loss_heatmap', 'loss_bbox']
    x = [50, 100, 150, 200]
    total = np.array([1000.0, 100, 10, 8])
    for name, share in (('total', 1), ('loss_heatmap', .75),
                        ('loss_bbox', .25)):
        np.testing.assert_allclose(curves[name], np.stack([x, total * share],
                                                          axis=1))


def test_validations(log):
    train, val = log
    curves = lines(draw_training(train, val, ['NDS'], '').axes[1])
    assert list(curves) == ['NDS']
    np.testing.assert_allclose(
        curves['NDS'], [[50, .2], [100, .3], [150, .4], [200, .5]])
    assert len(draw_training(train, [], None, '').axes) == 1
    with pytest.raises(UserError, match='IoU'):
        draw_training(train, val, ['NDS', 'IoU'], '')


# -- The tool ----------------------------------------------------------------


def test_picture_of_a_training(tmp_path, succeed):
    write_run(tmp_path / 'quickstart', '20260101_000000', [
        train_record(20, 9.0), val_record(1, 0.1)])
    out = tmp_path / 'new' / 'curve.png'
    assert succeed('analysis_tools/plot.py', 'training',
                   tmp_path / 'quickstart', '--out', out) == f'{out}\n'
    assert matplotlib.image.imread(out).shape[:2] == (600, 1500)


# -- Speed of the operations -------------------------------------------------


def row(form, median):
    return dict(form=form, both=[median, median, median])


def test_speedups():
    results = [
        dict(case='targets', rows=[
            dict(form='stock', forward=[6.0, 6.0, 6.0]),
            dict(form='sigplug', forward=[12.0, 12.0, 12.0])]),
        dict(case='loss', rows=[
            row('stock', 8.0), row('torch.compile of stock', 4.0),
            row('sigplug', 2.0)]),
        dict(case='wrong', rows=[row('stock', 1.0), dict(form='sigplug')]),
        dict(case='failed', rows=[]),
    ]
    ax, = draw_speedups(results, 'a machine').axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [
        'loss', 'targets']
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    assert ends == pytest.approx([4.0, 0.5])
    assert ax.lines[0].get_xydata().tolist() == [[2.0, 0.0]]


# -- A moving picture --------------------------------------------------------


def test_movie(tmp_path, succeed):
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    for name, color in zip('bac', colors):
        image = Image.new('RGB', (40, 30), 'white')
        image.paste(color, (5, 5, 15, 15))
        image.save(tmp_path / f'{name}.png')
    out = tmp_path / 'new' / 'movie.gif'
    succeed('analysis_tools/plot.py', 'movie', tmp_path, '--out', out,
            '--seconds', '0.5')
    movie = Image.open(out)
    assert movie.size == (40, 30) and movie.n_frames == 3
    found = []
    for frame in range(3):
        movie.seek(frame)
        assert movie.info['duration'] == 500
        found.append(movie.convert('RGB').getpixel((10, 10)))
    assert np.abs(np.subtract(
        found, [colors[1], colors[0], colors[2]])).max() < 10


# -- The comparison of configs -----------------------------------------------

NAMES = ['stock', 'ours']
VALUES = {
    'mAP': np.array([[0.3, 0.4], [0.5, 0.8]]),
    'NDS': np.array([[0.4, 0.6], [0.7, 0.8]]),
    'AP/car': np.array([[0.5, 0.7], [0.9, 0.9]]),
    'AP/traffic_cone': np.array([[0.5, 0.5], [0.2, 0.2]]),
}


def test_ablation():
    first, second, classes = draw_ablation(NAMES, VALUES).axes
    assert [tick.get_text() for tick in first.get_yticklabels()] == NAMES
    means = [line.get_xdata()[0] for line in first.lines
             if line.get_marker() == 'None']
    assert means == pytest.approx([0.35, 0.65])
    # One standard deviation of the sample about the baseline's mean.
    band, = second.patches
    low, high = band.get_x(), band.get_x() + band.get_width()
    assert (low, high) == pytest.approx((0.5 - 0.02**0.5, 0.5 + 0.02**0.5))
    assert [text.get_text() for text in classes.texts] == [
        '0.60', '0.50', '+0.30', '-0.30']


def test_curves_of_the_numerics(tmp_path, succeed):
    for path in succeed('analysis_tools/plot.py', 'curves', '--out-dir',
                        tmp_path).split():
        assert matplotlib.image.imread(path).std() > 0.05
    assert len(list(tmp_path.iterdir())) == 3


def test_stages(tmp_path, succeed):
    groups = [dict(case='a model', rows=[
        dict(config='stock', stages=dict(
            encoder=0.15, neck=0.05, loss=0.1, total=0.3)),
        dict(config='failed', error='why'),
        dict(config='ours', stages=dict(neck=0.2, total=0.2))])]
    ax, = draw_stages(groups).axes
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches[:4]]
    assert ends == pytest.approx([200, 200, 300, 200])
    assert [text.get_text() for text in ax.texts] == [' 300', ' 200']
    groups.append(dict(case='another', rows=[]))
    results = tmp_path / 'cuda.json'
    results.write_text(json.dumps(dict(train=dict(results=groups))))
    out = tmp_path / 'stages.png'
    succeed('analysis_tools/plot.py', 'stages', results, '--filter', 'model',
            '--out', out)
    assert out.is_file()
