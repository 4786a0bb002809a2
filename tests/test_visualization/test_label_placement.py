import numpy as np
import pytest

from sigplug.visualization.figure import new_figure
from sigplug.visualization.label_placement import draw_labels


def square(x, y, size=2.0):
    return np.array([[x, y], [x + size, y], [x + size, y + size],
                     [x, y + size]])


@pytest.fixture
def ax():
    ax = new_figure((900, 900)).add_subplot()
    ax.set(xlim=(0, 100), ylim=(0, 100))
    return ax


def extents(ax):
    """The drawn frames of the labels as rectangles in pixels."""
    ax.figure.draw_without_rendering()
    return [text.get_bbox_patch().get_window_extent() for text in ax.texts]


def test_labels_stand_next_to_their_box_and_not_on_it(ax):
    box = square(50, 50, 10)[None]
    assert draw_labels(ax, box, ['car 0.90'], ['red'], box) == 1
    label, = extents(ax)
    on_screen = ax.transData.transform(box[0])
    low, high = on_screen.min(0), on_screen.max(0)
    apart = (label.x0 > high[0] or label.x1 < low[0] or label.y0 > high[1]
             or label.y1 < low[1])
    assert apart
    center = np.array([label.x0 + label.x1, label.y0 + label.y1]) / 2
    assert np.abs(center - on_screen.mean(0)).max() < 120


def test_labels_never_overlap_and_stay_inside(ax):
    rng = np.random.default_rng(0)
    boxes = np.stack([square(x, y) for x, y in rng.uniform(0, 98, (80, 2))])
    written = draw_labels(ax, boxes, ['pedestrian 0.50'] * 80, ['red'] * 80,
                          boxes)
    rects = extents(ax)
    assert 20 < written == len(rects)
    frame = ax.get_window_extent()
    for i, a in enumerate(rects):
        assert frame.x0 <= a.x0 and a.x1 <= frame.x1
        assert frame.y0 <= a.y0 and a.y1 <= frame.y1
        assert not any(a.overlaps(b) for b in rects[:i])


def test_the_first_labels_win(ax):
    boxes = np.stack([square(50, 50)] * 60)
    texts = [f'object {i}' for i in range(60)]
    written = draw_labels(ax, boxes, texts, ['red'] * 60, boxes)
    assert 8 <= written < 60
    assert [text.get_text() for text in ax.texts] == texts[:written]
    # Those away from the box have a line to it.
    assert 0 < len(ax.lines) < written


def test_a_box_out_of_sight_has_no_label(ax):
    boxes = np.stack([square(150, 50), square(50, 50)])
    assert draw_labels(ax, boxes, ['far', 'near'], ['red'] * 2, boxes) == 1
    assert ax.texts[0].get_text() == 'near'
