"""A heatmap beside its target, one cell for some whole number of pixels."""
import numpy as np

from .bev_boxes import check_array, check_scores
from .figure import HEAT_CMAP

# Of the longer side of each map, about.
SIDE = 512
FRAME = 4
FRAME_COLOR = (107, 114, 128)


def draw_heatmap_pair(predicted: np.ndarray,
                      target: np.ndarray) -> np.ndarray:
    """Draw a predicted heatmap and, to its right, the target.

    As in a bird's-eye view x grows to the right and y upwards. Each cell is a
    square of ``k = max(1, round(512 / max(H, W)))`` pixels; a frame of 4
    pixels is around and between the maps.

    Args:
        predicted (np.ndarray): Scores in [0, 1], shape ``(H, W)``: rows along
            y, columns along x.
        target (np.ndarray): What they should be, of the same shape.

    Returns:
        np.ndarray: RGB values as uint8, shape
        ``(k * H + 8, 2 * k * W + 12, 3)``.

    Raises:
        ValueError: The maps differ in shape, or are no scores.
    """
    maps = dict(predicted=predicted, target=target)
    for name, value in maps.items():
        maps[name] = check_array(name, value, ndim=2, min_columns=1)
        check_scores(name, maps[name])
    if maps['predicted'].shape != maps['target'].shape:
        raise ValueError(
            'predicted and target must have one shape, but have '
            f'{maps["predicted"].shape} and {maps["target"].shape}')
    cell = max(1, round(SIDE / max(maps['target'].shape)))
    framed = []
    for scores in maps.values():
        colors = (255 * HEAT_CMAP(scores[::-1])[..., :3]).round()
        framed.append(colors.astype(np.uint8).repeat(cell, 0).repeat(cell, 1))
        framed.append(_bar(len(framed[-1])))
    pair = np.concatenate([framed[-1], *framed], axis=1)
    bar = _bar(pair.shape[1]).transpose(1, 0, 2)
    return np.concatenate([bar, pair, bar])


def _bar(length: int) -> np.ndarray:
    """A piece of the frame, upright."""
    return np.full((length, FRAME, 3), FRAME_COLOR, dtype=np.uint8)
