"""Gaussian peaks drawn in place, object by object."""
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import Form
from ._launch import launch
from ._math import exp

BLOCK = 256
# Programs per object, which share the cells of its square.
SLOTS = 8


def forward(centers: Tensor, radii: Tensor, labels: Tensor, num_classes: int,
            size: tuple[int, int]) -> Tensor:
    """Draw as :func:`sigplug.ops.gaussian_heatmap.draw_heatmap` does.

    The result is all the memory that it takes. An object whose radius is
    below 0, or whose label is out of range, draws nothing.
    """
    height, width = size
    # Numbers of at least 0 are ordered like their bits.
    bits = torch.zeros((num_classes, height, width), dtype=torch.int32,
                       device=centers.device)
    if len(centers) and bits.numel():
        slots = min(SLOTS, -(-height * width // BLOCK))
        launch(_draw, len(centers) * slots,
               (centers.contiguous(), radii.contiguous(), labels.contiguous(),
                bits), (num_classes, height, width, slots), (), (BLOCK, ))
    return bits.view(torch.float32)


FORM = Form('gaussian_heatmap', forward)


@triton.jit
def _draw(centers_ptr, radii_ptr, labels_ptr, bits_ptr, num_classes, height,
          width, slots, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    k, slot = program // slots, program % slots
    x = tl.load(centers_ptr + 2 * k).to(tl.int64)
    y = tl.load(centers_ptr + 2 * k + 1).to(tl.int64)
    radius = tl.load(radii_ptr + k).to(tl.int64)
    label = tl.load(labels_ptr + k).to(tl.int64)

    left, right = max(x - radius, 0), min(x + radius + 1, width)
    top, bottom = max(y - radius, 0), min(y + radius + 1, height)
    columns = max(right - left, 0)
    cells = columns * max(bottom - top, 0)
    if (label < 0) | (label >= num_classes):
        cells = cells * 0
    # 1 / (2 sigma**2) with sigma = (2 radius + 1) / 6.
    diameter = (2 * radius + 1).to(tl.float32)
    decay = tl.div_rn(18.0, diameter * diameter)
    for start in range(slot * BLOCK, cells, slots * BLOCK):
        place = start + tl.arange(0, BLOCK)
        row = place // columns
        cell_x, cell_y = left + place - row * columns, top + row
        squared = ((cell_x - x) * (cell_x - x)
                   + (cell_y - y) * (cell_y - y)).to(tl.float32)
        value = exp(-decay * squared).to(tl.int32, bitcast=True)
        tl.atomic_max(
            bits_ptr + (label * height + cell_y) * width + cell_x, value,
            mask=place < cells, sem='relaxed')
