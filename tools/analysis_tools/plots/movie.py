"""Pictures one after the other, as a GIF."""
from pathlib import Path

from PIL import Image

from sigplug.errors import UserError

# For all pictures: a file is small if little changes.
COLORS = 48


def write_movie(folder: Path, out: Path, seconds: float) -> Path:
    """Join the PNG files of a folder, in the order of their names.

    Args:
        folder (Path): The folder; its pictures have one size.
        out (Path): The GIF file; its folder is made if missing.
        seconds (float): How long a picture is shown.

    Returns:
        Path: The file.

    Raises:
        UserError: There are no pictures, or they differ in size.
    """
    frames = [Image.open(path).convert('RGB')
              for path in sorted(folder.glob('*.png'))]
    sizes = {frame.size for frame in frames}
    if len(sizes) != 1:
        raise UserError(f'{folder} must have PNG files of one size, but has '
                        f'{len(frames)} of the sizes {sorted(sizes)}')
    some = frames[::max(1, len(frames) // 8)]
    width, height = frames[0].size
    strip = Image.new('RGB', (width, height * len(some)))
    for i, frame in enumerate(some):
        strip.paste(frame, (0, i * height))
    # That method keeps colours that are rare, as those of boxes are.
    palette = strip.quantize(COLORS, method=Image.Quantize.MAXCOVERAGE)
    first, *others = (frame.quantize(
        palette=palette, dither=Image.Dither.NONE) for frame in frames)
    out.parent.mkdir(parents=True, exist_ok=True)
    first.save(out, save_all=True, append_images=others, loop=0,
               duration=round(1000 * seconds), optimize=True)
    return out
