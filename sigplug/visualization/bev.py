"""Bird's-eye view of one LiDAR frame with its boxes and heatmap."""
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from .bev_boxes import BEVBoxes, bev_corners, gather_boxes
from .figure import (
    HEAT_CMAP,
    INK,
    MUTED,
    check_scores,
    new_figure,
    style_axes,
)

# Any two differ by at least 28 in CIELAB, and by 14 for people who cannot see
# red or green.
CLASS_COLORS = ('#3f90da', '#332288', '#999933', '#117733', '#661100',
                '#44546a', '#44aa99', '#aa4499', '#cc6677', '#e69f00')
# The ground pale, high points dark; quiet, so that the boxes stand out.
HEIGHT_CMAP = LinearSegmentedColormap.from_list(
    'height', ['#ccd1d8', '#9aa5b1', '#5b6b7d', '#3c4858'])
# In m/s. A velocity arrow is as long as the distance in one second.
MIN_SPEED = 0.2
LABEL_HALO = withStroke(linewidth=2.5, foreground='white', alpha=0.85)


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
            to what fits the range: 1530 x 1200 for a square.

    Returns:
        Figure: The drawing, for :func:`sigplug.visualization.save_png`.

    Raises:
        ValueError: A score is not in [0, 1].
    """
    gt = gather_boxes(gt_bboxes, gt_labels, gt_num_points)
    pred = gather_boxes(pred_bboxes, pred_labels, scores=pred_scores)
    if bev_range is None:
        bev_range = heatmap_extent
    if bev_range is None:
        bev_range = _enclose(points, gt, pred)
    x_min, y_min, x_max, y_max = bev_range
    gt, pred = gt.inside(bev_range), pred.inside(bev_range)

    figure = new_figure(size or _default_size(x_max - x_min, y_max - y_min))
    ax = figure.add_subplot()
    style_axes(ax, title, xlabel='x (m)', ylabel='y (m)')
    ax.set(xlim=(x_min, x_max), ylim=(y_min, y_max), aspect='equal')
    if heatmap is not None and heatmap_extent is not None:
        _draw_heatmap(ax, check_scores('heatmap', heatmap),
                      heatmap_extent)
    _draw_points(ax, points, bev_range)
    # A triangle points up at the angle 0.
    ax.plot(0, 0, color=INK, linestyle='none', markersize=8, zorder=7,
            marker='+' if ego_yaw is None else
            (3, 0, np.degrees(ego_yaw) - 90), label='vehicle')
    _draw_ground_truth(ax, gt)
    colored, prefix = ((gt, '') if pred_bboxes is None else
                       (pred, 'predicted '))
    _draw_classes(ax, colored, class_names, prefix)
    _draw_velocities(ax, gt, pred)
    ax.legend(loc='upper left', bbox_to_anchor=(1.01, 1.0), borderaxespad=0,
              frameon=False, fontsize=8.5, labelcolor=INK)
    # The layout engine places the axes only now, and those of equal scales
    # step by step.
    for _ in range(3):
        figure.draw_without_rendering()
    _label_boxes(ax, colored, class_names)
    return figure


def _enclose(points: np.ndarray,
             *boxes: BEVBoxes) -> tuple[float, float, float, float]:
    """Enclose points, boxes and the vehicle in a range of whole metres."""
    xy = np.concatenate([np.zeros((1, 2)), points[:, :2], *(
        bev_corners(part.bboxes).reshape(-1, 2) for part in boxes)])
    low, high = np.floor(xy.min(0)) - 1, np.ceil(xy.max(0)) + 1
    return (*low.tolist(), *high.tolist())


def _default_size(width: float, height: float) -> tuple[int, int]:
    """Return the pixels of a figure whose axes have these proportions."""
    scale = 1080 / max(height, width / 1.5)
    # Beside and below the axes; the legend needs some height.
    return round(scale * width) + 450, max(round(scale * height) + 120, 800)


def _draw_heatmap(ax: Axes, heatmap: np.ndarray,
                  extent: Sequence[float]) -> None:
    x_min, y_min, x_max, y_max = extent
    image = ax.imshow(heatmap, cmap=HEAT_CMAP, vmin=0, vmax=1, zorder=0,
                      extent=(x_min, x_max, y_min, y_max), origin='lower',
                      interpolation='nearest')
    bar = ax.figure.colorbar(
        image, cax=ax.inset_axes((1.03, 0.02, 0.022, 0.28)))
    bar.set_label('heatmap: highest class score', fontsize=8.5, color=INK)
    bar.ax.tick_params(labelsize=8, colors=MUTED)
    bar.outline.set_visible(False)


def _draw_points(ax: Axes, points: np.ndarray,
                 bev_range: Sequence[float]) -> None:
    low, high = np.array(bev_range[:2]), np.array(bev_range[2:])
    points = points[((points[:, :2] >= low) & (points[:, :2] <= high)).all(1)]
    # High points last, on top of the ground.
    x, y, z = points[np.argsort(points[:, 2], kind='stable'), :3].T
    z_low, z_high = np.percentile(z, [5, 99]) if len(z) else (0, 1)
    ax.scatter(x, y, s=0.8, c=z, cmap=HEIGHT_CMAP, vmin=z_low, vmax=z_high,
               linewidths=0, zorder=2)
    ax.plot([], [], '.', color=HEIGHT_CMAP(0.6),
            label=f'{len(z)} LiDAR points\n(darker = higher)')


def _add_boxes(ax: Axes, bboxes: np.ndarray, **look: Any) -> None:
    """Add outlines with a line from the centre to the middle of the front."""
    left, right, *rear = bev_corners(bboxes).swapaxes(0, 1)
    front, center = (left + right) / 2, bboxes[:, :2]
    outlines = np.stack([left, front, center, front, right, *rear], axis=1)
    ax.add_collection(PolyCollection(
        list(outlines), joinstyle='round', **look), autolim=False)


def _draw_ground_truth(ax: Axes, gt: BEVBoxes) -> None:
    seen = (np.full(len(gt.bboxes), True) if gt.num_points is None else
            gt.num_points > 0)
    for chosen, style, name in (
            (seen, 'solid', 'ground truth'),
            (~seen, (0, (2, 1.5)), 'ground truth without points')):
        if chosen.any():
            _add_boxes(ax, gt.bboxes[chosen], facecolor='none', edgecolor=INK,
                       linewidth=0.9, linestyle=style, zorder=6,
                       label=f'{name} ({chosen.sum()})')


def _color(label: int) -> str:
    return CLASS_COLORS[label % len(CLASS_COLORS)]


def _draw_classes(ax: Axes, boxes: BEVBoxes, class_names: Sequence[str],
                  prefix: str) -> None:
    """Fill boxes with the colours of their classes."""
    for label in np.unique(boxes.labels):
        chosen = boxes.bboxes[boxes.labels == label]
        _add_boxes(ax, chosen, facecolor=to_rgba(_color(label), 0.2),
                   edgecolor=_color(label), linewidth=1.5, zorder=4,
                   label=f'{prefix}{class_names[label]} ({len(chosen)})')


def _draw_velocities(ax: Axes, gt: BEVBoxes, pred: BEVBoxes) -> None:
    """Draw arrows for moving objects; they need boxes of 9 values."""
    drawn = False
    for boxes, width, zorder in ((pred, 1.5, 5), (gt, 0.9, 6)):
        if boxes.bboxes.shape[1] < 9:
            continue
        # The comparison is False for an unknown velocity, NaN.
        moves = np.hypot(*boxes.bboxes[:, 7:].T) > MIN_SPEED
        color = INK if boxes is gt else [
            _color(label) for label in boxes.labels[moves]]
        ax.quiver(*boxes.bboxes[moves][:, [0, 1, 7, 8]].T, color=color,
                  angles='xy', scale_units='xy', scale=1, units='dots',
                  width=width * ax.figure.dpi / 72, headwidth=4, headlength=4,
                  headaxislength=4, minlength=0, zorder=zorder)
        drawn |= moves.any()
    if drawn:
        ax.plot([], [], color=INK, linewidth=0.9, marker='>', markersize=4,
                label='velocity (distance in 1 s)')


def _label_boxes(ax: Axes, boxes: BEVBoxes,
                 class_names: Sequence[str]) -> None:
    """Write class and score beside each box, those of the surest ones first.

    A label that would cover another one, or leave the axes, is left out.
    """
    frame = ax.get_window_extent()
    placed: list[Bbox] = []
    texts = [class_names[label] for label in boxes.labels]
    order = np.arange(len(texts))
    if boxes.scores is not None:
        texts = [f'{text} {score:.2f}'
                 for text, score in zip(texts, boxes.scores)]
        order = np.argsort(-boxes.scores, kind='stable')
    x = bev_corners(boxes.bboxes)[..., 0]
    for i in order:
        for place, offset, alignment in ((x[i].max(), 3, 'left'),
                                         (x[i].min(), -3, 'right')):
            label = ax.annotate(
                texts[i], (place, boxes.bboxes[i, 1]), (offset, 0),
                textcoords='offset points', ha=alignment, va='center',
                fontsize=7.5, color=INK, path_effects=[LABEL_HALO], zorder=9)
            extent = label.get_window_extent()
            if (frame.contains(extent.x0, extent.y0)
                    and frame.contains(extent.x1, extent.y1)
                    and not extent.count_overlaps(placed)):
                placed.append(extent)
                break
            label.remove()
