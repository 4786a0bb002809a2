"""``sigplug.CenterHead`` against mmdet3d's head, on the same weights."""
import copy
import math

import pytest
import torch
from mmdet.models.losses import GaussianFocalLoss
from mmdet3d.models.dense_heads import CenterHead as StockHead
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from sigplug.models import ClipSigmoid
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


def config(velocity=True, nms_type='rotate', code_weights=None, **kwargs):
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
            voxel_size=[VOXEL, VOXEL], nms_type=nms_type, pre_max_size=50,
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
    if boxes.numel() == 0:
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


def compare_losses(actual, expected, rtol=1e-6):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == torch.float32
        torch.testing.assert_close(
            actual[name], value, rtol=rtol, atol=1e-9, msg=lambda m, n=name:
            f'{n}: {m}')


@pytest.fixture(scope='module')
def heads():
    return both()


# --- construction ---------------------------------------------------------


def test_checkpoints_load_both_ways(heads):
    stock, ours = heads
    assert list(stock.state_dict()) == list(ours.state_dict())
    ours.load_state_dict(stock.state_dict(), strict=True)
    stock.load_state_dict(ours.state_dict(), strict=True)
    assert isinstance(ours.heatmap_act, ClipSigmoid)


@pytest.mark.parametrize('train_cfg', [
    None, {}, dict(code_weights=[1.0] * 10), dict(grid_size=None)])
def test_needs_train_cfg_for_its_losses_alone(train_cfg):
    stock = both()[0].eval()
    head = CenterHead(**config(train_cfg=train_cfg)).eval()
    head.load_state_dict(stock.state_dict())
    x = features()
    metas = [dict(box_type_3d=LiDARInstance3DBoxes)] * len(x[0])
    for ours, wanted in zip(head.predict_by_feat(head(x), metas),
                            stock.predict_by_feat(stock(x), metas),
                            strict=True):
        torch.testing.assert_close(ours.scores_3d, wanted.scores_3d)
    with pytest.raises(ValueError, match='losses need grid_size, .*train_cfg'):
        head.loss_by_feat(head(x), BATCHES['random'])


def test_positional_arguments(heads):
    """The velocity of the fourth argument is not overlooked."""
    cfg = config()
    first = [cfg.pop(key) for key in (
        'in_channels', 'tasks', 'bbox_coder', 'common_heads')]
    head = CenterHead(*first, **cfg)
    assert head.with_velocity
    head.load_state_dict(heads[0].state_dict(), strict=True)
    x, batch = features(), BATCHES['random']
    compare_losses(head.loss_by_feat(head(x), batch),
                   heads[0].loss_by_feat(heads[0](x), batch))


@pytest.mark.parametrize('velocity, wrong', [(True, 8), (False, 10)])
def test_wrong_code_weights(velocity, wrong):
    with pytest.raises(ValueError) as info:
        CenterHead(**config(velocity, code_weights=[1.0] * wrong))
    for word in ('code_weights', str(18 - wrong), str(wrong)):
        assert word in str(info.value)


def test_stock_head_of_deformable_convolutions():
    """The separate head of mmdet3d's *_dcn configs fits too."""
    separate = dict(
        type='DCNSeparateHead', init_bias=-2.19, final_kernel=3,
        head_conv=CHANNELS,
        dcn_config=dict(type='DCN', in_channels=CHANNELS, kernel_size=3,
                        out_channels=CHANNELS, padding=1, groups=4))
    stock, ours = both(separate_head=separate)
    x, batch = features(), BATCHES['random']
    compare_losses(ours.loss_by_feat(ours(x), batch),
                   stock.loss_by_feat(stock(x), batch))


def test_init_weights_reaches_the_heatmaps():
    """The bias of a rare peak, which upstream's ModuleList swallows."""
    head = CenterHead(**config())
    head.init_weights()
    for task in head.task_heads:
        assert (task.heatmap[-1].bias == -2.19).all()
        assert task.reg[-1].bias.abs().max() < 1
    scores = torch.cat([
        pred['heatmap'].sigmoid().flatten() for pred, in head(features())])
    # sigmoid(-2.19) is 0.1: the loss starts from few expected peaks.
    assert 0.05 < scores.median() < 0.2


