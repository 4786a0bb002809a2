import matplotlib.image
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.quiver import Quiver

from sigplug.visualization import bev_corners, draw_bev, save_png
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


def collections(ax, kind, zorder):
    return [
        c for c in ax.collections
        if type(c) is kind and c.get_zorder() == zorder
    ]


def polygons(ax, zorder):
    """Corners of the outlines, without the repeated first one."""
    paths = [
        path.vertices[:4] for collection in collections(
            ax, PolyCollection, zorder) for path in collection.get_paths()
    ]
    return np.array(sorted(paths, key=lambda path: path[0, 0]))


def by_first_corner(corners):
    return np.array(sorted(corners, key=lambda corner: corner[0, 0]))


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_draws_a_picture_of_the_promised_size(tmp_path):
    path = tmp_path / 'bev.png'
    save_png(draw_bev(POINTS, **SCENE, size=(1000, 800)), path)
    image = matplotlib.image.imread(path)
    assert image.shape[:2] == (800, 1000)
    assert image[..., :3].std() > 0.05


@pytest.mark.parametrize(('bev_range', 'size'), [
    ((-20, -20, 20, 20), (1530, 1200)),
    ((-15, -30, 15, 30), (990, 1200)),
    ((0, -10, 80, 10), (2070, 800)),
])
def test_default_size_fits_the_range(bev_range, size):
    figure = draw_bev(POINTS, **SCENE, bev_range=bev_range)
    np.testing.assert_allclose(figure.get_size_inches() * figure.dpi, size)


def test_boxes_are_drawn_where_they_are():
    ax = draw_bev(POINTS, **SCENE).axes[0]
    np.testing.assert_allclose(
        polygons(ax, 6), by_first_corner(bev_corners(GT)))
    np.testing.assert_allclose(
        polygons(ax, 4), by_first_corner(bev_corners(PRED)))
    assert ax.get_xlim() == ax.get_ylim() == (-20, 20)
    assert ax.get_aspect() == 1


def test_heading_marks_point_along_the_yaw():
    ax = draw_bev(POINTS, **SCENE).axes[0]
    lines = np.concatenate(
        [c.get_segments() for c in collections(ax, LineCollection, 6)])
    start, end = lines[:, 0], lines[:, 1]
    order = [np.flatnonzero(np.isclose(start, box[:2]).all(1))[0]
             for box in GT]
    way = (end - start)[order]
    np.testing.assert_allclose(np.hypot(*way.T), GT[:, 3] / 2)
    np.testing.assert_allclose(
        np.arctan2(way[:, 1], way[:, 0]), GT[:, 6], atol=1e-9)


def test_ground_truth_without_points_is_dashed():
    ax = draw_bev(POINTS, **SCENE).axes[0]
    solid, dashed = collections(ax, PolyCollection, 6)
    assert len(solid.get_paths()) == 2 and len(dashed.get_paths()) == 1
    assert solid.get_linestyle()[0][1] is None
    assert dashed.get_linestyle()[0][1] is not None
    np.testing.assert_allclose(dashed.get_paths()[0].vertices[:4],
                               bev_corners(GT)[1])
    assert 'ground truth (2)' in legend_texts(ax)
    assert 'ground truth without points (1)' in legend_texts(ax)


def test_predictions_carry_class_score_and_colour():
    ax = draw_bev(POINTS, **SCENE).axes[0]
    assert [text.get_text() for text in ax.texts] == [
        'car 0.91', 'pedestrian 0.42'
    ]
    colors = [tuple(c.get_edgecolor()[0, :3])
              for c in collections(ax, PolyCollection, 4)]
    assert colors == [to_rgb(CLASS_COLORS[0]), to_rgb(CLASS_COLORS[2])]
    assert 'predicted pedestrian (1)' in legend_texts(ax)


def test_data_alone_has_class_names_on_the_ground_truth():
    ax = draw_bev(
        POINTS, gt_bboxes=GT, gt_labels=[0, 2, 1], class_names=CLASSES).axes[0]
    assert {text.get_text() for text in ax.texts} == set(CLASSES)
    assert {'car (1)', 'truck (1)', 'pedestrian (1)'} < set(legend_texts(ax))


def test_velocity_arrows_show_the_distance_in_one_second():
    ax = draw_bev(POINTS, **SCENE).axes[0]
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
        np.empty((0, 3)),
        heatmap=heatmap,
        heatmap_extent=(-20, -16, 44, 16),
        bev_range=(-30, -30, 50, 50))
    ax = figure.axes[0]
    image, = ax.images
    assert image.get_extent() == [-20, 44, -16, 16]
    assert image.origin == 'lower'
    assert ax.get_xlim() == ax.get_ylim() == (-30, 50)
    # The independent way: look which pixels are hot.
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[::-1].astype(int)
    frame = ax.get_window_extent()
    inside = np.zeros(pixels.shape[:2], dtype=bool)
    inside[int(frame.y0):int(frame.y1), int(frame.x0):int(frame.x1)] = True
    hot = (pixels[..., 0] - pixels[..., 2] > 120) & inside
    y, x = np.nonzero(hot)
    low = ax.transData.inverted().transform((x.min(), y.min()))
    high = ax.transData.inverted().transform((x.max() + 1, y.max() + 1))
    pixel = 80 / frame.width
    np.testing.assert_allclose(low, (30, -11), atol=1.5 * pixel)
    np.testing.assert_allclose(high, (30.5, -10.5), atol=1.5 * pixel)


