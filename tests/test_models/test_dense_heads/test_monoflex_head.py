"""The head completes upstream's, whose losses end in errors."""
import copy
import math

import pytest
import torch
from mmdet3d.models.dense_heads import MonoFlexHead as StockHead
from mmdet3d.models.dense_heads.monoflex_head import gen_gaussian_target
from mmdet3d.structures import CameraInstance3DBoxes, Det3DDataSample
from mmengine.structures import InstanceData

from sigplug.models.dense_heads import MonoFlexHead
from sigplug.models.dense_heads.monoflex_head import multibin_loss
from sigplug.ops import gaussian_radius

SIZE, STRIDE = 128, 4
CAM2IMG = [[90.0, 0, 60, 0.2], [0, 90, 62, -0.1], [0, 0, 1, 0], [0, 0, 0, 1]]
META = dict(pad_shape=(SIZE, SIZE), img_shape=(SIZE, SIZE), cam2img=CAM2IMG,
            box_type_3d=CameraInstance3DBoxes)
CFG = dict(
    num_classes=3, in_channels=8, use_edge_fusion=False, edge_fusion_inds=[],
    edge_heatmap_ratio=1 / 8, stacked_convs=0, feat_channels=8,
    use_direction_classifier=False, diff_rad_by_sin=False, pred_attrs=False,
    pred_velo=False, dir_offset=0, strides=None,
    group_reg_dims=((4, ), (2, ), (20, ), (3, ), (3, ), (8, 8), (1, ), (1, )),
    cls_branch=(16, ), reg_branch=((16, ), ) * 8, num_attrs=0,
    bbox_code_size=7, dir_branch=(), attr_branch=(),
    bbox_coder=dict(
        type='MonoFlexCoder', depth_mode='exp', base_depth=(26.5, 16.1),
        depth_range=[0.1, 100], combine_depth=True,
        uncertainty_range=[-10, 10],
        base_dims=((3.9, 1.5, 1.6, 0.4, 0.1, 0.1),
                   (0.8, 1.8, 0.7, 0.2, 0.1, 0.1),
                   (1.8, 1.7, 0.6, 0.2, 0.1, 0.1)),
        dims_mode='linear', multibin=True, num_dir_bins=4,
        bin_centers=[0, math.pi / 2, math.pi, -math.pi / 2],
        bin_margin=math.pi / 6, code_size=7),
    conv_bias=True, dcn_on_last_conv=False)


def build(cls=MonoFlexHead, **kwargs):
    torch.manual_seed(0)
    return cls(**copy.deepcopy(dict(CFG, **kwargs)))


def sample(places, labels=None):
    """Boxes at (x, y, z) of their gravity centre, with what belongs there."""
    places = torch.tensor(places).float().view(-1, 3)
    count = len(places)
    labels = torch.tensor(labels or [i % 3 for i in range(count)]).long()
    size = torch.tensor([[3.9, 1.5, 1.6]]).repeat(count, 1)
    yaw = torch.linspace(-2, 2.5, count).view(-1, 1)
    boxes = CameraInstance3DBoxes(
        torch.cat((places, size, yaw), 1), box_dim=7, origin=(0.5, 0.5, 0.5))
    camera = torch.tensor(CAM2IMG)

    def project(points):
        image = points @ camera[:3, :3].T + camera[:3, 3]
        return image[..., :2] / image[..., 2:]

    corners = project(boxes.corners)
    flat = torch.cat((corners.amin(1), corners.amax(1)), 1).clamp(0, SIZE - 1)
    found = Det3DDataSample(metainfo=META)
    found.gt_instances_3d = InstanceData(
        bboxes_3d=boxes, labels_3d=labels, centers_2d=project(places),
        depths=places[:, 2])
    found.gt_instances = InstanceData(bboxes=flat, labels=labels)
    return found


def batch():
    return [sample([(-2, 0.5, 12), (3, 1, 15), (0.5, -1, 20)]),
            sample([(1, 0.2, 10)])]


