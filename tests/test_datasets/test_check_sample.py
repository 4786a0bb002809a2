"""Each fault is done to a copy of the synthetic data set."""
import copy
import logging
import math
import os
import pickle

import numpy as np
import pytest
import torch
from conftest import QUICKSTART, replace
from mmdet3d.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import TRANSFORMS, init_default_scope
from torch.utils.data import DataLoader

from sigplug.datasets import check_sample
from sigplug.datasets.check_sample import BadSampleError, CheckSample


def build(root, split='train', **options):
    """A split of the quickstart; options are those of its CheckSample."""
    cfg = Config.fromfile(QUICKSTART)
    init_default_scope(cfg.default_scope)
    dataset = copy.deepcopy(cfg[f'{split}_dataloader'].dataset)
    dataset.data_root = f'{root}/'
    assert dataset.pipeline[0].type == 'sigplug.CheckSample'
    dataset.pipeline[0].update(options)
    return DATASETS.build(dataset)


def key_frame(dataset, index):
    return dataset.get_data_info(index)['lidar_points']['lidar_path']


def with_points(path, change):
    points = np.fromfile(path, dtype=np.float32).reshape(-1, 5)
    change(points)
    return points.tobytes()


def set_values(rows, columns, value):

    def change(points):
        points[rows, columns] = value

    return change


EVERYWHERE = slice(None)
FAULTS = {
    'missing': (None, 'cannot be read .No such file'),
    'empty': (lambda path: b'', 'file of points is empty'),
    'cut off': (lambda path: path.read_bytes()[:-7], 'no whole number'),
    'a text': (lambda path: b'<html>404</html>', 'no whole number'),
    'four values a point': (
        lambda path: np.zeros((101, 4), np.float32).tobytes(),
        '1616 bytes .* of 5 float32'),
    'no finite point': (
        lambda path: with_points(path, set_values(EVERYWHERE, 1, math.nan)),
        'none of its [0-9]+ points'),
    'NaN intensity': (
        lambda path: with_points(path, set_values(7, 3, math.nan)),
        '1 of its [0-9]+ points'),
    'infinite intensity': (
        lambda path: with_points(path, set_values([3, 9], 3, -math.inf)),
        '2 of its [0-9]+ points'),
    # Their sum is NaN too.
    'infinities of both signs': (
        lambda path: with_points(path, set_values(
            [3, 9], 4, [math.inf, -math.inf])), '2 of its [0-9]+ points'),
}


def damage(path, fault):
    content = FAULTS[fault][0]
    if content is None:
        path.unlink()
    else:
        replace(path, content(path))


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize('fault', FAULTS)
def test_file_of_points_is_named(damageable, fault, split):
    dataset = build(damageable, split)
    path = key_frame(dataset, 1)
    dataset[1]
    damage(damageable / 'samples/LIDAR_TOP' / os.path.basename(path), fault)
    with pytest.raises(BadSampleError, match=FAULTS[fault][1]) as error:
        dataset[1]
    assert f"Bad data in '{path}' (sample 1)" in str(error.value)
    assert "on_bad='skip'" in str(error.value)


def test_sweep_is_named(damageable):
    dataset = build(damageable)
    sweep = dataset.get_data_info(1)['lidar_sweeps'][0]['lidar_points']
    damage(damageable / 'sweeps/LIDAR_TOP' / os.path.basename(
        sweep['lidar_path']), 'cut off')
    with pytest.raises(BadSampleError, match='sweeps/LIDAR_TOP.*no whole'):
        dataset[1]


