"""Figures of a fixed size in pixels, drawn without a display."""
import os
from numbers import Integral

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

DPI = 150
# What matplotlib can draw.
MOST_PIXELS = 2**16 - 1
INK = '#1a1a1a'
MUTED = '#6b7280'
# Of scores in [0, 1]; nothing is white.
HEAT_CMAP = LinearSegmentedColormap.from_list(
    'heat', [(0.0, '#ffffff'), (0.02, '#ffffff'), (0.1, '#fff0c8'),
             (0.3, '#fdc160'), (0.6, '#f08030'), (1.0, '#b82e0a')])


def new_figure(size: tuple[int, int]) -> Figure:
    """Make a figure outside pyplot: nothing is global, nothing to close.

    Args:
        size (tuple[int, int]): Width and height in pixels.

    Returns:
        Figure: An empty figure with constrained layout.
    """
    if (not isinstance(size, (tuple, list)) or len(size) != 2 or not all(
            isinstance(side, Integral) and 200 <= side <= MOST_PIXELS
            for side in size)):
        raise ValueError('size must be (width, height) of 200 to '
                         f'{MOST_PIXELS} pixels each, but is {size!r}')
    figure = Figure(
        figsize=(size[0] / DPI, size[1] / DPI),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1),
        facecolor='white')
    FigureCanvasAgg(figure)
    return figure


def check_title(title: str) -> None:
    """Raise a ``TypeError`` unless ``title`` is a text."""
    if not isinstance(title, str):
        raise TypeError(f'title must be a text, but is {title!r}')


def style_axes(ax: Axes, title: str, xlabel: str, ylabel: str = '') -> None:
    """Give axes their texts, a quiet frame and a quiet grid."""
    ax.set_title(title, loc='left', fontsize=10, color=INK)
    ax.set_xlabel(xlabel, fontsize=9, color=INK)
    ax.set_ylabel(ylabel, fontsize=9, color=INK)
    ax.tick_params(which='both', colors=MUTED, labelsize=8)
    ax.grid(color='#e5e7eb', linewidth=0.5)
    ax.set_axisbelow(True)
    ax.spines[:].set_color('#d1d5db')


def to_image(figure: Figure) -> np.ndarray:
    """The pixels of a figure, for ``Visualizer.add_image`` of mmengine.

    Args:
        figure (Figure): The figure.

    Returns:
        np.ndarray: RGB values as uint8, shape ``(height, width, 3)``.
    """
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg), 'comes from new_figure'
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def save_png(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as a PNG file, whole or not at all.

    Args:
        figure (Figure): The figure.
        path (str | PathLike): The file; its folder is made if missing.
    """
    if not isinstance(figure, Figure):
        raise TypeError(f'figure must be a Figure, but is {figure!r}')
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f'path must be a path, but is {path!r}')
    path = os.fspath(path)
    if not path.lower().endswith('.png'):
        raise ValueError(f'path must end in .png, but is {path!r}')
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    partial = f'{path}.part'
    # Stated, because a user's matplotlibrc may ask for another size.
    figure.savefig(
        partial,
        format='png',
        dpi=figure.dpi,
        bbox_inches=figure.bbox_inches)
    os.replace(partial, path)
