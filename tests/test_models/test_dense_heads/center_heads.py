"""Small CenterPoint heads, their batches, and what waits for a GPU."""
import copy
import math
import warnings
from contextlib import contextmanager

import torch
from mmdet3d.models.dense_heads import CenterHead as StockHead
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from sigplug.models.dense_heads import CenterHead

CLASSES = [['car'], ['truck', 'construction_vehicle'], ['bus', 'trailer'],
           ['barrier'], ['motorcycle', 'bicycle'],
           ['pedestrian', 'traffic_cone']]
NUM_CLASSES = 10
# 32 x 24 cells of 1 m: width and height differ, and so do both origins.
X_MIN, Y_MIN, X_MAX, Y_MAX = POINT_RANGE = -16.0, -12.0, 16.0, 12.0
WIDTH, HEIGHT = 32, 24
VOXEL, FACTOR, CHANNELS, MAX_OBJS = 0.25, 4, 8, 12

HEADS = dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2))


def config(velocity=True, code_weights=None, **kwargs):
    limits = [X_MIN - 2, Y_MIN - 2, -10., X_MAX + 2, Y_MAX + 2, 10.]
    size = 10 if velocity else 8
    heads = dict(HEADS, vel=(2, 2)) if velocity else dict(HEADS)
    default = dict(
        in_channels=CHANNELS,
        tasks=[dict(num_class=len(names), class_names=names)
               for names in CLASSES],
        common_heads=heads,
        share_conv_channel=CHANNELS,
        bbox_coder=dict(
            type='CenterPointBBoxCoder', pc_range=[X_MIN, Y_MIN],
            post_center_range=limits, max_num=60, score_threshold=0.1,
            out_size_factor=FACTOR, voxel_size=[VOXEL, VOXEL],
            code_size=size - 1),
        separate_head=dict(
            type='SeparateHead', init_bias=-2.19, final_kernel=3,
            head_conv=CHANNELS),
        loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'),
        loss_bbox=dict(
            type='mmdet.L1Loss', reduction='mean', loss_weight=0.25),
        norm_bbox=True,
        train_cfg=dict(
            grid_size=[WIDTH * FACTOR, HEIGHT * FACTOR, 40],
            voxel_size=[VOXEL, VOXEL, 0.2], out_size_factor=FACTOR,
            dense_reg=1, gaussian_overlap=0.1, max_objs=MAX_OBJS,
            min_radius=2,
            point_cloud_range=[X_MIN, Y_MIN, -5., X_MAX, Y_MAX, 3.],
            code_weights=code_weights or [1.0] * 8 + [0.2] * (size - 8)),
        test_cfg=dict(
            post_center_limit_range=limits, max_per_img=60,
            max_pool_nms=False, min_radius=[4, 12, 10, 1, 0.85, 0.175],
            score_threshold=0.1, out_size_factor=FACTOR,
            voxel_size=[VOXEL, VOXEL], nms_type='rotate', pre_max_size=50,
            post_max_size=30, nms_thr=0.2))
    return copy.deepcopy(dict(default, **kwargs))


def both(**kwargs):
    """mmdet3d's head and ours with the same weights."""
    torch.manual_seed(0)
    stock, ours = StockHead(**config(**kwargs)), CenterHead(**config(**kwargs))
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock, ours


def features(batch_size=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(
        batch_size, CHANNELS, HEIGHT, WIDTH, generator=generator)]


def instances(boxes, labels):
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    if boxes.dim() == 1:  # of no box
        boxes = boxes.reshape(0, 9)
    gt = InstanceData()
    gt.bboxes_3d = LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[1])
    gt.labels_3d = torch.as_tensor(labels, dtype=torch.long)
    return gt


def random_instances(count, seed=0, size=9, reach=1.2):
    """Boxes around the map, some of them outside."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.randn(count, 9, generator=generator)
    place = torch.rand(count, 2, generator=generator) * 2 - 1
    boxes[:, :2] = reach * place * torch.tensor([X_MAX, Y_MAX])
    boxes[:, 3:6] = boxes[:, 3:6].mul(0.8).exp() * 2
    labels = torch.randint(0, NUM_CLASSES, (count, ), generator=generator)
    return instances(boxes[:, :size], labels)


def compare_targets(found, expected):
    """Ours with mmdet3d's, whose boxes may have a velocity more."""
    for heatmap, boxes, index, mask, *others in zip(
            *found, *expected, strict=True):
        other, other_boxes, other_index, other_mask = others
        torch.testing.assert_close(heatmap, other, rtol=0, atol=1e-6)
        assert heatmap.eq(1).equal(other.eq(1))
        # Nothing is added to an offset: one other bit of a quotient shows.
        assert boxes[..., :3].equal(other_boxes[..., :3])
        torch.testing.assert_close(
            boxes, other_boxes[..., :boxes.shape[2]], rtol=1e-6, atol=1e-6)
        assert index.dtype == other_index.dtype and index.equal(other_index)
        assert mask.dtype == other_mask.dtype and mask.equal(other_mask)


