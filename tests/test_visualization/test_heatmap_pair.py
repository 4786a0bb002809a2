"""Pictures of heatmaps, pixel by pixel."""
import numpy as np
import pytest

from sigplug.visualization import draw_heatmap_pair

WHITE, RED, GREY = (255, 255, 255), (184, 46, 10), (107, 114, 128)


def test_two_rows_and_three_columns_by_hand():
    """Cells of 171 pixels: 512 / 3, rounded."""
    predicted, target = np.zeros((2, 3)), np.zeros((2, 3))
    # The first row is that of the smallest y, at the bottom.
    predicted[0, 2] = target[1, 0] = 1
    image = draw_heatmap_pair(predicted, target)
    assert image.dtype == np.uint8
    assert image.shape == (2 * 171 + 8, 6 * 171 + 12, 3)
    colors = np.empty_like(image)
    colors[:] = GREY
    for left in (4, 4 + 3 * 171 + 4):
        colors[4:-4, left:left + 3 * 171] = WHITE
    colors[4 + 171:4 + 2 * 171, 4 + 2 * 171:4 + 3 * 171] = RED
    colors[4:4 + 171, 8 + 3 * 171:8 + 4 * 171] = RED
    np.testing.assert_array_equal(image, colors)


@pytest.mark.parametrize('shape, size', [
    ((128, 128), (520, 1036)), ((500, 10), (508, 32)), ((600, 900),
                                                        (608, 1812)),
])
def test_size(shape, size):
    image = draw_heatmap_pair(np.zeros(shape), np.ones(shape))
    assert image.shape == (*size, 3)


@pytest.mark.parametrize('predicted, target, words', [
    (np.zeros((2, 3)), np.zeros((3, 2)), 'could not broadcast'),
    (np.zeros((2, 3)), np.full((2, 3), 1.5), 'target must lie in .0, 1.'),
])
def test_bad_maps(predicted, target, words):
    with pytest.raises(ValueError, match=words):
        draw_heatmap_pair(predicted, target)