@pytest.mark.parametrize('split, is_read', [('train', True), ('val', False)])
def test_sweeps_that_may_be_drawn_are_checked(damageable, split, is_read):
    """In training the loader takes any, elsewhere the nearest."""

    def change(samples):
        # More than sweeps_num, the last one without its file.
        sweeps = samples[1]['lidar_sweeps']
        sweeps += [copy.deepcopy(sweeps[0])]
        sweeps[-1]['lidar_points']['lidar_path'] = 'gone.bin'

    change_infos(damageable, change, split)
    dataset = build(damageable, split)
    check = CheckSample(load_dim=5, sweeps_num=1)
    info = dataset.get_data_info(1)
    if is_read:
        with pytest.raises(BadSampleError, match='gone.bin.*cannot be read'):
            check(info)
    else:
        assert check(info) is not None
    assert CheckSample(load_dim=5)(info) is not None


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_missed_returns_are_no_fault(damageable, value):
    """Without coordinates, whatever else they have; the others stay."""
    dataset = build(damageable, 'val')
    path = damageable / 'samples/LIDAR_TOP' / os.path.basename(
        key_frame(dataset, 1))
    expected = dataset[1]['inputs']['points']
    lost = np.zeros((50, 5), np.float32)
    lost[:, 0] = lost[:, 3] = value
    replace(path, path.read_bytes() + lost.tobytes())
    found = dataset[1]['inputs']['points']
    assert found.isfinite().all() and torch.equal(found, expected)


def change_infos(root, change, split='train'):
    path = root / f'nuscenes_infos_{split}.pkl'
    infos = pickle.loads(path.read_bytes())
    change(infos['data_list'])
    path.write_bytes(pickle.dumps(infos))


@pytest.mark.parametrize('place, value', [
    (0, math.nan), (6, math.inf), (3, math.nan), (3, 0.0), (5, 0.0),
    (4, -1.5)])
def test_box_is_named(damageable, place, value):

    def change(samples):
        box = next(box for box in samples[1]['instances']
                   if box['bbox_3d_isvalid'])
        box['bbox_3d'][place] = value

    change_infos(damageable, change)
    dataset = build(damageable)
    with pytest.raises(BadSampleError, match='1 of its .* boxes'):
        dataset[1]
    # Evaluation is a matter of the devkit, which reads its own tables.
    change_infos(damageable, change, 'val')
    build(damageable, 'val')[1]


def test_boxes_of_other_classes_do_not_matter(damageable):

    def change(samples):
        samples[1]['instances'][0].update(
            bbox_3d=[math.nan] * 7, bbox_label_3d=-1)

    change_infos(damageable, change)
    build(damageable)[1]


def test_unknown_velocity_is_no_fault(damageable):
    """nuScenes has it, and mmdet3d takes it for 0."""
    change_infos(damageable, lambda samples: samples[1]['instances'][0].
                 update(velocity=[math.nan, math.nan]))
    boxes = build(damageable)[1]['data_samples'].gt_instances_3d.bboxes_3d
    assert boxes.tensor.isfinite().all()


@pytest.mark.parametrize('change, words', [
    (lambda sample: sample['lidar_sweeps'][0]['lidar_points'].pop(
        'lidar2sensor'), 'lidar2sensor'),
    (lambda sample: sample['lidar_sweeps'][0].update(timestamp='now'),
     'timestamp'),
    (lambda sample: sample.pop('timestamp'), 'timestamp'),
])
def test_entry_of_a_sweep_is_named(damageable, change, words):
    change_infos(damageable, lambda samples: change(samples[1]))
    with pytest.raises(BadSampleError, match=f'gives no .*{words}'):
        build(damageable)[1]


@pytest.mark.parametrize('split', ['train', 'val'])
def test_boxes_outside_the_range_or_none_at_all(damageable, split):
    """Correct results: samples without an object."""

    def change(samples):
        samples[0]['instances'] = []
        for box in samples[1]['instances']:
            box['bbox_3d'][0] += 1000

    change_infos(damageable, change, split)
    dataset = build(damageable, split)
    for index in (0, 1):
        sample = dataset[index]
        assert len(sample['inputs']['points']) > 1000
        # In training another sample takes the place.
        boxes = sample['data_samples'].gt_instances_3d
        assert (len(boxes) > 0) == (split == 'train')


# -- on_bad='skip' ----------------------------------------------------------
@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(
        check_sample, 'print_log',
        lambda text, logger, level: lines.append((level, text)))
    return lines


