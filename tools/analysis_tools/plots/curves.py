"""The pictures of docs/numerics.md: the operations in several dtypes."""
from collections.abc import Iterator

import numpy as np
import stock_forms
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from pages.measure import with_gradient
from pages.numerics import CLIPPED, EXACT, STOCK, cell, straight_through

from sigplug.ops import clip_sigmoid, gem_pool
from sigplug.visualization.figure import INK, MUTED, new_figure, style_axes

from . import WIDTH

DTYPES = dict(
    float32=torch.float32, float16=torch.float16, bfloat16=torch.bfloat16)
MAX_LOGIT = 12
# The first lies below the others and shows beside them.
BELOW = dict(color='#b8bec9', linewidth=4.0)
OURS = dict(color='#2563eb', linewidth=1.6)
OTHER = dict(color='#059669', linewidth=1.6)
STOCK_COLOR = '#d1352b'
STOCK_LINE = dict(color=STOCK_COLOR, linewidth=1.3, linestyle=(0, (4, 2)))
# Places of the exact values at which a scale has no end.
ZERO_AT, ONE_AT = 1e-6, 14.0
# Only mmdet3d's form in bfloat16 exceeds it, by far.
MAX_LOSS = 14.0


def logits(dtype: torch.dtype) -> torch.Tensor:
    """Return the logits of a dtype, or as many as a picture can show."""
    x = torch.linspace(-MAX_LOGIT, MAX_LOGIT, 4801, dtype=torch.float64)
    return x.to(dtype).unique()


