"""Bird's-eye view of one LiDAR frame with its boxes and heatmap."""
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .bev_boxes import (
    BEVBoxes,
    bev_corners,
    check_array,
    check_boxes,
    check_range,
    check_scores,
)
from .figure import HEAT_CMAP, INK, MUTED, check_title, new_figure, style_axes
from .label_placement import draw_labels

# Any two differ by at least 28 in CIELAB, and by 14 for people who cannot see
# red or green.
CLASS_COLORS = ('#3f90da', '#332288', '#999933', '#117733', '#661100',
                '#44546a', '#44aa99', '#aa4499', '#cc6677', '#e69f00')
# The ground pale, high points dark; quiet, so that the boxes stand out.
_HEIGHT_CMAP = LinearSegmentedColormap.from_list(
    'height', ['#ccd1d8', '#9aa5b1', '#5b6b7d', '#3c4858'])
# A velocity arrow is as long as the distance in this time, in seconds.
_ARROW_TIME = 1.0
_MIN_SPEED = 0.2


def draw_bev(points: np.ndarray,
             *,
             gt_bboxes: np.ndarray | None = None,
             gt_labels: np.ndarray | None = None,
             gt_num_points: np.ndarray | None = None,
             pred_bboxes: np.ndarray | None = None,
             pred_labels: np.ndarray | None = None,
             pred_scores: np.ndarray | None = None,
             class_names: Sequence[str] = (),
             heatmap: np.ndarray | None = None,
             heatmap_extent: Sequence[float] | None = None,
             bev_range: Sequence[float] | None = None,
             ego_yaw: float | None = None,
             title: str = '',
             size: tuple[int, int] | None = None) -> Figure:
    """Draw one frame from above, in the metric coordinates of the LiDAR.

    Ground truth is a thin dark outline, dashed where no point lies on the
    object. Predictions are filled in the colour of their class and carry its
    name and the score, unless the label would cover another one. The line
    from the centre of a box to its front shows the heading. Without
    predictions the ground truth has the names and colours.

    Boxes have the layout of mmdet3d's ``LiDARInstance3DBoxes``, see
    :func:`bev_corners`; those of 9 values end in the velocity ``(vx, vy)`` in
    m/s, NaN where it is unknown.

    Args:
        points (np.ndarray): Shape ``(N, >=3)``: x, y, z in metres, ...
        gt_bboxes (np.ndarray, optional): Shape ``(M, 7)`` or ``(M, 9)``.
        gt_labels (np.ndarray, optional): Class indices, shape ``(M, )``.
        gt_num_points (np.ndarray, optional): LiDAR points on each object,
            shape ``(M, )``.
        pred_bboxes (np.ndarray, optional): Shape ``(K, 7)`` or ``(K, 9)``.
        pred_labels (np.ndarray, optional): Class indices, shape ``(K, )``.
        pred_scores (np.ndarray, optional): Scores in [0, 1], shape ``(K, )``.
        class_names (Sequence[str]): The classes that the labels index.
        heatmap (np.ndarray, optional): Highest score of all classes, in
            [0, 1], shape ``(H, W)``: rows along y, columns along x.
        heatmap_extent (Sequence[float], optional): Outer edges of the
            heatmap: ``(x_min, y_min, x_max, y_max)`` in metres.
        bev_range (Sequence[float], optional): The part to draw, like
            ``heatmap_extent``. Defaults to ``heatmap_extent``, else to what
            holds all points and boxes.
        ego_yaw (float, optional): Heading of the vehicle in radians. Without
            it the vehicle is a cross.
        title (str): Title of the picture.
        size (tuple[int, int], optional): Width and height in pixels. Defaults
            to what fits the range: 1500 x 1200 for a square.

    Returns:
        Figure: The drawing, for :func:`sigplug.visualization.save_png`.

    Raises:
        ValueError: An argument has a wrong shape, length or value.
    """
    points = check_array('points', points, ndim=2, min_columns=3)
    gt = check_boxes(
        'gt', gt_bboxes, gt_labels, class_names, num_points=gt_num_points)
    pred = check_boxes(
        'pred', pred_bboxes, pred_labels, class_names, scores=pred_scores)
    if pred is not None:
        if pred.scores is None:
            raise ValueError('pred_bboxes need pred_scores')
        check_scores('pred_scores', pred.scores)
    if (heatmap is None) != (heatmap_extent is None):
        raise ValueError('heatmap and heatmap_extent must come together')
    if heatmap is not None and heatmap_extent is not None:
        heatmap = check_array('heatmap', heatmap, ndim=2, min_columns=1)
        check_scores('heatmap', heatmap)
        heatmap_extent = check_range('heatmap_extent', heatmap_extent)
    if bev_range is not None:
        bev_range = check_range('bev_range', bev_range)
    else:
        bev_range = heatmap_extent or _range_of(points, gt, pred)
    if ego_yaw is not None:
        ego_yaw = float(check_array('ego_yaw', ego_yaw, ndim=0))
    check_title(title)
    gt = None if gt is None else gt.inside(bev_range)
    pred = None if pred is None else pred.inside(bev_range)

    figure = new_figure(size or _default_size(bev_range))
    ax = figure.add_subplot()
    if heatmap is not None and heatmap_extent is not None:
        _draw_heatmap(ax, heatmap, heatmap_extent)
    style_axes(ax, title, xlabel='x (m)', ylabel='y (m)')
    x_min, y_min, x_max, y_max = bev_range
    ax.set(xlim=(x_min, x_max), ylim=(y_min, y_max), aspect='equal')

    handles = [*_draw_points(ax, points, bev_range), *_draw_ego(ax, ego_yaw)]
    if gt is not None:
        handles += _draw_gt(ax, gt)
    colored = gt if pred is None else pred
    if colored is not None:
        handles += _draw_classes(ax, colored, class_names,
                                 'predicted ' if pred else '')
        handles += _draw_velocities(ax, gt, pred)
    ax.legend(
        handles=handles,
        loc='upper left',
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=7.5,
        labelcolor=INK)
    if colored is not None:
        _label_boxes(ax, colored, class_names, gt)
    return figure


