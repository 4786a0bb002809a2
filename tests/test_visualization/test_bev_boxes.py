import numpy as np
import torch
from mmdet3d.structures import LiDARInstance3DBoxes

from sigplug.visualization import bev_corners
from sigplug.visualization.bev_boxes import gather_boxes


def test_corners_are_those_of_mmdet3d():
    rng = np.random.default_rng(0)
    bboxes = rng.uniform([-50] * 3 + [0.3] * 3 + [-7],
                         [50] * 3 + [12] * 3 + [7], (40, 7))
    reference = LiDARInstance3DBoxes(
        torch.tensor(bboxes, dtype=torch.float32)).corners.numpy()
    # mmdet3d numbers the corners at the bottom 7, 4, 0, 3 from the front left
    # on clockwise.
    np.testing.assert_allclose(
        bev_corners(bboxes), reference[:, [7, 4, 0, 3], :2], atol=1e-4)


def test_inside_keeps_what_reaches_into_the_range():
    bboxes = np.array([
        [0.0, 0, 0, 4, 2, 1, 0],
        [11.5, 0, 0, 4, 2, 1, 0],
        [11.5, 0, 0, 4, 2, 1, np.pi / 2],
    ])
    kept = gather_boxes(bboxes, [0, 1, 2], num_points=[5, 6, 7]).inside(
        (-10, -10, 10, 10))
    np.testing.assert_array_equal(kept.bboxes, bboxes[:2])
    np.testing.assert_array_equal(kept.labels, [0, 1])
    np.testing.assert_array_equal(kept.num_points, [5, 6])
    assert kept.scores is None
