"""Overlaps and predictions, against mmcv and mmdet3d's CenterHead."""
import numpy as np
import pytest
import torch
from mmcv.ops import box_iou_rotated
from mmdet3d.models.dense_heads import centerpoint_head
from mmdet3d.models.layers.box3d_nms import circle_nms
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.registry import init_default_scope
from test_models.test_dense_heads import center_heads

from sigplug.deploy import Detector, boxes

SQUARE = [0, 0, 2, 2, 0]


def random_boxes(n):
    """Boxes of all sizes and headings; many overlap."""
    random = np.random.default_rng(0)
    return np.concatenate([
        random.uniform(-4, 4, (n, 2)), random.uniform(0.1, 6, (n, 2)),
        random.uniform(-4, 4, (n, 1))], axis=1)


@pytest.mark.parametrize('other, iou', [
    (SQUARE, 1), ([2, 0, 2, 2, 0], 0), ([5, 0, 2, 2, 0], 0),
    ([0, 0, 1, 1, 0], 1 / 4), ([1, 0, 2, 2, 0], 1 / 3),
    ([0, 0, 2, 2, np.pi / 2], 1), ([0, 0, 2, 2, 7], None),
    # Of a square and one turned by 45 degrees: an octagon of 8 (sqrt(2) - 1).
    ([0, 0, 2, 2, np.pi / 4], 1 / np.sqrt(2)),
    # A cross; the same far away; boxes without an area.
    ([0, 0, 6, 1, 0], 2 / 8), ([0, 0, 0, 2, 0], 0), ([0, 0, 0, 0, 1], 0)])
@pytest.mark.parametrize('place', [0, 1e4])
@pytest.mark.parametrize('turn', [0, 0.3])
def test_worked_overlaps(other, iou, place, turn):
    pair = np.array([SQUARE, other], dtype=np.float64)
    cos, sin = np.cos(turn), np.sin(turn)
    pair[:, :2] = pair[:, :2] @ [[cos, sin], [-sin, cos]] + place
    pair[:, 4] += turn
    found = boxes.rotated_iou(pair[:1], pair[1:])
    if iou is None:
        iou = box_iou_rotated(*torch.tensor(pair - [place, place, 0, 0, 0])
                              .float().split(1)).item()
        assert found == pytest.approx(iou, abs=1e-5)
    else:
        assert found == pytest.approx(iou, abs=1e-9)


@pytest.mark.parametrize('angle', [1e-14, 1e-10, 1e-7])
def test_edges_that_nearly_coincide(angle):
    pair = np.array([[5, 7, 4, 2, 0.3], [5, 7, 4, 2, 0.3 + angle]])
    found = boxes.rotated_iou(pair[:1], pair[1:])
    assert found == pytest.approx(1, abs=1e-5)


def test_overlaps_are_those_of_mmcv():
    some = random_boxes(120)
    found = boxes.overlaps(some)
    tensor = torch.tensor(some, dtype=torch.float32)
    wanted = np.triu(box_iou_rotated(tensor, tensor).numpy(), 1)
    assert (wanted > 0).sum() > 2000
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)


def test_boxes_that_are_not_finite_overlap_none():
    some = random_boxes(4)
    some[1, 2], some[2] = np.inf, np.nan
    found = boxes.overlaps(some)
    assert np.isfinite(found[0, 3]) and not found[[1, 2]].any()


def make_head(nms, norm_bbox=True, vel=True):
    """A stock head with two tasks, and its description."""
    init_default_scope('mmdet3d')
    coder = dict(center_heads.config(vel)['bbox_coder'], score_threshold=0.3)
    head, _ = center_heads.both(
        velocity=vel, norm_bbox=norm_bbox, bbox_coder=coder, tasks=[
            dict(num_class=1, class_names=['car']),
            dict(num_class=2, class_names=['bus', 'truck'])])
    head.test_cfg.update(
        nms_type=nms, min_radius=[1.5, 4.0], nms_thr=0.1, post_max_size=12,
        score_threshold=0.35)
    return head, dict(
        tasks=[['car'], ['bus', 'truck']], heatmap='logits', nms=head.test_cfg,
        coder=dict(coder, norm_bbox=norm_bbox), box_size=7 + 2 * vel)


@pytest.mark.parametrize('nms', ['rotate', 'circle'])
@pytest.mark.parametrize('norm_bbox, vel', [(True, True), (False, False)])
def test_predictions_are_those_of_mmdet3d(nms, norm_bbox, vel, monkeypatch):
    # Compiling takes longer than all of these tests.
    monkeypatch.setattr(centerpoint_head, 'circle_nms', circle_nms.py_func)
    head, about = make_head(nms, norm_bbox, vel)
    outputs = []
    for classes in (1, 2):
        maps = dict(
            heatmap=torch.randn(1, classes, 24, 32), reg=torch.rand(
                1, 2, 24, 32), height=9 * torch.randn(1, 1, 24, 32),
            dim=torch.rand(1, 3, 24, 32), rot=torch.randn(1, 2, 24, 32))
        if vel:
            maps['vel'] = torch.randn(1, 2, 24, 32)
        outputs.append([maps])
    wanted, = head.predict_by_feat(
        outputs, [dict(box_type_3d=LiDARInstance3DBoxes)])

    detector = object.__new__(Detector)
    detector.about = about
    found = detector.decode({
        f'task{i}.{name}': value.numpy()
        for i, (maps, ) in enumerate(outputs) for name, value in maps.items()})
    assert len(wanted) > 10 and set(found.labels) == {0, 1, 2}
    np.testing.assert_array_equal(found.labels, wanted.labels_3d.numpy())
    np.testing.assert_allclose(found.scores, wanted.scores_3d, atol=1e-6)
    np.testing.assert_allclose(
        found.boxes, wanted.bboxes_3d.tensor, rtol=0, atol=1e-5)


def test_fewer_cells_than_boxes_are_no_error():
    maps = {name: np.zeros((n, 2, 3), 'f') for name, n in dict(
        heatmap=2, reg=2, height=1, dim=3, rot=2).items()}
    _, about = make_head('rotate', vel=False)
    found, scores, labels = boxes.decode(maps, about['coder'], 'probability')
    assert found.shape == (12, 7) and not scores.any()
    np.testing.assert_array_equal(labels, [0] * 6 + [1] * 6)