def _range_of(points: np.ndarray,
              *boxes: BEVBoxes | None) -> tuple[float, float, float, float]:
    """What holds the points, the boxes and the vehicle, in whole metres."""
    places = [np.zeros((1, 2)), points[:, :2]]
    places += [bev_corners(b.bboxes).reshape(-1, 2) for b in boxes if b]
    xy = np.concatenate(places)
    low, high = np.floor(xy.min(0)) - 1, np.ceil(xy.max(0)) + 1
    return (*low.tolist(), *high.tolist())


def _default_size(bev_range: Sequence[float]) -> tuple[int, int]:
    """Pixels of a figure whose axes have the shape of the range."""
    x_min, y_min, x_max, y_max = bev_range
    width, height = x_max - x_min, y_max - y_min
    scale = 1080 / max(height, width / 1.5)
    # Beside and below the axes; the legend needs some height.
    return round(scale * width) + 450, max(round(scale * height) + 120, 800)


def _draw_heatmap(ax: Axes, heatmap: np.ndarray,
                  extent: Sequence[float]) -> None:
    x_min, y_min, x_max, y_max = extent
    image = ax.imshow(
        heatmap,
        extent=(x_min, x_max, y_min, y_max),
        origin='lower',
        interpolation='nearest',
        cmap=HEAT_CMAP,
        vmin=0,
        vmax=1,
        zorder=0)
    bar = ax.figure.colorbar(
        image, cax=ax.inset_axes((1.03, 0.02, 0.022, 0.28)))
    bar.set_label('heatmap: highest class score', fontsize=7.5, color=INK)
    bar.ax.tick_params(labelsize=7, colors=MUTED)
    bar.outline.set_visible(False)


def _draw_points(ax: Axes, points: np.ndarray,
                 bev_range: Sequence[float]) -> Sequence[Artist]:
    low, high = np.array(bev_range[:2]), np.array(bev_range[2:])
    inside = ((points[:, :2] >= low) & (points[:, :2] <= high)).all(1)
    points = points[inside]
    # High points last, on top of the ground.
    points = points[np.argsort(points[:, 2], kind='stable')]
    z_low, z_high = 0, 1
    if len(points):
        z_low, z_high = np.percentile(points[:, 2], [5, 99])
    ax.scatter(
        points[:, 0],
        points[:, 1],
        s=0.8,
        c=points[:, 2],
        cmap=_HEIGHT_CMAP,
        vmin=z_low,
        vmax=z_high,
        linewidths=0,
        zorder=2)
    return [
        Line2D([], [],
               color=_HEIGHT_CMAP(0.6),
               marker='.',
               linestyle='none',
               label=f'{len(points)} LiDAR points\n(darker = higher)')
    ]


def _draw_ego(ax: Axes, yaw: float | None) -> Sequence[Artist]:
    # A triangle points up at the angle 0.
    marker = '+' if yaw is None else (3, 0, np.degrees(yaw) - 90)
    return ax.plot(
        0,
        0,
        marker=marker,
        markersize=8,
        color=INK,
        linestyle='none',
        zorder=7,
        label='vehicle')