# --- targets --------------------------------------------------------------


def compare_targets(stock, ours, batch):
    actual = ours.get_targets(copy.deepcopy(batch))
    expected = stock.get_targets(copy.deepcopy(batch))
    for task in range(len(CLASSES)):
        heatmap, target, index, mask = (part[task] for part in actual)
        other, other_target, other_index, other_mask = (
            part[task] for part in expected)
        torch.testing.assert_close(heatmap, other, rtol=0, atol=1e-6)
        assert heatmap.eq(1).equal(other.eq(1))
        assert index.dtype == other_index.dtype and index.equal(other_index)
        assert mask.dtype == other_mask.dtype and mask.equal(other_mask)
        # Nothing is added to an offset: one other bit of a quotient shows.
        assert target[..., :3].equal(other_target[..., :3])
        torch.testing.assert_close(
            target, other_target, rtol=1e-6, atol=1e-6)
    return actual


@pytest.mark.parametrize('name', BATCHES)
def test_targets_equal_the_stock_loops(heads, name):
    _, _, _, masks = compare_targets(*heads, BATCHES[name])
    drawn = sum(mask.sum() for mask in masks).item()
    if name in ('all empty', 'outside'):
        assert drawn == 0
    else:
        assert drawn > 0


@pytest.mark.parametrize('cfg', [
    dict(norm_bbox=False),
    dict(train=dict(dense_reg=2, max_objs=3)),
    dict(train=dict(gaussian_overlap=0.7, min_radius=0)),
    dict(train=dict(gaussian_overlap=0.5, min_radius=5)),
    # Numbers that are none of float32, and other ones along y.
    dict(train=dict(
        voxel_size=[0.075, 0.3, 0.2], out_size_factor=3, grid_size=[426, 80],
        point_cloud_range=[-16.1, -12.7, -5., 15.85, 11.3, 3.])),
])
def test_targets_under_other_settings(cfg):
    kwargs = {k: v for k, v in cfg.items() if k != 'train'}
    stock, ours = both(**kwargs)
    for head in (stock, ours):
        head.train_cfg.update(cfg.get('train', {}))
    compare_targets(stock, ours, BATCHES['random'])


@pytest.mark.parametrize('name', BATCHES)
def test_targets_of_seven_values(heads, name):
    """Those of nine values, without the velocity."""
    head = CenterHead(**config(velocity=False))
    batch = [instances(gt.bboxes_3d.tensor[:, :7], gt.labels_3d)
             for gt in BATCHES[name]]
    actual, expected = (head.get_targets(batch),
                        heads[1].get_targets(BATCHES[name]))
    for task in range(len(CLASSES)):
        assert actual[1][task].equal(expected[1][task][..., :8])
        for part in (0, 2, 3):
            assert actual[part][task].equal(expected[part][task])


def test_enormous_boxes_are_flat():
    """Their radii exceed what an int32 holds."""
    boxes = [box(1, 1, 1e12, 1e12), box(1, 1, math.inf, 5), box(1, 1)]
    heatmaps, _, _, masks = CenterHead(**config()).get_targets(
        [instances(boxes, [0, 3, 8])])
    assert heatmaps[0].min() > 0.99
    assert [mask.sum().item() for mask in masks] == [1, 0, 1, 0, 0, 1]


def test_targets_leave_the_ground_truth_alone(heads):
    batch = copy.deepcopy(BATCHES['random'])
    heads[1].get_targets(batch)
    for gt, before in zip(batch, BATCHES['random']):
        assert gt.bboxes_3d.tensor.equal(before.bboxes_3d.tensor)
        assert gt.labels_3d.equal(before.labels_3d)


# --- nothing waits for a GPU ----------------------------------------------


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


@pytest.mark.parametrize('waits', [
    lambda x: x[x > 1], lambda x: x.new_tensor([1, 2]),
    lambda x: torch.tensor(3), lambda x: x.max().item(),
    lambda x: x.to('meta'), lambda x: (x > 1).any() or 1,
    lambda x: x.long().repeat_interleave(x.long()),
    lambda x: x.masked_select(x > 1), lambda x: (x > 1).nonzero(),
    lambda x: x.index_put_((x > 1, ), x.sum()), lambda x: x.unique(),
])
def test_what_waits_is_seen(waits):
    with NoWaiting(), pytest.raises(AssertionError):
        waits(torch.arange(4.0))


