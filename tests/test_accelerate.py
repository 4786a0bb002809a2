"""Stock heads give the same numbers before, while and after."""
import copy

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmdet3d.models.utils import clip_sigmoid
from mmdet3d.registry import MODELS
from mmengine.hooks import Hook
from test_configs_run import load, mono_scene, random_scene, shrink
from test_models.test_dense_heads.stock_twins import (
    MONO,
    build,
    compute_losses,
    features,
    instances,
    predict,
    spread_scores,
    stock_of,
)
from torch import nn
from toy_training import make_runner

import sigplug
from sigplug.models.losses import GaussianFocalLossWithLogits

FUSED = ('CenterHead', MONO)
NAMES = (*FUSED, 'CenterNetHead', 'CornerHead', 'CentripetalHead')
every_head = pytest.mark.parametrize('name', NAMES)


def stock(name, **kwargs):
    torch.manual_seed(0)
    return spread_scores(build(name, stock_of(name), **kwargs))


def compute(name, head, x, batch):
    """Losses, their gradients, and predictions."""
    head.zero_grad()
    losses = compute_losses(name, head, head(x), batch)
    sum(losses.values()).backward()
    grads = {key: param.grad.clone() for key, param in
             head.named_parameters() if param.grad is not None}
    with torch.no_grad():
        return losses, grads, predict(name, head, head(x))


def state(head):
    """Everything that a module is made of."""
    return (type(head), set(vars(head)), list(head.state_dict()),
            dict(head.named_modules()), dict(head.named_buffers()),
            set(head._non_persistent_buffers_set))


@every_head
def test_numbers_stay_and_all_is_undone(name):
    head = stock(name)
    x, batch = features(name), instances(name, 5, 3)
    before = state(head)
    losses, grads, boxes = compute(name, head, x, batch)
    done = sigplug.accelerate(nn.ModuleDict(dict(head=head)))
    assert isinstance(head, before[0]) and type(head) is not before[0]
    assert list(head.state_dict()) == before[2]
    assert list(done.replaced) == ['head'] and not done.left
    assert 'targets' in str(done)
    assert ('clip and loss' in str(done)) == (name in FUSED)

    new_losses, new_grads, new_boxes = compute(name, head, x, batch)
    torch.testing.assert_close(new_losses, losses, rtol=1e-6, atol=0)
    assert new_grads.keys() == grads.keys()
    for key, value in grads.items():
        torch.testing.assert_close(
            new_grads[key], value, rtol=1e-5, atol=1e-6 * value.abs().max())
    torch.testing.assert_close(new_boxes, boxes, rtol=0, atol=0)

    done.undo()
    done.undo()
    assert state(head) == before
    torch.testing.assert_close(
        compute(name, head, x, batch)[0], losses, rtol=0, atol=0)


# Whole models of the packages: their config, its changes, and a batch.
DETECTORS = {
    'CenterPoint': ('mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_'
                    '8xb4-cyclic-20e_nus-3d.py'),
    'SMOKE': ('mmdet3d::smoke/smoke_dla34_dlaneck_gn-all_4xb8-6x_'
              'kitti-mono3d.py'),
    'CenterNet': 'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py'}


def make_detector(name, folder):
    """A stock model, and a batch of its own kind."""
    (folder / 'config.py').write_text(f"_base_ = '{DETECTORS[name]}'")
    cfg = load(folder / 'config.py')
    if name == 'CenterPoint':
        shrink(cfg.model, 8)
        cfg.model.pts_bbox_head.bbox_coder.max_num = 50
        batch = random_scene(cfg.model)
    else:
        cfg.model.backbone.init_cfg = None  # no weights from elsewhere
        batch = mono_scene() if name == 'SMOKE' else demo_mm_inputs(
            2, [[3, 128, 128]] * 2, num_items=[3, 2])
    torch.manual_seed(0)
    return MODELS.build(cfg.model), batch


