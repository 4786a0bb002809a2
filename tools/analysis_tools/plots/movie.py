"""Pictures one after the other, as a GIF."""
from pathlib import Path

import numpy as np
from PIL import Image

from sigplug.errors import UserError

COLORS = 48


def write_movie(folder: Path, out: Path, seconds: float) -> Path:
    """Join the PNG files of a folder, in the order of their names.

    Each is shown for so many seconds. All have the same colours: a file is
    small if little changes.
    """
    frames = [Image.open(path).convert('RGB')
              for path in sorted(folder.glob('*.png'))]
    if len({frame.size for frame in frames}) != 1:
        raise UserError(f'{folder} must have PNG files of one size.')
    strip = Image.fromarray(np.concatenate(
        frames[::max(1, len(frames) // 8)]))
    # That method keeps colours that are rare, as those of boxes are.
    palette = strip.quantize(COLORS, method=Image.Quantize.MAXCOVERAGE)
    first, *others = (frame.quantize(
        palette=palette, dither=Image.Dither.NONE) for frame in frames)
    out.parent.mkdir(parents=True, exist_ok=True)
    first.save(out, save_all=True, append_images=others, loop=0,
               duration=round(1000 * seconds), optimize=True)
    return out
