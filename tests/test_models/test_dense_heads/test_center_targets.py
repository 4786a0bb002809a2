"""Targets of a batch against mmdet3d's loop over boxes."""
import copy
import math

import pytest
import torch

from sigplug.models.dense_heads import CenterHead

from .center_heads import (
    BATCHES,
    NoWaiting,
    both,
    box,
    compare_targets,
    config,
    instances,
    random_instances,
    to,
)


@pytest.fixture(scope='module')
def heads():
    return both()


def compute_targets(heads, batch):
    return [head.get_targets(copy.deepcopy(batch)) for head in heads]


@pytest.mark.parametrize('name', BATCHES)
def test_targets_equal_the_stock_loops(heads, name):
    expected, found = compute_targets(heads, BATCHES[name])
    compare_targets(found, expected)
    is_drawn = any(mask.any() for mask in found[3])
    assert is_drawn != (name in ('all empty', 'outside'))


def test_enormous_boxes_are_flat():
    """Their radii exceed what an int32 holds."""
    boxes = [box(1, 1, 1e12, 1e12), box(1, 1, math.inf, 5), box(1, 1)]
    heatmaps, _, _, masks = CenterHead(**config()).get_targets(
        [instances(boxes, [0, 3, 8])])
    assert heatmaps[0].min() > 0.99
    assert [mask.sum().item() for mask in masks] == [1, 0, 1, 0, 0, 1]


def test_targets_leave_the_ground_truth_alone(heads):
    batch = copy.deepcopy(BATCHES['random'])
    heads[1].get_targets(batch)
    for gt, before in zip(batch, BATCHES['random']):
        assert gt.bboxes_3d.tensor.equal(before.bboxes_3d.tensor)
        assert gt.labels_3d.equal(before.labels_3d)


def test_boxes_without_velocity_into_a_head_with_velocity(heads):
    with pytest.raises(ValueError) as info:
        heads[1].get_targets([random_instances(3, size=7)])
    for word in ('9', '7', 'vel', 'common_heads'):
        assert word in str(info.value)


# --- nothing waits for a GPU ----------------------------------------------


# On the meta device there are no values to read, and a constant that stayed
# on the CPU does not fit.
@pytest.mark.parametrize('name', ['random', 'all empty', 'too many'])
def test_targets_do_not_wait(no_peaks, name):
    head = CenterHead(**config()).to('meta')
    batch = to(BATCHES[name], 'meta')
    with NoWaiting():
        targets = head.get_targets(batch)
    assert all(x.is_meta for part in targets for x in part)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('name', BATCHES)
def test_targets_equal_the_stock_loops_on_cuda(name):
    if name == 'outside':
        pytest.skip('a NaN of the stock loop is cell 0 there')
    expected, found = compute_targets(
        [head.cuda() for head in both()], to(BATCHES[name], 'cuda'))
    compare_targets(found, expected)