def box(x, y, dx=4.0, dy=2.0, dz=1.5, z=-1.0, yaw=0.3, vx=1.0, vy=-0.5):
    return [x, y, z, dx, dy, dz, yaw, vx, vy]


BATCHES = {
    'random': [random_instances(30), random_instances(20, 1)],
    'one empty sample': [random_instances(5), instances([], [])],
    'empty sample first': [instances([], []), random_instances(5)],
    'all empty': [instances([], []), instances([], [])],
    'outside': [instances([
        box(X_MAX + 0.01, 0), box(0, Y_MAX + 5), box(X_MIN - 1.01, 0),
        box(0, Y_MIN - 40), box(1e6, 1e6), box(math.nan, 0)], [0] * 6)],
    'border': [instances([
        box(X_MIN, Y_MIN), box(X_MAX, 0), box(0, Y_MAX),
        box(X_MAX - 1e-5, Y_MAX - 1e-5), box(X_MIN - 0.5, 3),
        box(2, Y_MIN - 0.9), box(X_MIN + 0.5, Y_MAX - 0.5, 20, 20)],
                         [0, 1, 2, 3, 4, 5, 6])],
    'no extent': [instances([
        box(1, 1, dx=0), box(2, 2, dy=0), box(3, 3, dx=-1), box(4, 4, dy=-2),
        box(5, 5, dx=0, dy=0), box(6, 6, dx=1e-4, dy=1e-4), box(7, 7)],
                            [0, 0, 1, 1, 9, 9, 9])],
    'large': [instances([box(3, 2, 60, 40), box(-9, 1, 200, 3)], [3, 9])],
    'too many': [instances([box(0.5 * i - 7, 0.25 * i) for i in range(29)],
                           [2, 1, 9] * 9 + [1, 2])],
    'one cell': [instances([
        box(1.1, 1.1), box(1.2, 1.3, 8, 6), box(1.9, 1.9, 1, 1),
        box(1.5, 1.5), box(1.5, 1.5)], [1, 1, 2, 1, 0])],
    'ignored': [instances([box(1, 1), box(2, 2), box(3, 3), box(4, 4)],
                          [-1, 0, 10, -1]), instances([box(1, 1)], [-1])],
    'outside but drawn': [instances([
        box(X_MIN - 0.99, Y_MIN - 0.99), box(X_MIN - 1, 0),
        box(0, Y_MIN - 1), box(X_MAX, Y_MIN - 0.99),
        box(-1e30, -1e30), box(math.inf, 0)], [0, 1, 2, 3, 4, 5])],
    'too many and ignored': [
        instances([box(0.5 * (i % 40) - 9, i % 7) for i in range(80)],
                  [1, -1, 1, 10, 0, 2, 1, 8] * 10), instances([], []),
        instances([box(i % 5, 3) for i in range(30)], [8, 9, 99] * 10)],
    'unordered': [instances([box(i, -i) for i in range(10)],
                            [9, 0, 8, 1, 7, 2, 6, 3, 5, 4])],
}


class NoWaiting(TorchDispatchMode):
    """Fail where a GPU would be waited for, on a machine that has none.

    That is where a value is read, as for a shape that depends on it, and
    where data come from the host: a list, or a tensor of another device.
    """

    READS = {'_local_scalar_dense', 'nonzero', 'masked_select', '_unique2',
             'repeat_interleave', 'bincount', 'equal'}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        assert name not in self.READS, f'{func} reads values'
        assert name != 'lift_fresh', f'{func}: a tensor of host data'
        tensors = [leaf for leaf in tree_flatten((args, kwargs, result))[0]
                   if isinstance(leaf, torch.Tensor)]
        if name.startswith('index'):
            assert not any(index.dtype == torch.bool
                           for index in tree_flatten(args[1])[0]
                           if isinstance(index, torch.Tensor)), func
        devices = {tensor.device for tensor in tensors}
        assert len(devices) < 2, f'{func} copies between {devices}'
        return result


class NoReading(NoWaiting):
    """Count the arrays of the host, which may be copied without waiting."""

    arrays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ == 'lift_fresh':
            self.arrays += 1
            return func(*args)
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def cuda_waits():
    """Collect what waits for a GPU."""
    found = []
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            yield found
    finally:
        torch.cuda.set_sync_debug_mode('default')
    found += [w for w in caught if 'synchron' in str(w.message)]


def to(batch, device):
    batch = copy.deepcopy(batch)
    for gt in batch:
        gt.bboxes_3d = gt.bboxes_3d.to(device)
        gt.labels_3d = gt.labels_3d.to(device)
    return batch