def no_peaks(centers, radii, labels, num_classes, size):
    """In place of gaussian_heatmap, which may wait."""
    return torch.zeros(num_classes, *size, device=centers.device)


def to(batch, device):
    batch = copy.deepcopy(batch)
    for gt in batch:
        gt.bboxes_3d = gt.bboxes_3d.to(device)
        gt.labels_3d = gt.labels_3d.to(device)
    return batch


# On the meta device there are no values to read, and a constant that stayed
# on the CPU does not fit.
@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize('name', ['random', 'all empty', 'too many'])
def test_targets_do_not_wait(monkeypatch, device, name):
    monkeypatch.setattr(
        'sigplug.models.dense_heads.center_targets.gaussian_heatmap', no_peaks)
    head = CenterHead(**config()).to(device)
    batch = to(BATCHES[name], device)
    with NoWaiting():
        targets = head.get_targets(batch)
    assert all(x.device.type == device for part in targets for x in part)


@pytest.mark.parametrize('name', ['random', 'all empty'])
@pytest.mark.parametrize('loss', [
    'mmdet.GaussianFocalLoss', 'GaussianFocalLossWithLogits'])
@pytest.mark.parametrize('hooked', [False, True])
def test_losses_do_not_wait(monkeypatch, name, loss, hooked):
    monkeypatch.setattr(
        'sigplug.models.dense_heads.center_targets.gaussian_heatmap', no_peaks)
    head = CenterHead(**config(loss_cls=dict(type=loss)))
    if hooked:
        # A hook keeps the activation and the loss apart.
        head.heatmap_act.register_forward_hook(lambda *args: None)
    preds = head(features(len(BATCHES[name])))
    with NoWaiting():
        losses = head.loss_by_feat(preds, BATCHES[name])
        sum(losses.values()).backward()
    assert len(losses) == 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_losses_do_not_wait_for_cuda(monkeypatch):
    head = CenterHead(**config()).cuda()
    batch = to(BATCHES['random'], 'cuda')
    preds = head([x.cuda() for x in features()])
    head.loss_by_feat(preds, batch)
    monkeypatch.setattr(
        'sigplug.models.dense_heads.center_targets.gaussian_heatmap', no_peaks)
    torch.cuda.set_sync_debug_mode('error')
    try:
        losses = head.loss_by_feat(preds, batch)
        sum(losses.values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('name', BATCHES)
def test_targets_equal_the_stock_loops_on_cuda(name):
    stock, ours = (head.cuda() for head in both())
    if name == 'outside':
        # A NaN of the stock loop is cell 0 there.
        pytest.skip('what is drawn at a NaN is undefined: see above')
    compare_targets(stock, ours, to(BATCHES[name], 'cuda'))


def test_boxes_on_another_device_than_their_labels():
    head = CenterHead(**config())
    batch = copy.deepcopy(BATCHES['too many'])
    for gt in batch:
        gt.labels_3d = gt.labels_3d.to('meta')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            'sigplug.models.dense_heads.center_targets.gaussian_heatmap',
            no_peaks)
        targets = head.get_targets(batch)
    assert all(x.device.type == 'meta' for part in targets for x in part)


# --- losses ---------------------------------------------------------------


@pytest.mark.parametrize('name', [
    name for name in BATCHES if name not in ('no extent', )])
def test_losses_equal_the_stock_heads(heads, name):
    stock, ours = heads
    batch = BATCHES[name]
    x = features(len(batch))
    compare_losses(ours.loss_by_feat(ours(x), batch),
                   stock.loss_by_feat(stock(x), batch))


def test_losses_with_saturated_logits(heads):
    """Both heads are clipped alike, on both sides."""
    stock, ours = copy.deepcopy(heads)
    for head in (stock, ours):
        for task in head.task_heads:
            task.heatmap[-1].weight.data.mul_(50)
    x, batch = features(), BATCHES['random']
    logits = torch.cat([p[0]['heatmap'].flatten() for p in ours(x)])
    assert logits.min() < -10 and logits.max() > 10
    compare_losses(ours.loss_by_feat(ours(x), batch),
                   stock.loss_by_feat(stock(x), batch))


