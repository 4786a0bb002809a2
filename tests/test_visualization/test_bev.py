import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.quiver import Quiver

from sigplug.visualization import bev_corners, draw_bev, to_image
from sigplug.visualization.bev import CLASS_COLORS

CLASSES = ('car', 'truck', 'pedestrian')
POINTS = np.random.default_rng(0).uniform(-20, 20, (500, 5))
GT = np.array([
    [5, 2, -1, 4.5, 1.9, 1.6, 0.4, 3, 1],
    [-8, 9, -1, 0.7, 0.6, 1.7, -2.0, np.nan, np.nan],
    [12, -14, -1, 7, 2.5, 3.0, 1.5, 0, 0],
])
PRED = GT[:2] + [[0.2, -0.1, 0, 0.1, 0, 0, 0.05, 0.5, 0]]
SCENE = dict(
    gt_bboxes=GT,
    gt_labels=[0, 2, 1],
    gt_num_points=[30, 0, 4],
    pred_bboxes=PRED,
    pred_labels=[0, 2],
    pred_scores=[0.91, 0.42],
    class_names=CLASSES,
    heatmap=np.random.default_rng(1).random((40, 40)),
    heatmap_extent=(-20, -20, 20, 20),
    ego_yaw=0.3,
    title='a sample')


def draw(**changes):
    """The axes of a picture of the scene."""
    return draw_bev(**{'points': POINTS, **SCENE, **changes}).axes[0]


def outlines(ax, zorder):
    """Left front corner, front, centre, front, right front corner, ..."""
    paths = [path.vertices[:7] for c in ax.collections
             if type(c) is PolyCollection and c.get_zorder() == zorder
             for path in c.get_paths()]
    return np.array(sorted(paths, key=lambda path: path[0, 0]))


def legend_texts(ax):
    return {text.get_text() for text in ax.get_legend().get_texts()}


@pytest.mark.parametrize(('zorder', 'bboxes'), [(6, GT), (4, PRED)])
def test_boxes_are_drawn_where_they_are_and_head_along_their_yaw(
        zorder, bboxes):
    ax = draw()
    drawn = outlines(ax, zorder)
    corners = bev_corners(bboxes)
    order = np.argsort(corners[:, 0, 0])
    np.testing.assert_allclose(drawn[:, [0, 4, 5, 6]], corners[order])
    np.testing.assert_allclose(drawn[:, 2], bboxes[order, :2])
    way = drawn[:, 3] - drawn[:, 2]
    yaw, length = bboxes[order, 6], bboxes[order, 3]
    np.testing.assert_allclose(
        way.T, length / 2 * [np.cos(yaw), np.sin(yaw)], atol=1e-9)
    assert ax.get_xlim() == ax.get_ylim() == (-20, 20)
    assert ax.get_aspect() == 1


def test_ground_truth_without_points_is_dashed():
    ax = draw()
    solid, dashed = (c for c in ax.collections
                     if type(c) is PolyCollection and c.get_zorder() == 6)
    assert len(solid.get_paths()) == 2 and len(dashed.get_paths()) == 1
    assert solid.get_linestyle()[0][1] is None
    assert dashed.get_linestyle()[0][1] is not None
    assert {'ground truth (2)',
            'ground truth without points (1)'} < legend_texts(ax)


def test_predictions_carry_class_score_and_colour():
    ax = draw()
    assert [text.get_text() for text in ax.texts] == [
        'car 0.91', 'pedestrian 0.42']
    colors = [tuple(c.get_edgecolor()[0, :3]) for c in ax.collections
              if type(c) is PolyCollection and c.get_zorder() == 4]
    assert colors == [to_rgb(CLASS_COLORS[0]), to_rgb(CLASS_COLORS[2])]
    assert 'predicted pedestrian (1)' in legend_texts(ax)


def test_labels_never_overlap_and_the_surest_ones_win():
    rng = np.random.default_rng(0)
    boxes = np.ones((80, 7))
    boxes[:, :2] = rng.uniform(-20, 20, (80, 2))
    boxes[40:, :2] = 5  # of a crowd at one place, two at most have a label
    scores = np.linspace(0.99, 0.2, 80)
    ax = draw(pred_bboxes=boxes, pred_labels=[2] * 80, pred_scores=scores)
    ax.figure.draw_without_rendering()
    labels = [text.get_window_extent() for text in ax.texts]
    assert 20 < len(labels) <= 42
    assert ax.texts[0].get_text() == 'pedestrian 0.99'
    frame = ax.get_window_extent()
    for i, a in enumerate(labels):
        assert not a.count_overlaps(labels[:i])
        assert (frame.x0 <= a.x0 and a.x1 <= frame.x1
                and frame.y0 <= a.y0 and a.y1 <= frame.y1)


