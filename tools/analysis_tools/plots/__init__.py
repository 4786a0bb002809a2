"""Pictures that only the tools draw."""
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 150
INK, MUTED = '#1a1a1a', '#6b7280'
COLORS = ('#2563eb', '#d1352b', '#059669', '#f59e0b', '#7c3aed', '#0891b2',
          '#db2777', '#65a30d')


def new_figure(width: int, height: int) -> Figure:
    """Return an empty figure of a size in pixels, outside of pyplot."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI,
                    layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def style_axes(ax: Axes, title: str, xlabel: str, ylabel: str = '') -> None:
    """Give axes their texts and a quiet grid."""
    ax.set_title(title, loc='left', fontsize=10, color=INK)
    ax.set_xlabel(xlabel, fontsize=9, color=INK)
    ax.set_ylabel(ylabel, fontsize=9, color=INK)
    ax.tick_params(which='both', colors=MUTED, labelsize=8)
    ax.grid(color='#e5e7eb', linewidth=0.5)
    ax.set_axisbelow(True)
    ax.spines[:].set_color('#d1d5db')
