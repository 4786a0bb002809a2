"""The heatmap loss of every head: an activation and a loss by config."""
import inspect
from collections.abc import Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from sigplug.ops._checks import check_weight
from sigplug.ops._dtypes import upcast_half
from sigplug.ops.gaussian_focal_loss import AVG_FACTOR_EPS
from sigplug.registry import MODELS, check_config


class SelectableAct:
    """Take ``heatmap_act`` in front of the arguments of a stock head.

    The sum of each loss in ``averaged``, that of the heatmap first, has to be
    divided by ``avg_factor``.
    """

    default_act = 'ClipSigmoid'
    averaged: tuple[str, ...] = ('loss_cls', )
    heatmap_act: nn.Module

    def __init__(self,
                 *args: Any,
                 heatmap_act: dict | None = None,
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_up(heatmap_act)

    def set_up(self: Any, heatmap_act: dict | None = None) -> None:
        """Check the parts of the stock head, and build what it lacks."""
        check_reductions(self, *self.averaged)
        self.heatmap_act = build_heatmap_act(
            heatmap_act, getattr(self, self.averaged[0]), self.default_act)


def build_heatmap_act(heatmap_act: dict | None, loss: nn.Module,
                      default: str) -> nn.Module:
    """Build the activation in front of a heatmap loss.

    It leaves its input as it is, and is the identity where ``loss`` takes
    logits, which its attribute ``from_logits`` says.

    Raises:
        TypeError: ``heatmap_act`` is not a config.
        ValueError: ``heatmap_act`` is given and ``loss`` takes logits.
    """
    if getattr(loss, 'from_logits', False):
        if heatmap_act is not None:
            raise ValueError(
                f'heatmap_act={heatmap_act} has no effect in front of '
                f'{type(loss).__name__}, which takes logits: set it to None, '
                'or choose a loss that takes probabilities')
        return nn.Identity()
    if heatmap_act is None:
        heatmap_act = dict(type=default)
    check_config('heatmap_act', heatmap_act)
    act = MODELS.build(heatmap_act)
    # The logits are still needed after the loss.
    if getattr(act, 'inplace', False):
        act.inplace = False
    return act


def heatmap_loss(act: nn.Module, loss: nn.Module, logits: Tensor,
                 target: Tensor, **kwargs: Any) -> Tensor:
    """Compute the loss of a heatmap, at least in float32.

    Half-precision dtypes have no numbers close to 1, nor do they sum
    thousands of cells well. The logits are left as they are.
    """
    return loss(act(upcast_half(logits)), target, **kwargs)


def class_losses(act: nn.Module, loss: nn.Module, logits: Tensor,
                 target: Tensor, weight: Tensor | None) -> Tensor:
    """Compute the loss of each class of a heatmap, ``(classes, )``.

    It is the sum over the cells, divided by the number of peaks of all
    classes that are not ignored: the sum of the losses is what
    ``heatmap_loss`` returns. Logits and target are ``(B, classes, H, W)``,
    ``weight`` is 0 for a cell to ignore, ``(B, 1, H, W)``, and ``loss`` takes
    ``weight`` and ``reduction_override`` as mmdet's do.
    """
    cells = heatmap_loss(act, loss, logits, target, weight=weight,
                         reduction_override='none')
    peaks = count_peaks(target if weight is None else target * weight)
    return cells.sum((0, 2, 3)) / (peaks + AVG_FACTOR_EPS)


def count_peaks(target: Tensor) -> Tensor:
    """Return the number of peaks, at least 1, without waiting for a GPU."""
    return target.eq(1).sum().clamp(min=1)


def check_reductions(head: nn.Module, *names: str) -> None:
    """Raise a ``ValueError`` unless losses of a head have ``'mean'``.

    With ``reduction='none'`` mmdet's losses ignore ``avg_factor``, and
    mmengine averages the map that they return: silently another scale.
    """
    for name in names:
        reduction = getattr(getattr(head, name), 'reduction', 'mean')
        if reduction != 'mean':
            raise ValueError(
                f"{name} of {type(head).__name__} must have reduction='mean', "
                'which divides its sum by the number of objects, but has '
                f'reduction={reduction!r}')


def check_class_weights(class_weights: Sequence[float], count: int) -> Tensor:
    """Return one weight per class as a tensor, or raise an error."""
    if len(class_weights) != count:
        raise ValueError(f'class_weights must have {count} values, one for '
                         f'each class of all tasks, but has '
                         f'{len(class_weights)}: {list(class_weights)}')
    for weight in class_weights:
        check_weight('class_weights', weight)
    return torch.tensor(class_weights)


def names_in(method: Any) -> set[str]:
    """Return the names that the code of a method or a property uses."""
    code = getattr(inspect.unwrap(getattr(method, 'fget', method)),
                   '__code__', method)
    if not isinstance(code, CodeType):
        return set()
    # Functions within it are among its constants.
    return {*code.co_names}.union(*map(names_in, code.co_consts))