def losses_and_boxes(model, batch):
    """As in a training step and in a test step."""
    with torch.no_grad():
        losses = model(**model.data_preprocessor(
            copy.deepcopy(batch), True), mode='loss')
        model.eval()
        for sample in batch['data_samples']:
            sample.set_metainfo(dict(border=[0, 128, 0, 128]))
        samples = model(**model.data_preprocessor(
            copy.deepcopy(batch), False), mode='predict')
    model.train()
    found = [getattr(sample, 'pred_instances_3d', None)
             or sample.pred_instances for sample in samples]
    return losses, [x.tensor if hasattr(x, 'tensor') else x
                    for boxes in found for x in boxes.values()]


@pytest.mark.slow
@pytest.mark.parametrize('name', DETECTORS)
def test_whole_models(name, tmp_path):
    model, batch = make_detector(name, tmp_path)
    statistics = copy.deepcopy(model.state_dict())

    def compute():
        model.load_state_dict(statistics)
        return losses_and_boxes(model, batch)

    expected = compute()
    kinds = [type(module) for module in model.modules()]
    assert sum(map(len, expected[1])) > 0
    done = sigplug.accelerate(model)
    assert len(done.replaced) == 1 and not done.left
    torch.testing.assert_close(compute(), expected, rtol=1e-6, atol=0)
    done.undo()
    assert [type(module) for module in model.modules()] == kinds
    torch.testing.assert_close(compute(), expected, rtol=0, atol=0)


@pytest.fixture
def losses_of():
    """A function that gives the losses of a CenterHead on one batch."""
    x, batch = features('CenterHead'), instances('CenterHead', 5, 3)
    return lambda head: compute_losses('CenterHead', head, head(x), batch)


def test_initialisation_is_the_stock_heads():
    """sigplug.CenterHead sets the bias, which the stock head leaves."""
    head = stock('CenterHead')
    biases = [task.heatmap[-1].bias.clone() for task in head.task_heads]
    sigplug.accelerate(head)
    head.init_weights()
    assert all(task.heatmap[-1].bias.equal(bias)
               for task, bias in zip(head.task_heads, biases))


def test_a_copy_is_a_model_of_its_own(losses_of):
    """As an average of weights makes one."""
    head = stock('CenterHead')
    done = sigplug.accelerate(head)
    twin = copy.deepcopy(head)
    done.undo()
    assert type(twin) is not type(head)
    torch.testing.assert_close(
        losses_of(twin), losses_of(head), rtol=1e-6, atol=0)


def grow(head, **methods):
    """Make a head one of a subclass with methods of its own."""
    head.__class__ = type('MyHead', (type(head), ), methods)
    return head


def test_subclasses_keep_what_they_change():
    name = 'CenterHead'
    x, batch = features(name), instances(name, 5, 3)
    calm = grow(stock(name), extra=lambda self: 3)
    own_loss = grow(stock(name))
    cls = type(own_loss)
    cls.loss_by_feat = lambda self, *args: {
        'my_loss': cls.__mro__[1].loss_by_feat(self, *args)[
            'task0.loss_heatmap']}
    own_targets = grow(
        stock(name), get_targets_single=lambda self, gt: None)
    model = nn.ModuleDict(dict(
        calm=calm, own_loss=own_loss, own_targets=own_targets))
    expected = own_loss.loss_by_feat(own_loss(x), batch)
    done = sigplug.accelerate(model)
    assert set(done.replaced) == {'calm', 'own_loss'}
    assert calm.extra() == 3 and isinstance(
        calm.loss_cls, GaussianFocalLossWithLogits)
    assert 'loss_by_feat of its own' in done.replaced['own_loss']
    torch.testing.assert_close(
        own_loss.loss_by_feat(own_loss(x), batch), expected,
        rtol=1e-6, atol=0)
    assert 'get_targets_single of its own' in done.left['own_targets']
    done.undo()
    assert type(own_loss) is cls


def loss_of_scores(self, preds):
    """In a generator, whose code is a constant of this one's."""
    return sum(self.loss_cls(
        clip_sigmoid(pred['heatmap'].clone()),
        torch.zeros_like(pred['heatmap'])) for pred, in preds)


