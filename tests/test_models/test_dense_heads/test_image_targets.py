"""Targets of heads on images against mmdet's loops over boxes."""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .stock_twins import MONO, MONO_METAS, build, instances

NAMES = ('CenterNetHead', 'CornerHead')
# Neither square nor of a whole stride.
FEAT, IMAGE = (3, 3, 22, 40), (90, 157)
EVERYTHING = dict(with_corner_emb=True, with_guiding_shift=True,
                  with_centripetal_shift=True)


def boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    size = 2 + 60 * torch.rand(count, 2, generator=generator)
    room = torch.tensor(IMAGE[::-1]) - size
    corner = torch.rand(count, 2, generator=generator) * room
    return (torch.cat((corner, corner + size), 1),
            torch.randint(3, (count, ), generator=generator))


def batch(name):
    if name == 'random':
        return [boxes(30, 0), boxes(0, 1), boxes(7, 2)]
    if name == 'empty':
        return [boxes(0, 0)] * 3
    # Several boxes of one cell, of one class and of others.
    values, labels = boxes(4, 3)
    return [(values.repeat(3, 1) + torch.arange(12).view(-1, 1) * 0.002,
             torch.cat((labels, labels, labels + 1)) % 3)] * 3


@pytest.mark.parametrize('kind', ['random', 'empty', 'one cell'])
@pytest.mark.parametrize('name', NAMES)
def test_targets_equal_the_stock_loops(name, kind):
    options = EVERYTHING if name == 'CornerHead' else {}
    found, expected = (build(name, prefix).get_targets(
        *map(list, zip(*batch(kind))), FEAT, IMAGE, **options)
        for prefix in ('sigplug.', 'mmdet.'))
    if name == 'CenterNetHead':
        (found, peaks), (expected, other) = found, expected
        assert peaks == other
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if 'heatmap' in key:
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)
            assert found[key].eq(1).equal(value.eq(1))
        elif key == 'corner_embedding':
            assert found[key] == value
        else:
            assert found[key].dtype == value.dtype
            assert found[key].equal(value), key


def test_boxes_that_the_loops_cannot_place_are_left_out():
    outside = torch.tensor([[-90.0, 10, -40, 50], [10, 20, 60, 70]])
    labels = torch.tensor([0, 1])
    for name in NAMES:
        head = build(name)
        got, expected = (
            head.get_targets([x], [y], (1, *FEAT[1:]), IMAGE)
            for x, y in ((outside, labels), (outside[1:], labels[1:])))
        if name == 'CenterNetHead':
            got, expected = got[0], expected[0]
        assert all(got[key].equal(expected[key]) for key in got)


@pytest.mark.parametrize('name', [*NAMES, MONO])
def test_one_forward_of_all_boxes(name):
    """No operation is repeated for each box."""
    counts = []

    class Count(TorchDispatchMode):

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counts[-1] += 1
            return func(*args, **(kwargs or {}))

    head = build(name)
    for number in (3, 30):
        data = instances(name, number, number)
        counts.append(0)
        with Count():
            if name == MONO:
                head.get_targets(data, data, (2, 3, 32, 32), MONO_METAS)
            else:
                head.get_targets([x.bboxes for x in data],
                                 [x.labels for x in data], (2, 3, 32, 32),
                                 (128, 128))
    # Drawing takes its cells in pieces.
    assert counts[1] <= 1.5 * counts[0]
