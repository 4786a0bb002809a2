import numpy as np
import torch
from mmdet3d.structures import LiDARInstance3DBoxes

from sigplug.visualization import bev_corners


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