def test_gradients_equal_the_stock_heads(heads):
    x, batch = features(), BATCHES['random']
    grads = []
    for head in heads:
        losses = head.loss_by_feat(head(x), batch)
        names, parameters = zip(*head.named_parameters())
        grads.append(torch.autograd.grad(sum(losses.values()), parameters))
    for name, expected, actual in zip(names, *grads):
        torch.testing.assert_close(
            actual, expected, rtol=1e-4,
            atol=1e-6 * expected.abs().max().item(), msg=lambda m, n=name:
            f'{n}: {m}')


def test_gradients_of_the_logits_equal_the_stock_heads(heads):
    """Also of those at the clip, and far beyond it."""
    preds = heads[1](features())
    preds = [{key: value.detach() for key, value in pred.items()}
             for pred, in preds]
    for pred in preds:
        pred['heatmap'] *= 40
        pred['heatmap'][:, 0, 3, :4] = torch.tensor([9.2, -9.2, 9.22, -9.22])
    grads = []
    for head in heads:
        leaves = [pred['heatmap'].clone().requires_grad_() for pred in preds]
        copies = tuple([dict(pred, heatmap=leaf * 1)]
                       for pred, leaf in zip(preds, leaves))
        sum(head.loss_by_feat(copies, BATCHES['random']).values()).backward()
        grads.append([leaf.grad for leaf in leaves])
    for expected, actual in zip(*grads):
        assert (expected == 0).any() and expected.any()
        assert actual.ne(0).equal(expected.ne(0))
        torch.testing.assert_close(
            actual, expected, rtol=1e-6, atol=1e-7 * expected.abs().max())


FOCAL = dict(type='mmdet.GaussianFocalLoss', alpha=1.5, gamma=3.0,
             loss_weight=0.5, pos_weight=2.0, neg_weight=0.7)
LOGITS = dict(FOCAL, type='GaussianFocalLossWithLogits')


@pytest.mark.parametrize('loss, act, clip', [
    (FOCAL, dict(type='ClipSigmoid'), 1e-4),
    (FOCAL, dict(type='sigplug.ClipSigmoid', eps=0.02), 0.02),
    (FOCAL, dict(type='ClipSigmoid', min_val=0.25, max_val=0.75), 0.25),
    (FOCAL, None, 1e-4),
    (LOGITS, None, None),
    (dict(LOGITS, clip=0.01), None, 0.01),
])
def test_one_operation_for_activation_and_loss(monkeypatch, loss, act, clip):
    head = CenterHead(**config(loss_cls=loss, heatmap_act=act))
    assert head._focal_arguments() == dict(
        alpha=1.5, gamma=3.0, loss_weight=0.5, pos_weight=2.0, neg_weight=0.7,
        clip=clip)
    preds, batch = head(features()), BATCHES['random']
    actual = head.loss_by_feat(preds, batch)
    monkeypatch.setattr(head, '_focal_arguments', lambda: None)
    compare_losses(actual, head.loss_by_feat(preds, batch))


class OtherLoss(GaussianFocalLoss):
    pass


class OtherAct(ClipSigmoid):
    pass


@pytest.mark.parametrize('change', [
    lambda head: setattr(head, 'loss_cls', OtherLoss()),
    lambda head: setattr(head, 'heatmap_act', OtherAct()),
    lambda head: setattr(head, 'heatmap_act', torch.nn.Sigmoid()),
    lambda head: setattr(head.loss_cls, 'reduction', 'none'),
    lambda head: setattr(head.loss_cls, 'gamma', torch.ones(())),
    lambda head: setattr(head.loss_cls, 'alpha', -1.0),
    lambda head: delattr(head.loss_cls, 'pos_weight'),
    lambda head: delattr(head.loss_cls, 'reduction'),
    lambda head: setattr(head.loss_cls, 'forward', abs),
    lambda head: setattr(head.heatmap_act, 'grad', 'straight_through'),
    lambda head: setattr(head.heatmap_act, 'max_val', 0.999),
    lambda head: head.heatmap_act.register_forward_hook(print),
    lambda head: head.heatmap_act.register_forward_pre_hook(print),
    lambda head: head.loss_cls.register_full_backward_hook(print),
])
def test_modules_that_may_do_anything_else_are_called(change):
    head = CenterHead(**config(loss_cls=FOCAL))
    change(head)
    assert head._focal_arguments() is None


