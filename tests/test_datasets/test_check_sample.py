"""Which samples are bad, and what becomes of them."""
import copy
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICKSTART, replace
from mmdet3d.registry import DATASETS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from sigplug.datasets.check_sample import BadSampleError, CheckSample

POINTS = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
BOX = [1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.3]


def with_values(rows, column, values):
    """The content of the file of points with other values."""
    points = POINTS.copy()
    points[rows, column] = values
    return points.tobytes()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'a.bin'
    path.write_bytes(POINTS.tobytes())
    return path


def sample(path, sweeps=(), box=None, label=0):
    """What a data set gives; in training with an annotated box."""
    frame, *sweeps = (dict(lidar_points=dict(lidar_path=str(path)))
                      for path in (path, *sweeps))
    annotations = {} if box is None else dict(ann_info=dict(
        gt_labels_3d=np.array([label]),
        gt_bboxes_3d=LiDARInstance3DBoxes([box])))
    return dict(frame, lidar_sweeps=sweeps, sample_idx=1, **annotations)


@pytest.mark.parametrize('content, words', [
    (None, 'cannot be read .No such file'),
    (b'', 'file of points is empty'),
    (POINTS.tobytes()[:-7], 'no whole number'),
    (POINTS[:49, :4].tobytes(), '784 bytes .* of 5 float32'),
    (with_values(slice(None), 1, math.nan), 'none of its 50 points'),
    (with_values(7, 3, math.nan), '1 of its 50 points'),
    # Their sum is NaN too.
    (with_values([3, 9], 4, [math.inf, -math.inf]), '2 of its 50 points'),
])
def test_file_of_points_is_named(path, content, words):
    check = CheckSample(load_dim=5)
    good = sample(path)
    assert check(good) is good
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(BadSampleError, match=words) as error:
        check(good)
    assert f"Bad data in '{path}' (sample 1)" in str(error.value)
    assert "on_bad='skip'" in str(error.value)


def test_missed_returns_are_no_fault(path):
    """Without coordinates, whatever else they have."""
    path.write_bytes(with_values(slice(9), [0, 3], math.nan))
    assert CheckSample(load_dim=5)(sample(path)) is not None


def test_what_has_no_file_passes():
    results = dict(points=np.zeros((3, 4)))
    assert CheckSample(load_dim=4)(results) is results


def test_sweeps_that_may_be_drawn_are_checked(path):
    """In training the loader takes any, elsewhere the nearest."""
    sweeps = [path, 'gone.bin']
    check = CheckSample(load_dim=5, sweeps_num=1)
    assert check(sample(path, sweeps)) is not None
    assert CheckSample(load_dim=5)(sample(path, sweeps, BOX)) is not None
    with pytest.raises(BadSampleError, match='gone.bin.*cannot be read'):
        check(sample(path, sweeps, BOX))


@pytest.mark.parametrize('place, value', [
    (0, math.nan), (6, math.inf), (3, 0.0), (4, -1.5)])
def test_box_is_named(path, place, value):
    box = BOX.copy()
    box[place] = value
    check = CheckSample(load_dim=5)
    assert check(sample(path, box=BOX)) is not None
    with pytest.raises(BadSampleError, match='1 of its 1 annotated boxes'):
        check(sample(path, box=box))
    # One of a class that is not trained.
    assert check(sample(path, box=box, label=-1)) is not None


def test_bad_argument():
    with pytest.raises(ValueError, match="on_bad must be .* got 'ignore'"):
        CheckSample(load_dim=5, on_bad='ignore')


# -- on_bad='skip' ----------------------------------------------------------
def build(root, split):
    """A split of the quickstart that leaves bad samples out."""
    cfg = Config.fromfile(QUICKSTART)
    init_default_scope(cfg.default_scope)
    dataset = copy.deepcopy(cfg[f'{split}_dataloader'].dataset)
    dataset.data_root = f'{root}/'
    assert dataset.pipeline[0].type == 'sigplug.CheckSample'
    dataset.pipeline[0].update(on_bad='skip', max_bad=0.9)
    return DATASETS.build(dataset)


def cut_off(dataset, index):
    """Cut off the file of a sample; return its name."""
    path = Path(dataset.get_data_info(index)['lidar_points']['lidar_path'])
    replace(path, path.read_bytes()[:-7])
    return path.name


def test_training_takes_another_sample(damageable, said):
    dataset = build(damageable, 'train')
    names = [cut_off(dataset, index) for index in (1, 2)]
    used = [dataset[index]['data_samples'].lidar_path
            for _ in range(5) for index in range(4)]
    assert not {Path(path).name for path in used} & {*names}
    assert all(text.startswith('WARNING: Bad data, left out: ')
               for text in said)
    for name in names:
        assert any(name in text for text in said)


def test_evaluation_keeps_the_sample_without_points(damageable, said):
    dataset = build(damageable, 'val')
    expected = dataset[1]
    name = cut_off(dataset, 1)
    found = dataset[1]
    assert found['inputs']['points'].shape == (
        0, expected['inputs']['points'].shape[1])
    for key in ('sample_idx', 'lidar_path'):
        assert (found['data_samples'].metainfo[key]
                == expected['data_samples'].metainfo[key])
    text, = said
    assert name in text and 'evaluated without points' in text


def test_too_many_bad_samples_end_the_training(path):
    """A tenth of (at least) 20 is allowed: 2 of 9 and not 3 of 10."""
    check = CheckSample(load_dim=5, on_bad='skip', max_bad=0.1)
    for place in ['bad.bin'] * 2 + [path] * 7:
        check(sample(place))
    with pytest.raises(BadSampleError, match='3 of 10 .*max_bad=0.1') as error:
        check(sample('last.bin'))
    assert 'last.bin' in str(error.value)


class Checked:
    """A good sample and a bad one."""

    def __init__(self, path):
        self.check = CheckSample(load_dim=5, on_bad='skip')
        self.samples = [sample(path), sample('bad.bin')]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.check(copy.deepcopy(self.samples[index]))


def test_workers_share_the_count(path):
    """One in each of the 3 epochs, and in another process."""
    loader = DataLoader(Checked(path), num_workers=2, collate_fn=list)
    list(loader), list(loader)
    with pytest.raises(BadSampleError, match='3 of [56] samples') as error:
        list(loader)
    # Not the traceback of the worker.
    assert str(error.value).startswith('3 of ')
