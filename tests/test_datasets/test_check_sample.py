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


def with_values(rows, column, values):
    """The content of a file of points with other values."""

    def change(path):
        points = np.fromfile(path, dtype=np.float32).reshape(-1, 5)
        points[rows, column] = values
        return points.tobytes()

    return change


FAULTS = {
    'missing': (None, 'cannot be read .No such file'),
    'empty': (lambda path: b'', 'file of points is empty'),
    'cut off': (lambda path: path.read_bytes()[:-7], 'no whole number'),
    'four values a point': (
        lambda path: np.zeros((101, 4), np.float32).tobytes(),
        '1616 bytes .* of 5 float32'),
    'no finite point': (
        with_values(slice(None), 1, math.nan), 'none of its [0-9]+ points'),
    'NaN intensity': (
        with_values(7, 3, math.nan), '1 of its [0-9]+ points'),
    # Their sum is NaN too.
    'infinities of both signs': (
        with_values([3, 9], 4, [math.inf, -math.inf]),
        '2 of its [0-9]+ points'),
}


def damage(root, dataset, index, fault):
    """Damage the file of a sample; return its name."""
    path = root / 'samples/LIDAR_TOP' / os.path.basename(
        key_frame(dataset, index))
    content = FAULTS[fault][0]
    if content is None:
        path.unlink()
    else:
        replace(path, content(path))
    return path.name


@pytest.mark.parametrize('fault, split', [
    *((fault, 'train') for fault in FAULTS), ('cut off', 'val')])
def test_file_of_points_is_named(damageable, fault, split):
    dataset = build(damageable, split)
    dataset[1]
    damage(damageable, dataset, 1, fault)
    with pytest.raises(BadSampleError, match=FAULTS[fault][1]) as error:
        dataset[1]
    assert f"Bad data in '{key_frame(dataset, 1)}' (sample 1)" in str(
        error.value)
    assert "on_bad='skip'" in str(error.value)


def change_infos(root, change, split='train'):
    path = root / f'nuscenes_infos_{split}.pkl'
    infos = pickle.loads(path.read_bytes())
    change(infos['data_list'])
    path.write_bytes(pickle.dumps(infos))


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


def test_missed_returns_are_no_fault(damageable):
    """Without coordinates, whatever else they have; the others stay."""
    dataset = build(damageable, 'val')
    path = damageable / 'samples/LIDAR_TOP' / os.path.basename(
        key_frame(dataset, 1))
    expected = dataset[1]['inputs']['points']
    lost = np.zeros((50, 5), np.float32)
    lost[:, 0] = lost[:, 3] = math.nan
    replace(path, path.read_bytes() + lost.tobytes())
    found = dataset[1]['inputs']['points']
    assert found.isfinite().all() and torch.equal(found, expected)


@pytest.mark.parametrize('place, value', [
    (0, math.nan), (6, math.inf), (3, 0.0), (4, -1.5)])
def test_box_is_named(damageable, place, value):

    def change(samples):
        box = next(box for box in samples[1]['instances']
                   if box['bbox_3d_isvalid'])
        box['bbox_3d'][place] = value

    change_infos(damageable, change)
    with pytest.raises(BadSampleError, match='1 of its .* boxes'):
        build(damageable)[1]
    # Evaluation is a matter of the devkit, which reads its own tables.
    change_infos(damageable, change, 'val')
    build(damageable, 'val')[1]


@pytest.mark.parametrize('change', [
    # Not trained; and a velocity that nuScenes does not know.
    dict(bbox_3d=[math.nan] * 7, bbox_label_3d=-1),
    dict(velocity=[math.nan, math.nan])])
def test_box_that_does_not_matter(damageable, change):
    change_infos(damageable, lambda samples: samples[1]['instances'][0].
                 update(change))
    boxes = build(damageable)[1]['data_samples'].gt_instances_3d.bboxes_3d
    assert boxes.tensor.isfinite().all()


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
    names = [damage(damageable, dataset, 1, 'cut off'),
             damage(damageable, dataset, 2, 'NaN intensity')]
    for _ in range(3):
        for index in range(len(dataset)):
            sample = dataset[index]
            assert sample['inputs']['points'].isfinite().all()
            used = os.path.basename(sample['data_samples'].lidar_path)
            assert used not in names
    assert {level for level, _ in warnings} == {logging.WARNING}
    texts = [text for _, text in warnings]
    assert any(names[0] in text and 'no whole number' in text
               for text in texts)
    assert any(names[1] in text and 'left out' in text for text in texts)


def test_evaluation_keeps_the_sample_without_points(damageable, warnings):
    dataset = build(damageable, 'val', on_bad='skip')
    expected = dataset[1]
    name = damage(damageable, dataset, 1, 'cut off')
    sample = dataset[1]
    assert sample['inputs']['points'].shape == (
        0, expected['inputs']['points'].shape[1])
    for key in ('sample_idx', 'lidar_path'):
        assert (sample['data_samples'].metainfo[key]
                == expected['data_samples'].metainfo[key])
    (_, text), = warnings
    assert name in text and 'evaluated without points' in text


def test_too_many_bad_samples_end_the_training(damageable, warnings):
    """A tenth of (at least) 20 is allowed: 2 of 9 and not 3 of 10."""
    dataset = build(damageable, 'val', on_bad='skip', max_bad=0.1)
    names = [damage(damageable, dataset, i, 'empty') for i in range(3)]
    for index in [0, 1] + [4] * 7:
        dataset[index]
    with pytest.raises(BadSampleError, match='3 of 10 .*max_bad=0.1') as error:
        dataset[2]
    assert f'{names[2]}' in str(error.value)


def test_workers_share_the_count(damageable):
    """One in each of the 3 epochs, and in another process."""
    dataset = build(damageable, 'val', on_bad='skip', max_bad=0.1)
    damage(damageable, dataset, 0, 'empty')
    loader = DataLoader(
        torch.utils.data.Subset(dataset, [0, 1]), num_workers=2,
        collate_fn=pseudo_collate)
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
