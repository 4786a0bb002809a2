"""Draw the clipped sigmoid, the focal loss and the generalised mean.

These are the pictures of docs/numerics.md: the operations in several dtypes,
with the usual form beside ours.
"""
import argparse
from functools import partial
from pathlib import Path

import numpy as np
import stock_forms
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from report_numerics import CLIPPED, EXACT, STOCK, cell, with_gradient
from torch import Tensor

from sigplug.ops import clip_sigmoid, gem_pool
from sigplug.visualization import save_png
from sigplug.visualization.figure import INK, MUTED, new_figure, style_axes

DTYPES = dict(
    float32=torch.float32, float16=torch.float16, bfloat16=torch.bfloat16)
MAX_LOGIT = 12
NUM_POINTS = 4801
NUM_COLORS = 64

# The first lies below the others and shows beside them.
BELOW = dict(color='#b8bec9', linewidth=4.0)
OURS = dict(color='#2563eb', linewidth=1.6)
OTHER = dict(color='#059669', linewidth=1.6)
STOCK_LINE = dict(color='#d1352b', linewidth=1.3, linestyle=(0, (4, 2)))
STOCK_COLOR = STOCK_LINE['color']

# Places of the exact values at which a scale has no end.
ZERO_AT = 1e-6
ONE_AT = 14.0
# Only mmdet3d's form in bfloat16 exceeds it, by far.
MAX_LOSS = 14.0
MIN_POWER, MAX_POWER = 0.5, 100.0


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out-dir',
        type=Path,
        required=True,
        help=f'folder of the pictures, {", ".join(PICTURES)}')
    parser.add_argument(
        '--only',
        nargs='+',
        choices=list(PICTURES),
        default=list(PICTURES),
        metavar='PICTURE',
        help='draw only these of the pictures')
    args = parser.parse_args()
    if args.out_dir.exists() and not args.out_dir.is_dir():
        parser.error(f'--out-dir {args.out_dir} must be a folder, but is a '
                     'file')
    return args


def logits(dtype: torch.dtype) -> Tensor:
    """Those of a dtype, or as many as a picture can show."""
    x = torch.linspace(-MAX_LOGIT, MAX_LOGIT, NUM_POINTS, dtype=torch.float64)
    return x.to(dtype).unique()


def draw_sigmoids() -> Figure:
    """The activations and their gradients, one column for each dtype."""
    figure = new_figure((1500, 950))
    axes = figure.subplots(2, len(DTYPES), sharex=True, sharey='row')
    forms = {
        'sigmoid': (torch.sigmoid, BELOW),
        "ClipSigmoid(grad='straight_through')":
        (partial(clip_sigmoid, grad='straight_through'), OTHER),
        "ClipSigmoid(grad='zero')": (clip_sigmoid, OURS),
        "mmdet3d's clip_sigmoid": (stock_forms.clip_sigmoid, STOCK_LINE),
    }
    for (upper, lower), (name, dtype) in zip(axes.T, DTYPES.items()):
        x = logits(dtype)
        for label, (function, line) in forms.items():
            y, gradient = (t.double().numpy()
                           for t in with_gradient(function, x))
            upper.plot(x.double(), to_logit(y), label=label, **line)
            lower.plot(x.double(), gradient.clip(ZERO_AT), **line)
        style_axes(upper, name, xlabel='')
        style_axes(lower, '', xlabel='logit')
    values = np.array([1e-4, 0.01, 0.5, 0.99, 0.9999])
    axes[0, 0].set_yticks([*to_logit(values), ONE_AT],
                          ['1e-4', *map('{:g}'.format, values[1:]),
                           'exactly 1'])
    axes[0, 0].set_ylabel('value', fontsize=9)
    axes[1, 0].set_yscale('log')
    axes[1, 0].set_yticks([ZERO_AT, 1e-5, 1e-4, 1e-3, 0.01, 0.1],
                          ['exactly 0', '1e-5', '1e-4', '1e-3', '0.01', '0.1'])
    axes[1, 0].minorticks_off()
    axes[1, 0].set_ylabel('gradient', fontsize=9)
    axes[1, 0].set_xticks(range(-MAX_LOGIT, MAX_LOGIT + 1, 4))
    add_legend(figure, axes[0, 0])
    return figure


def to_logit(y: np.ndarray) -> np.ndarray:
    """Stretch what is near 0 and 1; the exact sigmoid becomes a line."""
    with np.errstate(divide='ignore'):
        return np.log(y / (1 - y)).clip(-ONE_AT, ONE_AT)


