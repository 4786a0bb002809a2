import numpy as np
import pytest

from sigplug.visualization import bev_corners
from sigplug.visualization.bev_boxes import check_boxes


@pytest.fixture
def bboxes():
    rng = np.random.default_rng(0)
    return np.concatenate([
        rng.uniform(-50, 50, (40, 3)),
        rng.uniform(0.3, 12, (40, 3)),
        rng.uniform(-7, 7, (40, 1)),
    ], axis=1)


def test_corners_are_those_of_mmdet3d(bboxes):
    structures = pytest.importorskip('mmdet3d.structures')
    torch = pytest.importorskip('torch')
    reference = structures.LiDARInstance3DBoxes(
        torch.tensor(bboxes, dtype=torch.float32)).corners.numpy()
    # mmdet3d numbers the corners at the bottom 7, 4, 0, 3 from the front left
    # on clockwise.
    np.testing.assert_allclose(
        bev_corners(bboxes), reference[:, [7, 4, 0, 3], :2], atol=1e-4)


def test_front_of_a_box():
    # Heading to +y: the front is above, its left side at smaller x.
    corners = bev_corners(np.array([[10, 20, 0, 4, 2, 1.5, np.pi / 2]]))
    np.testing.assert_allclose(
        corners[0], [[9, 22], [11, 22], [11, 18], [9, 18]])


def test_inside_keeps_what_reaches_into_the_range():
    bboxes = np.array([
        [0.0, 0, 0, 4, 2, 1, 0],
        [11.5, 0, 0, 4, 2, 1, 0],
        [11.5, 0, 0, 4, 2, 1, np.pi / 2],
    ])
    boxes = check_boxes('gt', bboxes, [0, 1, 2], ('a', 'b', 'c'),
                        num_points=[5, 6, 7])
    kept = boxes.inside((-10, -10, 10, 10))
    np.testing.assert_array_equal(kept.bboxes, bboxes[:2])
    np.testing.assert_array_equal(kept.labels, [0, 1])
    np.testing.assert_array_equal(kept.num_points, [5, 6])
    assert kept.scores is None