def test_training_takes_another_sample(damageable, warnings):
    dataset = build(damageable, on_bad='skip', max_bad=0.9)
    names = [os.path.basename(key_frame(dataset, i)) for i in (1, 2)]
    damage(damageable / 'samples/LIDAR_TOP' / names[0], 'cut off')
    damage(damageable / 'samples/LIDAR_TOP' / names[1], 'NaN intensity')
    for _ in range(3):
        for index in range(len(dataset)):
            sample = dataset[index]
            assert sample['inputs']['points'].isfinite().all()
            used = os.path.basename(sample['data_samples'].lidar_path)
            assert used not in names
    # One warning for each of the two.
    assert [level for level, _ in warnings] == [logging.WARNING] * 2
    assert names[0] in warnings[0][1] and 'no whole number' in warnings[0][1]
    assert names[1] in warnings[1][1] and 'left out' in warnings[1][1]


def test_evaluation_keeps_the_sample_without_points(damageable, warnings):
    dataset = build(damageable, 'val', on_bad='skip')
    expected = dataset[1]
    name = os.path.basename(key_frame(dataset, 1))
    damage(damageable / 'samples/LIDAR_TOP' / name, 'cut off')
    sample = dataset[1]
    assert sample['inputs']['points'].shape == (
        0, expected['inputs']['points'].shape[1])
    for key in ('sample_idx', 'lidar_path'):
        assert (sample['data_samples'].metainfo[key]
                == expected['data_samples'].metainfo[key])
    (_, text), = warnings
    assert name in text and 'evaluated without points' in text


def test_too_many_bad_samples_end_the_training(damageable, warnings):
    """3 of 10 where a tenth of (at least) 20 is allowed."""
    dataset = build(damageable, 'val', on_bad='skip', max_bad=0.1)
    for index in range(3):
        damage(damageable / 'samples/LIDAR_TOP' / os.path.basename(
            key_frame(dataset, index)), 'empty')
    dataset[0], dataset[1]
    for _ in range(7):
        dataset[4]
    with pytest.raises(BadSampleError, match='3 of 10 .*max_bad=0.1') as error:
        dataset[2]
    assert os.path.basename(key_frame(dataset, 2)) in str(error.value)
    assert 'is empty' in str(error.value)


def test_share_is_counted_over_all_samples(damageable, warnings):
    dataset = build(damageable, 'val', on_bad='skip', max_bad=0.1)
    damage(damageable / 'samples/LIDAR_TOP' / os.path.basename(
        key_frame(dataset, 0)), 'empty')
    for _ in range(4):
        for _ in range(9):
            dataset[3]
        dataset[0]  # 4 of 40


@pytest.mark.parametrize('persistent', [True, False])
def test_workers_share_the_count(damageable, persistent):
    """One in each of the 3 epochs, and in another process."""
    dataset = build(damageable, 'val', on_bad='skip', max_bad=0.1)
    damage(damageable / 'samples/LIDAR_TOP' / os.path.basename(
        key_frame(dataset, 0)), 'empty')
    loader = DataLoader(
        torch.utils.data.Subset(dataset, [0, 1]), num_workers=2,
        persistent_workers=persistent, collate_fn=pseudo_collate)
    list(loader), list(loader)
    with pytest.raises(BadSampleError, match='3 of [56] samples') as error:
        list(loader)
    # Not the traceback of the worker.
    assert str(error.value).startswith('3 of ')


def test_what_has_no_file_passes():
    results = dict(points=np.zeros((3, 4)))
    assert CheckSample(load_dim=4)(results) is results


@pytest.mark.parametrize('options, words', [
    (dict(load_dim=2), 'load_dim must be at least 3, but got 2'),
    (dict(on_bad='ignore'), "on_bad must be .* got 'ignore'"),
    (dict(max_bad=2), r'max_bad must lie in \[0, 1\], but got 2'),
])
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        TRANSFORMS.build(
            dict(dict(type='sigplug.CheckSample', load_dim=5), **options))
