import numpy as np
import pytest

from sigplug.visualization import draw_ablation, save_png

NAMES = ['stock', 'ours']
VALUES = {
    'mAP': np.array([[0.3, 0.4], [0.5, 0.8]]),
    'NDS': np.array([[0.4, 0.6], [0.7, 0.8]]),
    'AP/car': np.array([[0.5, 0.7], [0.9, 0.9]]),
    'AP/traffic_cone': np.array([[0.5, 0.5], [0.2, 0.2]]),
}


def test_what_is_drawn(tmp_path):
    figure = draw_ablation(NAMES, VALUES)
    first, second, classes = figure.axes
    assert [ax.get_title(loc='left') for ax in (first, second)] == [
        'mAP', 'NDS']
    assert [tick.get_text() for tick in first.get_yticklabels()] == NAMES
    marks = [line for line in first.lines if line.get_marker() != 'None']
    np.testing.assert_array_equal(
        [line.get_xdata() for line in marks], VALUES['mAP'].T)
    means = [line.get_xdata()[0] for line in first.lines if line not in marks]
    assert means == pytest.approx([0.35, 0.65])
    # One standard deviation of the sample about the baseline's mean.
    band, = second.patches
    low, high = band.get_x(), band.get_x() + band.get_width()
    assert (low, high) == pytest.approx(
        (0.5 - 0.02**0.5, 0.5 + 0.02**0.5))
    assert [text.get_text() for text in classes.texts] == [
        '0.60', '0.50', '+0.30', '-0.30']
    assert [tick.get_text() for tick in classes.get_xticklabels()] == [
        'car', 'traffic cone']
    save_png(figure, tmp_path / 'a.png')


def test_one_seed_has_no_spread():
    first, second, _ = draw_ablation(
        NAMES, {key: value[:, :1] for key, value in VALUES.items()}).axes
    assert not first.patches and not second.patches


@pytest.mark.parametrize('names, values, words', [
    (NAMES, {'mAP': [[1.0], [2.0]]}, "must have 'NDS', but only has mAP"),
    (['a'], VALUES, r"values\['mAP'\] must have .* 1 configs, but has"),
    (NAMES, dict(VALUES, mAP=[1.0, 2.0]), r"'mAP'\] must have the shape"),
])
def test_wrong_values(names, values, words):
    with pytest.raises(ValueError, match=words):
        draw_ablation(names, values)