def targets(head, samples):
    return head.get_targets(
        [s.gt_instances_3d for s in samples],
        [s.gt_instances for s in samples],
        (len(samples), 3, SIZE // STRIDE, SIZE // STRIDE),
        [s.metainfo for s in samples])


@pytest.mark.parametrize('fusion', [
    {}, dict(use_edge_fusion=True, edge_fusion_inds=[(1, 0)],
             cls_branch=(256, ), reg_branch=((256, ), ) * 8)])
def test_forward_equals_the_stock_heads(fusion):
    stock, ours = build(StockHead, **fusion), build(**fusion)
    ours.load_state_dict(stock.state_dict(), strict=True)
    x = [torch.randn(2, 8, 32, 32)]
    (scores, ), (boxes, ) = stock(x, [META] * 2)
    (logits, ), (ours_boxes, ) = ours(x, [META] * 2)
    assert logits.sigmoid().clamp(1e-4, 1 - 1e-4).equal(scores)
    assert ours_boxes.equal(boxes)


@pytest.mark.parametrize('outside', [False, True])
def test_heatmap_against_a_loop(outside):
    """Round peaks by mmdet's function, ellipses by the formula."""
    head = build(filter_outside_objs=not outside, edge_heatmap_ratio=0.9)
    samples = batch()
    if outside:
        # Its centre is to the left of the image.
        samples[0] = sample([(-2, 0.5, 12), (-5, 0.3, 6)], [0, 1])
    heatmap, peaks, _ = targets(head, samples)
    expected = torch.zeros_like(heatmap)
    for i, s in enumerate(samples):
        for label, box, center in zip(
                s.gt_instances.labels, s.gt_instances.bboxes / STRIDE,
                s.gt_instances_3d.centers_2d / STRIDE):
            if (center > 0).all():
                extent = box[2:] - box[:2]
                radius = int(gaussian_radius(
                    extent[1:], extent[:1], 0.7, exact=True))
                gen_gaussian_target(expected[i, label],
                                    [int(v) for v in center], radius)
                continue
            cell = 0, heatmap[i, label, :, 0].argmax()
            # One side of the box is at the border of the image.
            radius = int(min(cell[1] - box[1], box[3] - cell[1]) * 0.9)
            for dy in range(-radius, radius + 1):
                expected[i, label, cell[1] + dy, 0] = math.exp(
                    -dy**2 / (2 * ((2 * radius + 1) / 6)**2))
            assert radius > 0
    torch.testing.assert_close(heatmap, expected, rtol=0, atol=1e-6)
    assert peaks == 3 if outside else peaks == 4


def test_perfect_outputs_give_the_boxes_back_and_no_loss():
    head, samples = build().eval(), batch()
    _, _, target = targets(head, samples)
    reg = torch.zeros(2, 50, 32, 32)
    logits = torch.full((2, 3, 32, 32), -9.0)
    cell, i = target['cell'], target['sample']
    means = torch.tensor(CFG['bbox_coder']['base_dims'])[target['labels']]
    holds, angle = target['orientations'].split(4, 1)
    values = torch.cat((
        cell - target['bboxes'][:, :2], target['bboxes'][:, 2:] - cell,
        target['offsets'], target['keypoints'].flatten(1),
        torch.full((4, 3), 9.0),  # keypoints give no depth here
        (target['dimensions'] - means[:, 3:]) / means[:, :3],
        torch.stack((-20 * holds, 20 * holds - 10), 2).flatten(1),
        torch.stack((angle.sin(), angle.cos()), 2).flatten(1),
        target['depth'].log().unsqueeze(1), torch.full((4, 1), -9.0)), 1)
    reg[i, :, cell[:, 1], cell[:, 0]] = values
    logits[i, target['labels'], cell[:, 1], cell[:, 0]] = 9.0

    found = head.predict_by_feat([logits], [reg], [META] * 2)
    for result, s in zip(found, samples):
        gt = s.gt_instances_3d.bboxes_3d
        order = torch.cdist(gt.tensor[:, :3],
                            result.bboxes_3d.tensor[:, :3]).argmin(1)
        assert len(result.scores_3d) == len(gt.tensor)
        torch.testing.assert_close(
            result.bboxes_3d.tensor[order], gt.tensor, rtol=1e-3, atol=1e-3)
    losses = head.loss_by_feat(
        [logits], [reg], [s.gt_instances_3d for s in samples],
        [s.gt_instances for s in samples], [META] * 2)
    for name in ('bbox', 'keypoints', 'dims', 'offsets_2d', 'combined_depth'):
        assert losses[f'loss_{name}'] < 1e-3, name
    assert losses['loss_dir'] < 1e-3


def test_multibin_loss_against_the_formula():
    pred = torch.randn(5, 16, dtype=torch.float64)
    holds = torch.randint(2, (5, 4)).double()
    target = torch.cat((holds, torch.randn(5, 4).double() * holds), 1)
    entropy = distance = 0.0
    for row, want in zip(pred.tolist(), target.tolist()):
        for k in range(4):
            no, yes = row[2 * k:2 * k + 2]
            entropy += math.log(math.exp(no) + math.exp(yes)) - (
                yes if want[k] else no)
            if want[k]:
                sin, cos = row[8 + 2 * k:10 + 2 * k]
                norm = math.hypot(sin, cos)
                distance += abs(sin / norm - math.sin(want[4 + k])) + abs(
                    cos / norm - math.cos(want[4 + k]))
    expected = entropy / 20 + distance / holds.sum().item()
    assert multibin_loss(pred, target).item() == pytest.approx(expected)


def test_images_without_boxes():
    head = build()
    losses = head.loss([torch.randn(2, 8, 32, 32)], [sample([])] * 2)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()


def test_losses_in_half_precision():
    head, samples = build(), batch()
    with torch.autocast('cpu', torch.bfloat16):
        losses = head.loss([torch.randn(2, 8, 32, 32)], samples)
    assert all(value.isfinite() and value.dtype == torch.float32
               for value in losses.values())
