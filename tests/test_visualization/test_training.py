import json

import numpy as np
import pytest

from sigplug.visualization import draw_training, read_training_log

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


def write_run(work_dir, stamp, records, name='scalars.json'):
    folder = work_dir / stamp / 'vis_data'
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, 'w') as file:
        for record in records:
            file.write(json.dumps(record) + '\n')
    return folder / name


def steps(records):
    return [record['step'] for record in records]


def test_validations_stand_at_iterations(tmp_path):
    write_run(tmp_path, '20260101_000000', [
        train_record(20, 9.0),
        train_record(40, 8.0),
        val_record(1, 0.1),
        train_record(70, 7.0),
        val_record(2, 0.2)
    ])
    log = read_training_log(tmp_path)
    assert steps(log.train) == [20, 40, 70]
    assert steps(log.val) == [40, 70]
    assert log.val[1][f'{PREFIX}mAP'] == 0.2
    assert log.resumed == []


def test_resumed_runs_are_joined(tmp_path):
    # Killed at iteration 130 of the third epoch; resumed after the second.
    write_run(tmp_path, '20260101_000000', [
        train_record(20, 9.0),
        train_record(40, 8.0),
        val_record(1, 0.1),
        train_record(70, 7.0),
        train_record(90, 6.0),
        val_record(2, 0.2),
        train_record(120, 66.0),
        train_record(130, 65.0)
    ])
    write_run(tmp_path, '20260101_010000', [
        train_record(120, 5.0),
        train_record(140, 4.0),
        val_record(3, 0.3)
    ])
    # A test in the same work dir.
    (tmp_path / '20260101_020000' / 'vis_data').mkdir(parents=True)
    write_run(tmp_path, '20260101_030000', [{'loss': 1.0, 'step': 0}])
    log = read_training_log(tmp_path)
    assert steps(log.train) == [20, 40, 70, 90, 120, 140]
    assert [r['loss'] for r in log.train] == [9, 8, 7, 6, 5, 4]
    assert steps(log.val) == [40, 90, 140]
    assert log.resumed == [120]


def test_a_new_start_stands_alone(tmp_path):
    write_run(tmp_path, '20260101_000000',
              [train_record(20, 9.0), val_record(1, 0.1)])
    write_run(tmp_path, '20260102_000000', [train_record(20, 5.0)])
    log = read_training_log(tmp_path)
    assert [r['loss'] for r in log.train] == [5.0]
    assert log.val == [] and log.resumed == []


def test_one_run_and_its_other_file(tmp_path):
    write_run(tmp_path, '20260101_000000', [train_record(20, 9.0)],
              name='20260101_000000.json')
    for path in (tmp_path, tmp_path / '20260101_000000'):
        assert steps(read_training_log(path).train) == [20]


def test_what_mmengine_writes(tmp_path):
    from mmengine.visualization import LocalVisBackend
    backend = LocalVisBackend(str(tmp_path / '20260101_000000' / 'vis_data'))
    for record in (train_record(20, 9.0), val_record(1, 0.1)):
        record = dict(record)
        backend.add_scalars(record, step=record.pop('step'),
                            file_path='20260101_000000.json')
    log = read_training_log(tmp_path)
    assert steps(log.train) == steps(log.val) == [20]


def test_half_a_last_line_is_passed_over(tmp_path):
    path = write_run(tmp_path, '20260101_000000', [train_record(20, 9.0)])
    path.write_text(path.read_text() + '{"loss": 8.0, "it')
    assert steps(read_training_log(tmp_path).train) == [20]


def test_a_damaged_line_is_named(tmp_path):
    path = write_run(tmp_path, '20260101_000000', [train_record(20, 9.0)])
    path.write_text('{"loss": 8.0, "it\n' + path.read_text())
    with pytest.raises(ValueError, match=r'scalars\.json, line 1 is damaged'):
        read_training_log(tmp_path)


def test_no_log(tmp_path):
    with pytest.raises(FileNotFoundError, match='No training log in .*time'):
        read_training_log(tmp_path)


@pytest.fixture
def log(tmp_path):
    losses = [1000.0, 100.0, 10.0, 8.0]
    records = []
    for epoch, loss in enumerate(losses, 1):
        parts = {
            'task0.loss_heatmap': loss / 2,
            'task1.loss_heatmap': loss / 4,
            'task0.loss_bbox': loss / 8,
            'task1.loss_bbox': loss / 8
        }
        records += [train_record(50 * epoch, loss, **parts),
                    val_record(epoch, 0.1 * epoch)]
    write_run(tmp_path, '20260101_000000', records)
    return read_training_log(tmp_path)


def lines(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_losses_of_the_tasks_are_added_up(log):
    curves = lines(draw_training(log).axes[0])
    assert list(curves) == ['total', 'loss_heatmap', 'loss_bbox']
    x = [50, 100, 150, 200]
    total = np.array([1000.0, 100, 10, 8])
    for name, share in (('total', 1), ('loss_heatmap', .75),
                        ('loss_bbox', .25)):
        np.testing.assert_allclose(curves[name], np.stack([x, total * share],
                                                          axis=1))


@pytest.mark.parametrize(('last', 'scale'), [(0.5, 'log'), (900., 'linear'),
                                             (-1.0, 'linear')])
def test_scale(log, last, scale):
    log.train = [train_record(50, 1000.0), train_record(100, last)]
    assert draw_training(log).axes[0].get_yscale() == scale


def test_metrics_over_time(log):
    ax = draw_training(log).axes[1]
    curves = lines(ax)
    assert list(curves) == ['mAP', 'NDS']
    np.testing.assert_allclose(
        curves['NDS'], [[50, .2], [100, .3], [150, .4], [200, .5]])


def test_last_validation(log):
    ax = draw_training(log).axes[2]
    names = [text.get_text() for text in ax.get_yticklabels()]
    values = [bar.get_width() for bar in ax.patches]
    assert names == ['mAP', 'NDS', 'AP car', 'AP bus']
    np.testing.assert_allclose(values, [0.4, 0.5, 0.5, 0.2])
    assert '200' in ax.get_title(loc='left')


def test_one_validation_has_no_curve(log):
    log.val = log.val[-1:]
    assert len(draw_training(log).axes) == 2


def test_no_validation(log):
    log.val = []
    assert len(draw_training(log).axes) == 1


def test_other_metrics(log):
    ax = draw_training(log, metrics=['mATE']).axes[1]
    assert list(lines(ax)) == ['mATE']
    with pytest.raises(ValueError, match=r"\['IoU'\] were not logged.*mATE"):
        draw_training(log, metrics=['IoU', 'mAP'])


def test_resumption_is_marked(log):
    log.resumed = [120]
    assert 'resumed' in lines(draw_training(log).axes[0])


def test_no_loss(log):
    log.train = [{'iter': 1, 'step': 1, 'lr': 0.1}]
    with pytest.raises(ValueError, match='no loss.*iter.*lr'):
        draw_training(log)