def test_hook_of_the_activation_is_called():
    head = CenterHead(**config())
    shapes = []
    head.heatmap_act.register_forward_hook(
        lambda module, args, output: shapes.append(output.shape))
    head.loss_by_feat(head(features()), BATCHES['random'])
    assert [shape[1] for shape in shapes] == [len(c) for c in CLASSES]


def test_code_weights_are_those_of_the_config_in_half_precision():
    weights = [0.1 * i for i in range(10)]
    losses = []
    for head in (CenterHead(**config(code_weights=weights)),
                 CenterHead(**config(code_weights=weights)).half()):
        pred = {name: torch.full((1, size, HEIGHT, WIDTH), 0.5)
                for name, (size, _) in dict(HEADS, vel=(2, 2)).items()}
        preds = tuple([dict(pred, heatmap=torch.zeros(
            1, len(names), HEIGHT, WIDTH))] for names in CLASSES)
        losses.append(head.loss_by_feat(preds, BATCHES['one cell']))
    compare_losses(losses[1], losses[0], rtol=0)


def test_only_the_first_level_counts(heads):
    """As upstream, which reads no level but the first."""
    stock, ours = heads
    x, batch = features() + features(seed=1), BATCHES['random']
    compare_losses(ours.loss_by_feat(ours(x), batch),
                   stock.loss_by_feat(stock(x), batch))


@pytest.mark.parametrize('inplace', [False, True])
def test_logits_are_not_overwritten(inplace):
    head = CenterHead(**config(
        heatmap_act=dict(type='ClipSigmoid', inplace=inplace)))
    for no_grad in (False, True):
        with torch.set_grad_enabled(not no_grad):
            preds = head(features())
            before = [{key: value.clone() for key, value in pred.items()}
                      for pred, in preds]
            first = head.loss_by_feat(preds, BATCHES['random'])
            second = head.loss_by_feat(preds, BATCHES['random'])
        for (pred, ), kept in zip(preds, before):
            assert pred.keys() == kept.keys()
            assert all(pred[key].equal(kept[key]) for key in kept)
        assert all(first[key].equal(second[key]) for key in first)


def test_losses_of_shared_features_are_float32_under_autocast():
    stock, head = both()
    x, batch = features(), BATCHES['random']
    exact = head.loss_by_feat(head(x), batch)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        preds = head(x)
        losses = head.loss_by_feat(preds, batch)
    assert preds[0][0]['heatmap'].dtype == torch.bfloat16
    for name, loss in losses.items():
        assert loss.dtype == torch.float32 and loss.isfinite()
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.05)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_logits_of_a_confident_cell(heads, dtype):
    preds = heads[1](features())
    preds = tuple([{k: v.detach().to(dtype) for k, v in pred.items()}]
                  for pred, in preds)
    for pred, in preds:
        pred['heatmap'].fill_(8.5).requires_grad_()
    losses = heads[1].loss_by_feat(preds, BATCHES['random'])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for pred, in preds:
        grad = pred['heatmap'].grad
        assert grad.dtype == dtype and grad.isfinite().all() and grad.any()


@pytest.mark.parametrize('act, recovers', [
    (dict(type='ClipSigmoid'), False),
    (dict(type='ClipSigmoid', grad='straight_through'), True),
    (dict(type='sigplug.ClipSigmoid', grad='straight_through'), True),
])
def test_activation_by_config(act, recovers):
    """A peak that is denied with all confidence: can it come back?"""
    head = CenterHead(**config(heatmap_act=act))
    preds = head(features(1))
    preds = tuple([{k: v.detach() for k, v in pred.items()}]
                  for pred, in preds)
    logits = preds[0][0]['heatmap'].fill_(-12.0).requires_grad_()
    batch = [instances([box(0.5, 0.5)], [0])]
    head.loss_by_feat(preds, batch)['task0.loss_heatmap'].backward()
    peak = logits.grad[0, 0, 12, 16]
    assert (peak < 0) == recovers
    assert recovers or peak == 0


