"""Text labels next to boxes, none of them on top of another."""
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .figure import INK

_FONT_SIZE = 6.5
# Between the text and its frame, in font sizes.
_PADDING = 0.15
# Possible distances of a label from its box, in points.
_DISTANCES = (3.0, 12.0, 24.0, 40.0)
_DIRECTIONS = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1),
                        (1, -1), (-1, -1)])
# What a label far from its box costs, as a share of its own area per point.
_DISTANCE_COST = 0.02


def _overlap(rect: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area that a rectangle ``(x0, y0, x1, y1)`` shares with each other."""
    low = np.maximum(rect[:2], others[:, :2])
    high = np.minimum(rect[2:], others[:, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=1)


def _bounds(polygons: np.ndarray) -> np.ndarray:
    """Bounding rectangles, ``(M, 4)``, of polygons ``(M, corners, 2)``."""
    return np.concatenate([polygons.min(1), polygons.max(1)], axis=1)


def _candidates(box: np.ndarray, width: float, height: float,
                unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles for a label around a box, and their distances in points."""
    reach = (box[2:] - box[:2] + (width, height)) / 2
    rects, distances = [], []
    for distance in _DISTANCES:
        center = (box[:2] + box[2:]) / 2 + _DIRECTIONS * (
            reach + distance * unit)
        half = np.array([width, height]) / 2
        rects.append(np.concatenate([center - half, center + half], axis=1))
        distances += [distance] * len(center)
    return np.concatenate(rects), np.array(distances)


def draw_labels(ax: Axes, polygons: np.ndarray, texts: Sequence[str],
                colors: Sequence[str], obstacles: np.ndarray) -> int:
    """Write a label at each polygon, the first ones first.

    A label goes where it hides least; away from its box a thin line leads to
    it. One that would cover another label or leave the axes is left out.

    Args:
        ax (Axes): The axes, which must have their final limits.
        polygons (np.ndarray): What is labelled, data coordinates of shape
            ``(M, corners, 2)``.
        texts (Sequence[str]): The M texts.
        colors (Sequence[str]): The M colours of the frames.
        obstacles (np.ndarray): What should stay visible, data coordinates
            of shape ``(K, corners, 2)``.

    Returns:
        int: The number of labels written.
    """
    figure = ax.figure
    assert isinstance(figure, Figure), 'a part of a figure has no layout'
    # The layout engine places the axes only now.
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    to_pixels = ax.transData.transform
    to_data = ax.transData.inverted().transform
    frame = ax.get_window_extent().extents
    obstacles = _bounds(
        to_pixels(obstacles.reshape(-1, 2)).reshape(obstacles.shape))
    placed = np.empty((0, 4))
    for polygon, text, color in zip(polygons, texts, colors):
        box = _bounds(to_pixels(polygon)[None])[0]
        center = (box[:2] + box[2:]) / 2
        if (center < frame[:2]).any() or (center > frame[2:]).any():
            continue
        x, y = to_data(center)
        label = ax.text(
            x,
            y,
            text,
            fontsize=_FONT_SIZE,
            color=INK,
            ha='center',
            va='center',
            zorder=9,
            bbox=dict(
                boxstyle=f'round,pad={_PADDING}',
                facecolor='white',
                edgecolor=color,
                linewidth=0.8,
                alpha=0.85))
        label.set_in_layout(False)
        extent = label.get_window_extent().padded(
            (_PADDING * _FONT_SIZE + 1) * unit)
        rects, distances = _candidates(box, extent.width, extent.height, unit)
        inside = ((rects[:, :2] >= frame[:2]) &
                  (rects[:, 2:] <= frame[2:])).all(1)
        free = inside & [not _overlap(rect, placed).any() for rect in rects]
        if not free.any():
            label.remove()
            continue
        area = extent.width * extent.height
        cost = np.array([_overlap(rect, obstacles).sum() for rect in rects])
        cost = np.where(free, cost / area + _DISTANCE_COST * distances,
                        np.inf)
        best = int(cost.argmin())
        rect = rects[best]
        target = (rect[:2] + rect[2:]) / 2
        label.set_position(tuple(to_data(target)))
        if distances[best] > _DISTANCES[0]:
            x, y = to_data(np.stack([center, target])).T
            leader = Line2D(x, y, color=color, linewidth=0.7, zorder=8)
            leader.set_in_layout(False)
            ax.add_line(leader)
        placed = np.concatenate([placed, rect[None]])
    return len(placed)
