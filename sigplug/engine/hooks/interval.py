"""Hooks that act every so many iterations, and look at heads or layers."""
import logging
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from sigplug.errors import UserError
from sigplug.ops._checks import check_integer


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside the wrapper of a distributed training."""
    return cast(nn.Module, model.module) if is_model_wrapper(
        model) else model


def find_observable_heads(model: nn.Module) -> dict[str, Any]:
    """Find the heads with a list ``heatmap_observers``, by name."""
    return {
        name: module
        for name, module in unwrap(model).named_modules()
        if hasattr(module, 'heatmap_observers')
    }


def log_values(runner: Runner, values: Mapping[str, Tensor]) -> None:
    """Log scalars of a training, with one wait for the device for all."""
    if values:
        numbers = torch.stack(list(values.values())).tolist()
        for name, number in zip(values, numbers, strict=True):
            runner.message_hub.update_scalar(f'train/{name}', number)


class IntervalHook(Hook):
    """Base of hooks that act every so many iterations of an epoch.

    Args:
        interval (int): The number of iterations. A shorter epoch counts at
            its end, as for mmengine's ``LoggerHook``, whose default is 50,
            too.

    Raises:
        ValueError: ``interval`` is not an integer of at least 1.
    """

    def __init__(self, interval: int = 50) -> None:
        check_integer('interval', interval, 1)
        self.interval = interval

    def is_due(self, runner: Runner, batch_idx: int) -> bool:
        """Return whether the hook acts in an iteration of an epoch."""
        loader = runner.train_dataloader
        return self.every_n_inner_iters(batch_idx, self.interval) or (
            len(loader) <= self.interval
            and self.end_of_epoch(loader, batch_idx))


class HeatmapObserverHook(IntervalHook, metaclass=ABCMeta):
    """Base of hooks that observe every head like :class:`sigplug.CenterHead`.

    It is in the list ``heatmap_observers`` of each head only during the
    iterations that are due.
    """

    def __init__(self, interval: int) -> None:
        super().__init__(interval)
        self._heads: dict[str, Any] = {}
        self._attached: list[tuple[list[Callable], Callable]] = []
        # The heads that have not been heard of yet.
        self._silent: set[str] = set()

    @abstractmethod
    def _measure(self, head: Any, prefix: str, task: int, logits: Tensor,
                 target: Tensor) -> None:
        """Measure one task, if possible without waiting for a device.

        ``prefix`` is ``'{name}.'`` of the head if there are several; logits
        and target have the shape ``(B, classes, H, W)``.
        """

    @abstractmethod
    def _report(self, runner: Runner) -> None:
        """Report the measurements, if there are any."""

    def before_train(self, runner: Runner) -> None:
        """Find the heads.

        Raises:
            UserError: The model has no head that can be observed.
        """
        self._heads = find_observable_heads(runner.model)
        if not self._heads:
            raise UserError(
                f'{type(self).__name__}: {type(unwrap(runner.model)).__name__}'
                ' has no head whose heatmaps can be observed. Choose '
                "type='sigplug.CenterHead' for its head (in CenterPoint "
                'model.pts_bbox_head), or remove the hook from custom_hooks.')
        self._silent = set(self._heads)

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Any = None) -> None:
        """Observe the heads if the iteration is due."""
        if not self.is_due(runner, batch_idx):
            return
        for name, head in self._heads.items():
            observer = partial(self._observe, name)
            head.heatmap_observers.append(observer)
            self._attached.append((head.heatmap_observers, observer))

    def _observe(self, name: str, task: int, logits: Tensor,
                 target: Tensor) -> None:
        self._silent.discard(name)
        prefix = f'{name}.' if len(self._heads) > 1 else ''
        self._measure(self._heads[name], prefix, task, logits, target)

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Any = None, outputs: Any = None) -> None:
        """Stop observing the heads, and report the measurements."""
        if self._attached and self._silent:
            kinds = {type(self._heads[name]).__name__ for name in self._silent}
            print_log(
                f'{type(self).__name__} has seen no heatmap of '
                f'{", ".join(sorted(kinds))}: the loss of this head calls no '
                'observer, as that of sigplug.CenterHead does.',
                logger='current', level=logging.WARNING)
            self._silent.clear()
        for observers, observer in self._attached:
            observers.remove(observer)
        self._attached.clear()
        self._report(runner)