def test_velocity_arrows_show_the_distance_in_one_second():
    ax = draw()
    pred, gt = sorted((c for c in ax.collections if isinstance(c, Quiver)),
                      key=lambda arrows: arrows.get_zorder())
    # Neither the standing truck nor the unknown velocity have an arrow.
    np.testing.assert_allclose(gt.get_offsets(), GT[:1, :2])
    np.testing.assert_allclose([gt.U, gt.V], GT[:1, 7:].T)
    np.testing.assert_allclose(pred.get_offsets(), PRED[:1, :2])
    assert gt.scale == 1 and gt.angles == gt.scale_units == 'xy'
    assert 'velocity (distance in 1 s)' in legend_texts(ax)


def test_a_hot_cell_is_at_its_metric_place():
    heatmap = np.zeros((64, 128))
    # x in [-20 + 100 * 0.5, ...), y in [-16 + 10 * 0.5, ...)
    heatmap[10, 100] = 0.9
    figure = draw_bev(
        np.empty((0, 3)), heatmap=heatmap, heatmap_extent=(-20, -16, 44, 16),
        bev_range=(-30, -30, 50, 50))
    ax = figure.axes[0]
    assert ax.get_xlim() == ax.get_ylim() == (-30, 50)
    # Look which pixels are hot, the lowest row first.
    pixels = to_image(figure)[::-1].astype(int)
    frame = ax.get_window_extent()
    hot = pixels[..., 0] - pixels[..., 2] > 120
    hot[:, int(frame.x1):] = False  # the colour bar
    y, x = np.nonzero(hot)
    low = ax.transData.inverted().transform((x.min(), y.min()))
    high = ax.transData.inverted().transform((x.max() + 1, y.max() + 1))
    pixel = 80 / frame.width
    np.testing.assert_allclose(low, (30, -11), atol=1.5 * pixel)
    np.testing.assert_allclose(high, (30.5, -10.5), atol=1.5 * pixel)


def test_points_are_drawn_inside_the_range_alone():
    points = np.array([[1.0, 2, 0], [9, 2, 3], [1, -7, 1], [np.nan, 0, 0]])
    ax = draw_bev(points, bev_range=(-5, -5, 5, 5)).axes[0]
    np.testing.assert_allclose(ax.collections[0].get_offsets(), points[:1, :2])
    assert '1 LiDAR points\n(darker = higher)' in legend_texts(ax)


@pytest.mark.parametrize('length', [3, 14, 40])
def test_nothing_is_cut_at_the_edges(length):
    figure = draw_bev(
        POINTS, pred_bboxes=PRED[:1], pred_labels=[0], pred_scores=[0.5],
        class_names=['x' * length], bev_range=(-51, -51, 51, 51))
    figure.draw_without_rendering()
    (left, low), (right, high) = figure.get_tightbbox().get_points()
    width, height = figure.get_size_inches()
    assert 0 <= left < right <= width and 0 <= low < high <= height


@pytest.mark.parametrize('yaw', [0.0, -2.0])
def test_the_vehicle_points_ahead(yaw):
    marker, = (line._marker for line in draw(ego_yaw=yaw).lines
               if line.get_label() == 'vehicle')
    tip = marker.get_transform().transform(marker.get_path().vertices)[0]
    np.testing.assert_allclose(
        tip / np.hypot(*tip), (np.cos(yaw), np.sin(yaw)), atol=1e-6)


def test_nothing_detected():
    ax = draw(points=np.empty((0, 4)), gt_bboxes=np.empty((0, 7)),
              gt_labels=[], gt_num_points=[], pred_bboxes=np.empty((0, 9)),
              pred_labels=[], pred_scores=[])
    assert not ax.texts and not outlines(ax, 6).size
    # Without predictions the ground truth has the names.
    ax = draw(pred_bboxes=None, heatmap=None, heatmap_extent=None)
    assert {text.get_text() for text in ax.texts} == set(CLASSES)
    assert {'car (1)', 'truck (1)', 'pedestrian (1)'} < legend_texts(ax)


@pytest.mark.parametrize(('change', 'message'), [
    (dict(pred_scores=[0.5, 1.5]), 'pred_scores must lie in .* 1.5'),
    (dict(heatmap=np.full((4, 4), 2.0)), 'heatmap must lie in .*sigmoid'),
])
def test_what_is_no_score_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        draw(**change)
