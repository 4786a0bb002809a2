"""Figures of a fixed size in pixels, drawn without a display."""
import os
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from sigplug.files import replacing

DPI = 150
INK = '#1a1a1a'
MUTED = '#6b7280'
# For scores in [0, 1]; 0 is white.
HEAT_CMAP = LinearSegmentedColormap.from_list(
    'heat', [(0.0, '#ffffff'), (0.02, '#ffffff'), (0.1, '#fff0c8'),
             (0.3, '#fdc160'), (0.6, '#f08030'), (1.0, '#b82e0a')])


def new_figure(size: tuple[int, int]) -> Figure:
    """Make an empty figure of so many pixels (width, height).

    It is outside of pyplot: nothing is global, nothing to close.
    """
    figure = Figure(
        figsize=(size[0] / DPI, size[1] / DPI),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1),
        facecolor='white')
    FigureCanvasAgg(figure)
    return figure


def style_axes(ax: Axes, title: str, xlabel: str, ylabel: str = '') -> None:
    """Give axes their texts, a quiet frame and a quiet grid."""
    ax.set_title(title, loc='left', fontsize=11, color=INK)
    ax.set_xlabel(xlabel, fontsize=10, color=INK)
    ax.set_ylabel(ylabel, fontsize=10, color=INK)
    ax.tick_params(which='both', colors=MUTED, labelsize=9)
    ax.grid(color='#e5e7eb', linewidth=0.5)
    ax.set_axisbelow(True)
    ax.spines[:].set_color('#d1d5db')


def to_image(figure: Figure) -> np.ndarray:
    """Return the pixels of a figure, for mmengine's ``Visualizer.add_image``.

    They are RGB values as uint8, shape ``(height, width, 3)``.
    """
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg), 'comes from new_figure'
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def save_png(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as a PNG file, whole or not at all.

    The folder of ``path`` is made if missing.

    Raises:
        ValueError: ``path`` does not end in ``.png``.
    """
    path = os.fspath(path)
    if not path.lower().endswith('.png'):
        raise ValueError(f'path must end in .png, but is {path!r}')
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    # Stated, because a user's matplotlibrc may ask for another size.
    with replacing(path) as partial:
        figure.savefig(partial, format='png', dpi=figure.dpi,
                       bbox_inches=figure.bbox_inches)


def check_scores(name: str, value: Any) -> np.ndarray:
    """Return probabilities as an array; refuse logits and NaN."""
    array = np.asarray(value, dtype=np.float64)
    if array.size and not 0 <= array.min() <= array.max() <= 1:
        raise ValueError(
            f'{name} must lie in [0, 1], but reaches from {array.min():.4g} '
            f'to {array.max():.4g}: apply the sigmoid to logits')
    return array
