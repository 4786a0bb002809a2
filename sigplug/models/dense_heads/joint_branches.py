"""The branches of all tasks of CenterPoint's head as a few convolutions.

A head for nuScenes has 36 branches of two small convolutions each. On a GPU
their launches take longer than their arithmetic.
"""
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet3d.models.dense_heads.centerpoint_head import SeparateHead
from torch import Tensor, nn


class _Branch(NamedTuple):
    """A branch, ``final(relu(norm(conv(x))))``, and what holds its layers."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    relu: nn.ReLU
    final: nn.Conv2d
    first: Any
    whole: nn.Sequential
    task: nn.Module
    name: str

    def is_free(self) -> bool:
        """Return whether it consists of these layers still, without hooks."""
        layers, whole = self.first._modules, self.whole._modules
        norm = self.first.norm_name
        return (self.task._modules.get(self.name) is self.whole
                and whole.get('0') is self.first
                and whole.get('1') is self.final
                and layers.get('conv') is self.conv
                and layers.get(norm) is self.norm
                and layers.get('activate') is self.relu
                and not any(map(_has_hooks, self[:6])))


class JointBranches:
    """Run branches that differ in their number of outputs alone as one.

    Their first convolutions share an input and become one with the channels
    of all. Their second ones become one whose weights are 0 between branches:
    more arithmetic, but several times as fast on a GPU as a grouped one. A
    value that is not finite in one branch so reaches all. Weights and
    statistics stay in the modules of the branches. The values are the same up
    to the rounding of a convolution.

    Args:
        tasks (nn.ModuleList): mmdet3d's ``SeparateHead`` of each task.

    Attributes:
        branches (list[_Branch]): All branches; empty where they are not of
            one kind, as mmdet3d builds them, and have to run one by one.
    """

    def __init__(self, tasks: nn.ModuleList) -> None:
        self.tasks = tasks
        self._tasks: list[Any] = [*tasks]
        found = [_read(task, name) for task in self._tasks
                 if type(task) is SeparateHead for name in task.heads]
        self.branches = [branch for branch in found if branch is not None]
        if (any(type(task) is not SeparateHead for task in tasks)
                or len(self.branches) < len(found)
                or len(set(map(_kind, self.branches))) != 1):
            self.branches = []

    def are_free(self) -> bool:
        """Return whether the branches may run as one at present.

        Hooks, layers that were replaced (by SyncBN, for one) and branches of
        which only some are frozen keep them apart.
        """
        training = {branch.norm.training for branch in self.branches}
        return (len(training) == 1 and [*self.tasks] == self._tasks
                and not any(map(_has_hooks, self._tasks))
                and all(branch.is_free() for branch in self.branches))

    def __call__(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Return the maps of each task by branch, ``(B, outputs, H, W)``."""
        convs, norms, _, finals, *_ = zip(*self.branches, strict=True)
        bias = None if convs[0].bias is None else _cat(convs, 'bias')
        hidden = F.conv2d(x, _cat(convs, 'weight'), bias, convs[0].stride,
                          convs[0].padding)
        hidden = F.relu(_normalise(hidden, norms), inplace=True)
        maps = iter(_finish(hidden, finals))
        return [{name: next(maps) for name in task.heads}
                for task in self._tasks]


def _read(task: Any, name: str) -> _Branch | None:
    """Return the layers of a branch, None if it has others."""
    branch: Any = getattr(task, name)
    if type(branch) is not nn.Sequential or len(branch) != 2:
        return None
    first: Any = branch[0]
    final: Any = branch[1]
    if (type(first) is not ConvModule or first.order != ('conv', 'norm', 'act')
            or not first.with_activation or first.with_spectral_norm
            or first.with_explicit_padding or first.norm is None):
        return None
    found = _Branch(first.conv, first.norm, first.activate, final, first,
                    branch, task, name)
    if [type(layer) for layer in found[:4]] != [
            nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]:
        return None
    norm = found.norm
    is_plain = (
        all((conv.groups, conv.dilation, conv.padding_mode) == (
            1, (1, 1), 'zeros') for conv in (found.conv, final))
        and final.bias is not None and norm.momentum is not None
        and norm.affine and norm.track_running_stats)
    return found if is_plain else None


def _kind(branch: _Branch) -> tuple[Any, ...]:
    """Return what has to be equal in all branches."""
    conv, norm, _, final, *_ = branch
    return (conv.weight.shape, conv.bias is None, conv.stride, conv.padding,
            norm.eps, norm.momentum, final.weight.shape[1:], final.stride,
            final.padding)


def _cat(modules: Sequence[nn.Module], name: str) -> Tensor:
    return torch.cat([getattr(module, name) for module in modules])


def _normalise(x: Tensor, norms: Sequence[nn.BatchNorm2d]) -> Tensor:
    """Normalise the channels of all branches, and update their statistics."""
    first = norms[0]
    assert first.momentum is not None
    mean, var = _cat(norms, 'running_mean'), _cat(norms, 'running_var')
    y = F.batch_norm(x, mean, var, _cat(norms, 'weight'), _cat(norms, 'bias'),
                     first.training, first.momentum, first.eps)
    if first.training:
        # Each in one launch, as torch's optimizers do it.
        for name, values in (('running_mean', mean), ('running_var', var)):
            torch._foreach_copy_([getattr(norm, name) for norm in norms],
                                 values.chunk(len(norms)))
        torch._foreach_add_([
            norm.get_buffer('num_batches_tracked') for norm in norms], 1)
    return y


def _finish(hidden: Tensor, finals: Sequence[nn.Conv2d]) -> Sequence[Tensor]:
    """Return the maps of all branches from the hidden channels of all."""
    sizes = tuple(final.out_channels for final in finals)
    weight = _cat(finals, 'weight')
    of_all = weight.new_zeros(
        len(weight), len(finals), *weight.shape[1:]).index_put(
            _places(sizes, weight.device), weight)
    return F.conv2d(
        hidden, of_all.flatten(1, 2), _cat(finals, 'bias'), finals[0].stride,
        finals[0].padding).contiguous().split(sizes, dim=1)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks
                or module._backward_hooks or module._backward_pre_hooks)


@functools.lru_cache(maxsize=16)
def _places(sizes: tuple[int, ...],
            device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the outputs and the branch of each."""
    # Kept for a training, too, if a prediction asks for them first.
    with torch.inference_mode(False):
        branches = torch.arange(len(sizes)).repeat_interleave(
            torch.tensor(sizes))
        return (torch.arange(len(branches), device=device),
                branches.to(device))