def test_points_are_drawn_inside_the_range_alone():
    points = np.array([[1.0, 2, 0], [9, 2, 3], [1, -7, 1]])
    ax = draw_bev(points, bev_range=(-5, -5, 5, 5)).axes[0]
    np.testing.assert_allclose(ax.collections[0].get_offsets(), points[:1, :2])
    assert legend_texts(ax)[0].startswith('1 LiDAR points')


def test_default_range_holds_everything():
    ax = draw_bev(
        np.array([[3.5, 0, 0]]),
        gt_bboxes=np.array([[0, 30, 0, 3.9, 1.9, 1, np.pi / 2]]),
        gt_labels=[0],
        class_names=CLASSES).axes[0]
    assert ax.get_xlim() == (-2, 5) and ax.get_ylim() == (-1, 33)


@pytest.mark.parametrize('yaw', [0.0, np.pi / 2, -2.0])
def test_the_vehicle_points_ahead(yaw):
    ax = draw_bev(POINTS, ego_yaw=yaw).axes[0]
    marker = ax.lines[0]._marker
    tip = marker.get_transform().transform(marker.get_path().vertices)[0]
    np.testing.assert_allclose(
        tip / np.hypot(*tip), (np.cos(yaw), np.sin(yaw)), atol=1e-6)


def test_nothing_detected():
    scene = dict(SCENE, pred_bboxes=np.empty((0, 9)), pred_labels=[],
                 pred_scores=[], gt_bboxes=np.empty((0, 7)), gt_labels=[],
                 gt_num_points=[])
    ax = draw_bev(np.empty((0, 4)), **scene).axes[0]
    assert not ax.texts and not polygons(ax, 6).size


BAD = [
    (dict(points=np.zeros(3)), r'points .* 2 dimensions .* \(3,\)'),
    (dict(points=np.zeros((4, 2))), r'at least 3 columns, .* \(4, 2\)'),
    (dict(points=[[0, 0, np.nan]]), 'points must be finite'),
    (dict(points=[['a', 'b', 'c']]), 'points must hold numbers'),
    (dict(gt_bboxes=GT[:, :8]), r'gt_bboxes .* \(M, 9\), but has \(3, 8\)'),
    (dict(gt_bboxes=-GT), 'gt_bboxes must have sizes >= 0'),
    (dict(gt_bboxes=np.full((3, 7), np.inf)), 'gt_bboxes.* finite'),
    (dict(gt_labels=[0, 1]), 'gt_labels must have one value .* 3 .* has 2'),
    (dict(gt_labels=None), 'gt_bboxes need gt_labels'),
    (dict(gt_bboxes=None), 'gt_labels need gt_bboxes'),
    (dict(gt_labels=[0, 1, 3]), r'gt_labels .* 3 class_names.*\[0.*3'),
    (dict(gt_labels=[0, 1, -1]), 'gt_labels must be indices'),
    (dict(gt_labels=[0, 1, 0.5]), 'gt_labels must be indices'),
    (dict(gt_num_points=[1]), 'gt_num_points must have one value'),
    (dict(pred_scores=None), 'pred_bboxes need pred_scores'),
    (dict(pred_scores=[0.5, 1.5]), 'pred_scores must lie in .* 1.5'),
    (dict(heatmap=np.full((4, 4), 2.0)), 'heatmap must lie in .*sigmoid'),
    (dict(heatmap=np.zeros((1, 4, 4))), 'heatmap must have 2 dimensions'),
    (dict(heatmap_extent=None), 'heatmap and heatmap_extent'),
    (dict(heatmap_extent=(20, -20, -20, 20)), 'heatmap_extent .* min < max'),
    (dict(bev_range=(0, 0, 1)), 'bev_range must be'),
]


@pytest.mark.parametrize(('change', 'message'), BAD)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        draw_bev(**{'points': POINTS, **SCENE, **change})


# Linear RGB as seen with a complete protanopia and deuteranopia: Machado et
# al., "A Physiologically-based Model for Simulation of Color Vision
# Deficiency", 2009, severity 1.0.
VISION = dict(
    normal=np.eye(3),
    protanopia=[[0.152286, 1.052583, -0.204868],
                [0.114503, 0.786281, 0.099216],
                [-0.003882, -0.048116, 1.051998]],
    deuteranopia=[[0.367322, 0.860646, -0.227968],
                  [0.280085, 0.672501, 0.047413],
                  [-0.011820, 0.042940, 0.968881]])


@pytest.mark.parametrize(('vision', 'least'), [('normal', 28),
                                               ('protanopia', 14),
                                               ('deuteranopia', 14)])
def test_colours_can_be_told_apart(vision, least):
    rgb = np.array([to_rgb(color) for color in CLASS_COLORS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92,
                      ((rgb + 0.055) / 1.055)**2.4)
    linear = (linear @ np.transpose(VISION[vision])).clip(0, 1)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193],
                             [0.3576, 0.7152, 0.1192],
                             [0.1805, 0.0722, 0.9505]])
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    lab = np.stack([
        116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]),
        200 * (f[:, 1] - f[:, 2])
    ], axis=1)
    distance = np.linalg.norm(lab[:, None] - lab, axis=2)
    assert distance[np.triu_indices(len(lab), 1)].min() > least