def columns(axes: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield a column of axes and the logits for each dtype."""
    for column, (name, dtype) in zip(axes.T, DTYPES.items()):
        yield column, logits(dtype)
        for ax in column:
            style_axes(ax, '', '')
        column[0].set_title(name, loc='left', fontsize=11, color=INK)
        column[-1].set_xlabel('logit', fontsize=10)
    axes[0, 0].set_xticks(range(-MAX_LOGIT, MAX_LOGIT + 1, 6))
    axes[0, 0].figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc='outside lower center',
        ncols=2, fontsize=10, frameon=False, labelcolor=INK)


def draw_sigmoids() -> Figure:
    figure = new_figure((WIDTH, 950))
    axes = figure.subplots(2, len(DTYPES), sharex=True, sharey='row')
    forms = {
        'sigmoid': (torch.sigmoid, BELOW),
        "ClipSigmoid(grad='straight_through')": (straight_through, OTHER),
        "ClipSigmoid(grad='zero')": (clip_sigmoid, OURS),
        "mmdet3d's clip_sigmoid": (stock_forms.clip_sigmoid, STOCK_LINE),
    }
    for (upper, lower), x in columns(axes):
        for label, (function, line) in forms.items():
            y, gradient = (t.double().numpy()
                           for t in with_gradient(function, x))
            upper.plot(x.double(), to_logit(y), label=label, **line)
            lower.plot(x.double(), gradient.clip(ZERO_AT), **line)
    ticks = np.array([1e-4, 0.01, 0.5, 0.99, 0.9999])
    axes[0, 0].set_yticks([*to_logit(ticks), ONE_AT],
                          [*map('{:g}'.format, ticks), 'exactly 1'])
    axes[0, 0].set_ylabel('value', fontsize=10)
    axes[1, 0].set_yscale('log')
    axes[1, 0].set_yticks([ZERO_AT, 1e-4, 0.01], ['exactly 0', '1e-4', '0.01'])
    axes[1, 0].minorticks_off()
    axes[1, 0].set_ylabel('gradient', fontsize=10)
    return figure


def to_logit(y: np.ndarray) -> np.ndarray:
    """Stretch the ends of (0, 1); the exact sigmoid becomes a line."""
    with np.errstate(divide='ignore'):
        return np.log(y / (1 - y)).clip(-ONE_AT, ONE_AT)


def draw_focal_losses() -> Figure:
    figure = new_figure((WIDTH, 1500))
    axes = figure.subplots(4, len(DTYPES), sharex=True, sharey='row')
    forms = {
        'ours, clip=None': (EXACT, {**BELOW, 'color': '#8fd6bb'}),
        'ours, clip=1e-4': (CLIPPED, OURS),
        "mmdet3d's clip_sigmoid, mmdet's GaussianFocalLoss":
        (STOCK, STOCK_LINE),
    }
    for column, x in columns(axes):
        for label, (form, line) in forms.items():
            for pair, target in zip(column.reshape(2, 2), (0.0, 1.0)):
                curves = with_gradient(cell(form, target), x)
                # The texts keep clear of the curves.
                for ax, y, side in zip(pair, curves, ('bottom', 'top')):
                    y = y.double().numpy()
                    ax.plot(x.double(), y, label=label, **line)
                    if (y[np.isfinite(y)] > MAX_LOSS).any():
                        ax.annotate(f'{y[np.isfinite(y)].max():.1f} \u2191',
                                    (6.5, MAX_LOSS - 1), color=STOCK_COLOR,
                                    fontsize=9.5)
                    mark_end(ax, x.double().numpy(), y, side)
    for ax, label in zip(axes[:, 0], ('background cell: loss', 'gradient',
                                      'peak: loss', 'gradient')):
        ax.set_ylabel(label, fontsize=10)
    for ax in axes[::2].flat:
        ax.set_ylim(-0.6, MAX_LOSS)
    return figure


def mark_end(ax: Axes, x: np.ndarray, y: np.ndarray, side: str,
             name: str = '') -> None:
    """Mark the last value before inf, NaN or, of a mean, 0."""
    broken = ~np.isfinite(y) | ((y == 0) & bool(name))
    if not broken.any():
        return
    i = int(broken.argmax())
    value = 'NaN' if np.isnan(y[i]) else f'{y[i]:g}'
    ax.plot(x[i - 1], y[i - 1], 'X', color=STOCK_COLOR, markersize=7)
    ax.annotate(f'{value} from\n{name}{x[i]:.3g}', (x[i - 1], y[i - 1]),
                xytext=(8 if name else -3, 6 if side == 'bottom' else -6),
                textcoords='offset points', ha='left' if name else 'right',
                va=side, fontsize=9.5, color=STOCK_COLOR,
                path_effects=[withStroke(linewidth=3, foreground='white')])


def draw_means() -> Figure:
    figure = new_figure((WIDTH, 620))
    normal = torch.randn(8, 8, generator=torch.Generator().manual_seed(0),
                         dtype=torch.float64).abs()
    maps = {
        'Activations, 0 to 0.05': normal / normal.max() / 20,
        'Activations, 0 to 3': normal / normal.max() * 3,
        'Distances, 5 to 60 m': 5 + 55 * torch.linspace(
            0, 1, 64, dtype=torch.float64).square().view(8, 8),
    }
    powers = np.geomspace(0.5, 100.0, 400)
    for ax, (title, x) in zip(figure.subplots(1, len(maps)), maps.items()):
        x = x.half()[None, None]
        top = x.max().item()
        style_axes(ax, title, 'p')
        for value, label in ((x.double().mean().item(), 'mean'),
                             (top, 'maximum')):
            ax.axhline(value, color=MUTED, linewidth=0.8)
            ax.annotate(label, (powers[-1], value), xytext=(-2, 3),
                        textcoords='offset points', ha='right', fontsize=9.5,
                        color=MUTED)
        forms = {
            'ours, float64': (gem_pool, x.double(),
                              {**BELOW, 'color': '#a9c4f5'}),
            'ours, float16': (gem_pool, x, OURS),
            'textbook GeM, float16': (stock_forms.gem, x, STOCK_LINE),
        }
        for label, (pool, values, line) in forms.items():
            y = np.array([pool(values, p).item() for p in powers])
            ax.plot(powers, y, label=label, **line)
        mark_end(ax, powers, y, 'top', 'p = ')
        ticks = [0.5, 1, 3, 10, 30, 100]
        ax.set_xscale('log')
        ax.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
        ax.minorticks_off()
        ax.set_ylim(-0.03 * top, 1.12 * top)
    figure.legend(*ax.get_legend_handles_labels(), ncols=3, fontsize=10,
                  loc='outside lower center', frameon=False, labelcolor=INK)
    return figure


PICTURES = {
    'curves_sigmoid.png': draw_sigmoids,
    'curves_focal_loss.png': draw_focal_losses,
    'curves_generalized_mean.png': draw_means,
}