def _heading_lines(corners: np.ndarray) -> np.ndarray:
    """From the centre of each box to the middle of its front, (M, 2, 2)."""
    return np.stack([corners.mean(1), corners[:, :2].mean(1)], axis=1)


def _draw_gt(ax: Axes, gt: BEVBoxes) -> Sequence[Artist]:
    corners = bev_corners(gt.bboxes)
    empty = np.zeros(len(corners), dtype=bool)
    if gt.num_points is not None:
        empty = gt.num_points == 0
    handles = []
    kinds: list[tuple[np.ndarray, Any, str]] = [
        (~empty, 'solid', 'ground truth'),
        (empty, (0, (2, 1.5)), 'ground truth without points')]
    for chosen, style, label in kinds:
        if not chosen.any():
            continue
        look: dict[str, Any] = dict(
            linewidths=0.9, linestyles=[style], zorder=6)
        ax.add_collection(
            PolyCollection(
                list(corners[chosen]), facecolors='none', edgecolors=INK,
                **look))
        ax.add_collection(
            LineCollection(
                list(_heading_lines(corners[chosen])), colors=INK, **look))
        handles.append(
            Line2D([], [],
                   color=INK,
                   linewidth=0.9,
                   linestyle=style,
                   label=f'{label} ({chosen.sum()})'))
    return handles


def _color(label: int) -> str:
    return CLASS_COLORS[label % len(CLASS_COLORS)]


def _draw_classes(ax: Axes, boxes: BEVBoxes, class_names: Sequence[str],
                  prefix: str) -> Sequence[Artist]:
    """Boxes filled in the colours of their classes."""
    corners = bev_corners(boxes.bboxes)
    handles = []
    for label in np.unique(boxes.labels):
        chosen = corners[boxes.labels == label]
        look: dict[str, Any] = dict(
            facecolor=to_rgba(_color(label), 0.2),
            edgecolor=_color(label),
            linewidth=1.5)
        ax.add_collection(PolyCollection(list(chosen), zorder=4, **look))
        ax.add_collection(
            LineCollection(
                list(_heading_lines(chosen)),
                colors=_color(label),
                linewidths=1.5,
                zorder=4))
        handles.append(
            Patch(
                label=f'{prefix}{class_names[label]} ({len(chosen)})',
                **look))
    return handles


def _draw_velocities(ax: Axes, gt: BEVBoxes | None,
                     pred: BEVBoxes | None) -> Sequence[Artist]:
    """Arrows for what moves; they need boxes of 9 values."""
    handles = []
    for boxes, width, zorder in ((pred, 1.5, 5), (gt, 0.9, 6)):
        if boxes is None or boxes.bboxes.shape[1] < 9:
            continue
        # The comparison is False for an unknown velocity, NaN.
        moves = np.hypot(*boxes.bboxes[:, 7:].T) > _MIN_SPEED
        if not moves.any():
            continue
        x, y = boxes.bboxes[moves, :2].T
        way_x, way_y = _ARROW_TIME * boxes.bboxes[moves, 7:].T
        color = INK if boxes is gt else [
            _color(label) for label in boxes.labels[moves]
        ]
        ax.quiver(
            x,
            y,
            way_x,
            way_y,
            color=color,
            angles='xy',
            scale_units='xy',
            scale=1,
            units='dots',
            width=width * ax.figure.dpi / 72,
            headwidth=4,
            headlength=4,
            headaxislength=4,
            minlength=0,
            zorder=zorder)
        handles = [
            Line2D([], [],
                   color=INK,
                   linewidth=0.9,
                   marker='>',
                   markersize=4,
                   label=f'velocity (distance in {_ARROW_TIME:g} s)')
        ]
    return handles


def _label_boxes(ax: Axes, boxes: BEVBoxes, class_names: Sequence[str],
                 gt: BEVBoxes | None) -> None:
    """Class names, with the scores of predictions, the surest ones first."""
    order = np.arange(len(boxes.labels))
    if boxes.scores is not None:
        order = np.argsort(-boxes.scores, kind='stable')
    texts, colors = [], []
    for index in order:
        text = class_names[boxes.labels[index]]
        if boxes.scores is not None:
            text += f' {boxes.scores[index]:.2f}'
        texts.append(text)
        colors.append(_color(boxes.labels[index]))
    corners = bev_corners(boxes.bboxes)
    vehicle = bev_corners(np.array([[0, 0, 0, 3, 3, 0, 0]]))
    obstacles = [corners, vehicle]
    if gt is not None:
        obstacles.append(bev_corners(gt.bboxes))
    draw_labels(ax, corners[order], texts, colors, np.concatenate(obstacles))
