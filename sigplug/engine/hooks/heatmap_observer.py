"""Hooks that look at heatmaps and their targets while a head trains."""
from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from sigplug.errors import UserError

from .interval import IntervalHook


class HeatmapObserverHook(IntervalHook, metaclass=ABCMeta):
    """Base of hooks that observe every head like :class:`sigplug.CenterHead`.

    Args:
        interval (int): See :class:`IntervalHook`.
    """

    def __init__(self, interval: int) -> None:
        super().__init__(interval)
        # Heads, which have attributes of any type, and their observers.
        self._attached: list[tuple[Any, Callable]] = []
        self._measuring = False

    @abstractmethod
    def _measure(self, head: Any, prefix: str, task: int, logits: Tensor,
                 target: Tensor) -> None:
        """Take what is needed of one task; best, do not wait for a device.

        Args:
            head (nn.Module): The head.
            prefix (str): ``'{name}.'`` of the head if there are several.
            task (int): The number of the task.
            logits (Tensor): Shape ``(B, classes, H, W)``, float32.
            target (Tensor): Of the same shape.
        """

    @abstractmethod
    def _report(self, runner: Runner) -> None:
        """Hand on what was taken, if anything was.

        Args:
            runner (Runner): The runner of the training.
        """

    def before_train(self, runner: Runner) -> None:
        """Start to observe the heads.

        Args:
            runner (Runner): The runner of the training.

        Raises:
            UserError: The model has no head that can be observed.
        """
        self._detach()
        heads = find_observable_heads(runner.model)
        if not heads:
            raise UserError(
                f'{type(self).__name__}: {type(unwrap(runner.model)).__name__}'
                ' has no head whose heatmaps can be observed. Choose '
                "type='sigplug.CenterHead' for its head (in CenterPoint "
                'model.pts_bbox_head), or remove the hook from custom_hooks.')
        for name, head in heads.items():
            prefix = f'{name}.' if len(heads) > 1 else ''
            # No closure: a copy of the model is to observe itself.
            observer = partial(self._observe, head, prefix)
            head.heatmap_observers.append(observer)
            self._attached.append((head, observer))

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          *args: Any, **kwargs: Any) -> None:
        """Decide whether this iteration is measured.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Index of the batch in the loop.
            *args: Ignored.
            **kwargs: Ignored.
        """
        self._measuring = self.is_due(runner, batch_idx)

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Report what was measured.

        Args:
            runner (Runner): The runner of the training.
            *args: Ignored.
            **kwargs: Ignored.
        """
        self._measuring = False
        self._report(runner)

    def after_train(self, runner: Runner) -> None:
        """Leave the heads alone again.

        Args:
            runner (Runner): The runner of the training.
        """
        self._detach()

    def _observe(self, *args: Any) -> None:
        if self._measuring:
            self._measure(*args)

    def _detach(self) -> None:
        for head, observer in self._attached:
            if observer in head.heatmap_observers:
                head.heatmap_observers.remove(observer)
        self._attached.clear()
        self._measuring = False


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside the wrapper of a distributed training."""
    return cast(nn.Module, model.module) if is_model_wrapper(
        model) else model


def find_observable_heads(model: nn.Module) -> dict[str, Any]:
    """The heads with a list ``heatmap_observers``, by name.

    Args:
        model (nn.Module): The model, or its wrapper.

    Returns:
        dict[str, Any]: The heads.
    """
    return {
        name: module
        for name, module in unwrap(model).named_modules()
        if hasattr(module, 'heatmap_observers')
    }
