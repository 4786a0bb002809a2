"""Arguments of ``draw_bev``; of a real data set: test_live_look.py."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet3d.datasets import NuScenesDataset
from mmdet3d.models import CenterHead
from mmdet3d.structures import (
    CameraInstance3DBoxes,
    Det3DDataSample,
    LiDARInstance3DBoxes,
)
from mmengine.structures import InstanceData
from torch import nn

from sigplug.engine.bev_frame import (
    HeatmapReader,
    ground_truth,
    predictions,
)


def test_objects_of_other_classes_are_not_drawn():
    dataset = NuScenesDataset.__new__(NuScenesDataset)
    dataset.label_mapping = {-1: -1, 4: 0}
    known = dict(bbox_3d=[1., 2, 3, 4, 5, 6, 0.7], velocity=[8., 9],
                 bbox_label_3d=4, num_lidar_pts=0)
    other = dict(known, bbox_label_3d=-1)
    for instances, boxes in (
            ([other, known], [[1, 2, 3, 4, 5, 6, 0.7, 8, 9]]),
            ([other], np.empty((0, 9)))):
        drawn = ground_truth(dataset, dict(instances=instances))
        np.testing.assert_array_equal(drawn['gt_bboxes'], boxes)
        assert len(drawn['gt_labels']) == len(drawn['gt_num_points']) == len(
            boxes)


def test_boxes_of_a_camera_are_drawn_where_the_points_are():
    """As in KITTI: x to the right, y down, z ahead; the angle about y."""
    x, y, z, length, height, width, angle = 1., 2., 30., 4., 1.5, 1.8, 0.3
    bboxes = CameraInstance3DBoxes(
        [[x, y, z, length, height, width, angle]])
    counts = np.array([7])
    drawn = ground_truth(object(), dict(eval_ann_info=dict(
        gt_bboxes_3d=bboxes, gt_labels_3d=np.array([2]),
        num_lidar_pts=counts)))
    np.testing.assert_allclose(
        drawn['gt_bboxes'],
        [[z, -x, -y, length, width, height, -angle - np.pi / 2]], rtol=1e-6)
    assert drawn['gt_labels'] == [2] and drawn['gt_num_points'] is counts
    assert ground_truth(object(), {}) == {}


def test_predictions_are_sure_and_finite():
    boxes = torch.arange(36.).view(4, 9)
    boxes[1, 3] = torch.inf
    sample = Det3DDataSample(pred_instances_3d=InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
        labels_3d=torch.arange(4), scores_3d=torch.tensor([.9, .8, .3, .2])))
    drawn = predictions(sample, score_thr=0.25)
    np.testing.assert_array_equal(drawn['pred_labels'], [0, 2])
    np.testing.assert_array_equal(drawn['pred_bboxes'], boxes[[0, 2]])
    np.testing.assert_allclose(drawn['pred_scores'], [.9, .3])


class Head(CenterHead):
    """Two tasks, two samples, 2 x 3 cells."""

    def __init__(self):
        nn.Module.__init__(self)
        self.bbox_coder = SimpleNamespace(
            pc_range=[-3, 5], voxel_size=[0.5, 0.25], out_size_factor=2)

    def forward(self, x):
        return [dict(heatmap=x[:, :1])], [dict(heatmap=x[:, 1:])]


def test_heatmap_of_a_sample_and_its_place():
    model = nn.Module()
    assert HeatmapReader.attach(model) is None
    model.pts_bbox_head = Head()
    reader = HeatmapReader.attach(model)
    # numpy has no bfloat16; the scores are not rounded to it either.
    x = torch.zeros(2, 3, 2, 3, dtype=torch.bfloat16)
    x[1, 2, 0, 1] = x[1, 0, 1, 2] = 1.5
    model.pts_bbox_head(x)
    drawn = reader.read(1)
    high = 1 / (1 + np.exp(-1.5))
    np.testing.assert_allclose(
        drawn['heatmap'], [[.5, high, .5], [.5, .5, high]], rtol=1e-6)
    # Three cells of 1 m and two of half a metre.
    assert drawn['heatmap_extent'] == pytest.approx((-3, 5, 0, 6))
    reader.close()
    assert not model.pts_bbox_head._forward_hooks