def test_another_eps_is_another_bound():
    eps = 0.4
    stock, _ = both()
    head = CenterHead(**config(
        heatmap_act=dict(type='ClipSigmoid', eps=eps)))
    head.load_state_dict(stock.state_dict())
    batch, x = BATCHES['random'], features()
    losses = head.loss_by_feat(head(x), batch)
    heatmaps = stock.get_targets(batch)[0]
    for task, (pred, ) in enumerate(head(x)):
        p = pred['heatmap'].double().sigmoid().clamp(eps, 1 - eps)
        t = heatmaps[task].double()
        loss = -(t.eq(1) * (1 - p)**2 * p.log() +
                 (1 - t)**4 * p**2 * (1 - p).log()).sum()
        loss = loss / max(t.eq(1).sum().item(), 1)
        assert losses[f'task{task}.loss_heatmap'].item() == pytest.approx(
            loss.item(), rel=1e-5)


def test_unknown_velocity_takes_only_itself_out(heads):
    """Upstream's mask multiplies NaN by 0, which is NaN."""
    known = [instances([box(1.5, 1.5), box(-4, 2)], [0, 0])]
    unknown = [instances([box(1.5, 1.5, vx=math.nan), box(-4, 2)], [0, 0])]
    head = heads[1]
    preds = head(features(1))
    target, index, mask = (part[0] for part in head.get_targets(known)[1:])
    pred = torch.cat([preds[0][0][key] for key in (
        'reg', 'height', 'dim', 'rot', 'vel')], dim=1)
    rows = pred.flatten(2)[0].t()[index[0]]
    weights = torch.tensor(head.train_cfg['code_weights']) * mask[0, :, None]
    weights[0, 8] = 0
    expected = 0.25 * ((rows - target[0]).abs() * weights).sum() / 2.0001
    loss = head.loss_by_feat(preds, unknown)['task0.loss_bbox']
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize('dz', [0.0, -1.0])
def test_box_without_height_takes_only_its_height_out(heads, dz):
    """Its logarithm is no number that can be learnt."""
    head = heads[1]
    preds = head(features(1))
    losses = head.loss_by_feat(preds, [instances([box(1.5, 1.5, dz=dz)], [0])])
    usual = head.loss_by_feat(preds, [instances([box(1.5, 1.5)], [0])])
    assert losses['task0.loss_bbox'].isfinite()
    assert losses['task0.loss_bbox'] < 2 * usual['task0.loss_bbox'] + 1


# --- boxes without velocity -----------------------------------------------


def kitti_losses(head, x, batch):
    """The regression loss by hand, in float64."""
    _, targets, indices, masks = head.get_targets(batch)
    losses = {}
    for task, (pred, ) in enumerate(head(x)):
        maps = torch.cat([pred[key] for key in ('reg', 'height', 'dim',
                                                'rot')], dim=1).double()
        rows = torch.stack([
            maps[i].flatten(1).t()[indices[task][i]]
            for i in range(len(batch))])
        mask = masks[task].double()
        gap = (rows - targets[task]).abs() * mask.unsqueeze(-1)
        losses[f'task{task}.loss_bbox'] = (
            0.25 * gap.sum() / (mask.sum() + 1e-4)).float()
    return losses


@pytest.mark.parametrize('size', [7, 9])
def test_head_without_velocity(size):
    stock = both()[0]
    head = CenterHead(**config(velocity=False))
    full = [random_instances(30), random_instances(20, 1)]
    batch = [random_instances(30, size=size),
             random_instances(20, 1, size=size)]
    heatmaps, targets, indices, masks = head.get_targets(batch)
    expected = stock.get_targets(full)
    for task in range(len(CLASSES)):
        assert targets[task].shape[-1] == 8
        torch.testing.assert_close(
            heatmaps[task], expected[0][task], rtol=0, atol=1e-6)
        torch.testing.assert_close(
            targets[task], expected[1][task][..., :8], rtol=1e-6, atol=1e-6)
        assert indices[task].equal(expected[2][task])
        assert masks[task].equal(expected[3][task])

    x = features()
    losses = head.loss_by_feat(head(x), batch)
    boxes = {k: v for k, v in losses.items() if k.endswith('bbox')}
    compare_losses(boxes, kitti_losses(head, x, batch), rtol=1e-5)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_boxes_without_velocity_into_a_head_with_velocity(heads):
    with pytest.raises(ValueError) as info:
        heads[1].get_targets([random_instances(3, size=7)])
    for word in ('9', '7', 'vel', 'common_heads'):
        assert word in str(info.value)


