"""A heatmap beside its target, each cell a square of whole pixels."""
import numpy as np

from .figure import HEAT_CMAP, check_scores

# About the length of the longer side of each map, in pixels.
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
        ValueError: The maps differ in shape, or hold no scores.
    """
    predicted = check_scores('predicted', predicted)
    target = check_scores('target', target)
    cell = max(1, round(SIDE / max(target.shape)))
    height, width = cell * target.shape[0], cell * target.shape[1]
    image = np.full((height + 2 * FRAME, 2 * width + 3 * FRAME, 3),
                    FRAME_COLOR, dtype=np.uint8)
    for scores, left in ((predicted, FRAME), (target, width + 2 * FRAME)):
        colors = (255 * HEAT_CMAP(scores[::-1])[..., :3]).round()
        image[FRAME:-FRAME, left:left + width] = colors.repeat(
            cell, 0).repeat(cell, 1)
    return image