def draw_focal_losses() -> Figure:
    """Loss and gradient of the two kinds of cells, in each dtype."""
    figure = new_figure((1500, 1500))
    axes = figure.subplots(4, len(DTYPES), sharex=True, sharey='row')
    forms = {
        'ours, clip=None': (EXACT, {**BELOW, 'color': '#8fd6bb'}),
        'ours, clip=1e-4': (CLIPPED, OURS),
        "mmdet3d's clip_sigmoid, mmdet's GaussianFocalLoss":
        (STOCK, STOCK_LINE),
    }
    for column, (name, dtype) in zip(axes.T, DTYPES.items()):
        x = logits(dtype)
        for label, (form, line) in forms.items():
            for pair, target in zip(column.reshape(2, 2), (0.0, 1.0)):
                curves = with_gradient(cell(form, target), x)
                # The texts keep clear of the curves.
                for ax, y, side in zip(pair, curves, ('bottom', 'top')):
                    y = y.double().numpy()
                    ax.plot(x.double(), y, label=label, **line)
                    mark_end(ax, x.double().numpy(), y, side)
        for ax in column:
            style_axes(ax, '', xlabel='')
        column[0].set_title(name, loc='left', fontsize=10, color=INK)
        column[-1].set_xlabel('logit', fontsize=9)
    for ax, label in zip(axes[:, 0], ('background cell: loss', 'gradient',
                                      'peak: loss', 'gradient')):
        ax.set_ylabel(label, fontsize=9)
    for ax in axes[::2].flat:
        ax.set_ylim(-0.6, MAX_LOSS)
    axes[0, 0].set_xticks(range(-MAX_LOGIT, MAX_LOGIT + 1, 4))
    add_legend(figure, axes[0, 0])
    return figure


def mark_end(ax: Axes, x: np.ndarray, y: np.ndarray, side: str) -> None:
    """Say where a curve leaves the numbers, or the picture."""
    broken, high = ~np.isfinite(y), y > MAX_LOSS
    style = dict(color=STOCK_COLOR, fontsize=8.5)
    if broken.any():
        i = int(broken.argmax())
        ax.plot(x[i - 1], y[i - 1], 'X', color=STOCK_COLOR, markersize=7)
        ax.annotate(
            f'{name_of(y[i])} from\n{x[i]:.2f}', (x[i - 1], y[i - 1]),
            xytext=(-3, 6 if side == 'bottom' else -6),
            textcoords='offset points',
            ha='right',
            va=side,
            **style)
    elif high.any():
        i = int(high.argmax())
        ax.annotate(
            f'{y[i]:.1f} \u2191', (x[i], MAX_LOSS),
            xytext=(5, -12),
            textcoords='offset points',
            **style)


def name_of(value: float) -> str:
    return 'NaN' if np.isnan(value) else f'{value:g}'


def draw_means() -> Figure:
    """The generalised mean over p, from below the mean to the maximum."""
    figure = new_figure((1500, 620))
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    maps = {
        'Weak activations, 0 to 0.05': normal.abs() / normal.abs().max() / 20,
        'Activations, 0 to 3': normal.abs() / normal.abs().max() * 3,
        'Distances, 5 to 60 m': 5 + 55 * torch.linspace(
            0, 1, 64, dtype=torch.float64).square().view(8, 8),
    }
    powers = np.geomspace(MIN_POWER, MAX_POWER, 400)
    for ax, (title, x) in zip(figure.subplots(1, len(maps)), maps.items()):
        x = x.half()[None, None]
        style_axes(ax, title, xlabel='p')
        for value, label in ((x.double().mean().item(), 'mean'),
                             (x.max().item(), 'maximum')):
            ax.axhline(value, color=MUTED, linewidth=0.8)
            ax.annotate(
                label, (MAX_POWER, value),
                xytext=(-2, 3),
                textcoords='offset points',
                ha='right',
                fontsize=8.5,
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
        mark_breakdown(ax, powers, y)
        ax.set_xscale('log')
        ax.set_xticks([0.5, 1, 2, 5, 10, 20, 50, 100],
                      ['0.5', '1', '2', '5', '10', '20', '50', '100'])
        ax.minorticks_off()
        ax.set_xlim(MIN_POWER, MAX_POWER)
        ax.set_ylim(-0.03 * x.max().item(), 1.12 * x.max().item())
    add_legend(figure, ax)
    return figure


def mark_breakdown(ax: Axes, powers: np.ndarray, y: np.ndarray) -> None:
    """Say from which power on the textbook form is inf or 0."""
    broken = ~np.isfinite(y) | (y == 0)
    if not broken.any():
        return
    i = int(broken.argmax())
    ax.plot(powers[i - 1], y[i - 1], 'X', color=STOCK_COLOR, markersize=7)
    ax.annotate(
        f'{name_of(y[i])} from\np = {powers[i]:.1f}',
        (powers[i - 1], y[i - 1]),
        xytext=(8, -9),
        textcoords='offset points',
        va='top',
        fontsize=8.5,
        color=STOCK_COLOR,
        bbox=dict(color='white', pad=1.0))


def add_legend(figure: Figure, ax: Axes) -> None:
    """One legend below all axes."""
    figure.legend(
        *ax.get_legend_handles_labels(),
        loc='outside lower center',
        ncols=4,
        fontsize=8.5,
        frameon=False,
        labelcolor=INK)


def reduce_colors(path: Path) -> None:
    """Few colours are enough for lines, and make a third of the file."""
    picture = Image.open(path).convert('RGB').quantize(NUM_COLORS)
    picture.save(path, optimize=True)


PICTURES = {
    'curves_sigmoid.png': draw_sigmoids,
    'curves_focal_loss.png': draw_focal_losses,
    'curves_generalized_mean.png': draw_means,
}


def main() -> None:
    """Draw."""
    args = parse_args()
    for name in args.only:
        path = args.out_dir / name
        save_png(PICTURES[name](), path)
        reduce_colors(path)
        print(path, flush=True)


if __name__ == '__main__':
    main()
