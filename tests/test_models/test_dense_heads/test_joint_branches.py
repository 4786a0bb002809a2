"""The branches of a head as few convolutions, against one by one."""
import copy

import pytest
import torch
from torch import nn

from sigplug.models.dense_heads import CenterHead, joint_branches
from sigplug.models.dense_heads.joint_branches import JointBranches

from .center_heads import both, config, features


@pytest.fixture(scope='module')
def head():
    """Weights and statistics that differ from branch to branch."""
    torch.manual_seed(0)
    head = CenterHead(**config())
    for value in (*head.parameters(), *head.buffers()):
        if value.is_floating_point():
            value.data.uniform_(0.1, 0.5)
    return head


def run(head, jointly, training=True):
    """Return maps, gradients and the state after a pass."""
    head = copy.deepcopy(head).double().train(training)
    x = head.shared_conv(features()[0].double()).detach().requires_grad_()
    if jointly:
        joint = head._joint_branches
        assert joint.are_free()
        found = joint(x)
    else:
        found = [task(x) for task in head.task_heads]
    maps = [maps for task in found for maps in task.values()]
    assert [[*task] for task in found] == [
        [*task.heads] for task in head.task_heads]
    torch.manual_seed(1)
    torch.autograd.backward(maps, [torch.randn_like(y) for y in maps])
    grads = [p.grad for p in head.task_heads.parameters()]
    return maps, [x.grad, *grads], [*head.task_heads.buffers()]


@pytest.mark.parametrize('training', [True, False])
def test_values_gradients_and_statistics_are_those_of_the_branches(
        head, training):
    for found, expected in zip(run(head, True, training),
                               run(head, False, training), strict=True):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_trains_after_a_prediction_in_inference_mode(head):
    """What is kept between calls must not be of that mode."""
    joint_branches._places.cache_clear()
    with torch.inference_mode():
        head._joint_branches(head.shared_conv(features()[0]))
    run(head, True)


def test_a_deep_copy_has_its_own_branches(head):
    other = copy.deepcopy(head)
    for branch, own in zip(head._joint_branches.branches,
                           other._joint_branches.branches, strict=True):
        assert branch.conv is not own.conv and own.is_free()
    assert len(head._joint_branches.branches) == 36


def put(modules, name, change):
    modules[name] = change(modules[name])


CHANGES = dict(
    hook=lambda tasks: tasks[1].reg[0].conv.register_forward_hook(print),
    task_hook=lambda tasks: tasks[2].register_forward_pre_hook(print),
    frozen=lambda tasks: tasks[1].reg.eval(),
    norm=lambda tasks: put(
        tasks, 0, nn.SyncBatchNorm.convert_sync_batchnorm),
    branch=lambda tasks: put(tasks[4]._modules, 'reg', copy.deepcopy),
    task=lambda tasks: put(tasks, 4, copy.deepcopy),
    final=lambda tasks: put(tasks[5].reg, 1, lambda conv: nn.Identity()))


@pytest.mark.parametrize('name', CHANGES)
def test_what_differs_in_one_branch_keeps_them_apart(head, name):
    head = copy.deepcopy(head)
    assert head._joint_branches.are_free()
    CHANGES[name](head.task_heads)
    assert not head._joint_branches.are_free()


def test_branches_of_other_kinds_run_one_by_one(head):
    deeper = config()
    deeper['common_heads'] = dict(deeper['common_heads'], reg=(2, 3))
    assert not JointBranches(CenterHead(**deeper).task_heads).branches
    assert not JointBranches(nn.ModuleList(
        [*head.task_heads, nn.Identity()])).branches
    assert not JointBranches(nn.ModuleList([nn.Identity()])).are_free()
    plain = config()
    plain['separate_head'] = dict(plain['separate_head'], norm_cfg=None)
    assert not JointBranches(CenterHead(**plain).task_heads).branches


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('training', [True, False])
def test_the_head_runs_them_jointly_on_cuda(training, monkeypatch):
    calls = []
    run_jointly = JointBranches.__call__
    monkeypatch.setattr(JointBranches, '__call__', lambda self, x: (
        calls.append(x), run_jointly(self, x))[1])
    stock, ours = (head.cuda().double().train(training) for head in both())
    x = [x.cuda().double() for x in features()]
    for (expected, ), (found, ) in zip(stock(x), ours(x), strict=True):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
    assert len(calls) == 1
    torch.testing.assert_close(ours.state_dict(), stock.state_dict())