@pytest.mark.parametrize('method', ['loss', 'helper'])
def test_an_own_loss_of_scores_gets_scores(method):
    head = grow(stock('CenterHead'), **{method: loss_of_scores})
    preds = head(features('CenterHead'))
    expected = getattr(head, method)(preds)
    done = sigplug.accelerate(head)
    assert f'{method} of its own' in str(done) and 'clip' not in str(done)
    assert 'targets' in done.replaced['']
    assert getattr(head, method)(preds).equal(expected)


def test_own_predictions_of_scores_get_scores():
    head = grow(stock(MONO), predict=lambda self, x: self(x)[0][0])
    x = features(MONO)
    expected = head.predict(x)
    assert 'predict of its own' in sigplug.accelerate(head).left['']
    assert head.predict(x).equal(expected)


def test_what_was_hidden_comes_back():
    head = stock('CenterHead')
    head.box_size, head.heatmap_act = 'mine', nn.Tanh()
    act = head.heatmap_act
    done = sigplug.accelerate(head)
    assert head.box_size == 9 and head.heatmap_act is not act
    head.eval()
    done.undo()
    assert head.box_size == 'mine' and head.heatmap_act is act
    assert not head.training


def test_only_what_is_new_moves():
    head = stock('CenterHead').to('meta')
    head.extra = nn.Linear(2, 2)
    sigplug.accelerate(head)
    assert head._code_weights.is_meta and not head.extra.weight.is_meta


def test_a_loss_with_hooks_stays(losses_of):
    head = stock('CenterHead')
    seen, loss = [], head.loss_cls
    loss.register_forward_hook(lambda *args: seen.append(1))
    done = sigplug.accelerate(head)
    assert head.loss_cls is loss and 'is left' in done.replaced['']
    assert losses_of(head) and seen


class OtherHead(nn.Module):
    """Of another repository, with mmdet's loss."""

    def __init__(self):
        super().__init__()
        self.loss_heatmap = stock('CenterHead').loss_cls


def test_what_is_left_is_reported():
    twice = stock(MONO)
    targets = grow(stock('CenterHead'), loss_by_feat=loss_of_scores)
    for head in (twice, targets):
        assert sigplug.accelerate(head).replaced
    done = sigplug.accelerate(nn.ModuleDict(dict(
        ours=build('CenterHead'), net=build('CenterNetHead'), twice=twice,
        targets=targets, other=OtherHead(), none=nn.Linear(2, 2))))
    assert not done.replaced
    assert 'docs/heads.md' in str(done)
    assert 'OtherHead' in done.left.pop('other')
    assert set(done.left) == {'ours', 'net', 'twice', 'targets'}
    assert all("already sigplug's" in why for why in done.left.values())
    assert str(sigplug.accelerate(nn.Linear(2, 2))) == (
        'no heatmap head was found')


@pytest.mark.parametrize('loss', [
    dict(loss_bbox=dict(type='mmdet.L1Loss', reduction='none')),
    dict(loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='none'))])
def test_a_reduction_that_does_not_fit_leaves_the_losses(losses_of, loss):
    head = stock('CenterHead', **loss)
    before, expected = state(head), losses_of(head)
    done = sigplug.accelerate(head)
    assert 'clip' not in str(done) and 'reduction' in str(done)
    torch.testing.assert_close(losses_of(head), expected, rtol=1e-6, atol=0)
    done.undo()
    assert state(head) == before


class Witness(Hook):

    def before_train_iter(self, runner, *args, **kwargs):
        self.seen = type(runner.model.head)


def test_hook_of_a_config(tmp_path):
    runner = make_runner(
        tmp_path, epochs=1, log_level='INFO',
        custom_hooks=[dict(type='sigplug.AccelerateHook')])
    runner.model.head, witness = stock('CenterNetHead'), Witness()
    kind = type(runner.model.head)
    runner.register_hook(witness)
    runner.train()
    assert issubclass(witness.seen, kind) and witness.seen is not kind
    assert type(runner.model.head) is kind
    log, = tmp_path.glob('*/*.log')
    assert 'head: targets without a loop over boxes' in log.read_text()