# --- predictions ----------------------------------------------------------


@pytest.mark.parametrize('nms_type', ['circle', 'rotate'])
@pytest.mark.parametrize('velocity', [True, False])
def test_predictions_equal_the_stock_heads(nms_type, velocity):
    stock, ours = both(velocity=velocity, nms_type=nms_type)
    metas = [dict(box_type_3d=LiDARInstance3DBoxes)] * 2
    x = features()
    with torch.no_grad():
        expected = stock.eval().predict_by_feat(stock(x), metas)
        preds = ours.eval()(x)
        # The loss comes first, as in a validation that also logs it.
        ours.loss_by_feat(preds, BATCHES['random'] if velocity else [
            random_instances(9, size=7), random_instances(9, 1, size=7)])
        actual = ours.predict_by_feat(preds, metas)
    for result, other in zip(actual, expected):
        assert len(other.scores_3d) > 10
        assert other.bboxes_3d.tensor.shape[1] == (9 if velocity else 7)
        assert result.bboxes_3d.tensor.equal(other.bboxes_3d.tensor)
        assert result.scores_3d.equal(other.scores_3d)
        assert result.labels_3d.equal(other.labels_3d)


def test_scores_are_the_plain_sigmoid():
    """A score above the clip of the loss stays what it is."""
    head = CenterHead(**config(
        nms_type='circle', heatmap_act=dict(type='ClipSigmoid', eps=0.2)))
    with torch.no_grad():
        preds = head.eval()(features(1))
        preds[0][0]['heatmap'][0, 0, 5, 7] = 6.0
        result = head.predict_by_feat(
            preds, [dict(box_type_3d=LiDARInstance3DBoxes)])[0]
    assert result.scores_3d.max().item() == pytest.approx(
        1 / (1 + math.exp(-6)), rel=1e-6)


@pytest.mark.parametrize('separate', [
    dict(type='SeparateHead', init_bias=-3.0, final_kernel=3),
    dict(
        type='DCNSeparateHead',
        init_bias=-3.0,
        dcn_config=dict(
            type='DCN',
            in_channels=8,
            out_channels=8,
            kernel_size=3,
            padding=1,
            groups=4)),
])
def test_init_weights_sets_the_prior_score_and_nothing_else(separate):
    """Upstream's init_bias never takes effect: the scores start at 0.5."""
    stock, ours = both(separate_head=separate)
    stock.init_weights()
    drawn = {k: v.clone() for k, v in ours.state_dict().items()}
    ours.init_weights()
    for task in ours.task_heads:
        branch = getattr(task, 'heatmap', None) or task.cls_head
        assert (branch[-1].bias == -3.0).all()
    changed = {
        k for k, v in ours.state_dict().items() if (v != drawn[k]).any()}
    biases = {k for k in changed if k.endswith('.bias')
              and ('heatmap' in k or 'cls_head' in k)}
    assert {k for k in changed if k.startswith('task_heads')} == biases
    assert biases


@pytest.mark.parametrize('name', ['random', 'all empty'])
@pytest.mark.parametrize('loss', [
    'mmdet.GaussianFocalLoss', 'GaussianFocalLossWithLogits'])
def test_all_tasks_at_once(name, loss):
    """What a GPU computes in one operation equals the loss of each task."""
    head = CenterHead(**config(loss_cls=dict(type=loss, loss_weight=0.7)))
    targets = head.get_targets(BATCHES[name])[0]
    logits = [(4 * torch.randn_like(t)).requires_grad_() for t in targets]
    with NoWaiting():
        joint = head._joint_heatmap_losses(
            logits, targets, **head._focal_arguments())
        grads = torch.autograd.grad(sum(joint), logits)
    single = head._heatmap_losses(logits, targets)
    expected = torch.autograd.grad(sum(single), logits)
    for got, want in zip((*joint, *grads), (*single, *expected), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
