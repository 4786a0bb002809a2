"""A hook that ends a training whose losses are no longer finite."""
import logging
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor

from sigplug.errors import UserError
from sigplug.ops._checks import check_integer
from sigplug.registry import HOOKS

from .checkpoint_fit import STATISTICS


@HOOKS.register_module()
class CheckLossHook(Hook):
    """End the training at the first loss that is NaN or infinite.

    mmdet's ``CheckInvalidLossHook`` checks every 50 iterations only, and
    names neither the loss nor the data. The check costs nothing: mmengine's
    ``RuntimeInfoHook`` waits for the losses anyway.

    In mixed precision with a loss scaler (``AmpOptimWrapper``) an overflow
    may pass: gradients that are not finite change no weight. There the
    training goes on, with a warning, and ends

    - after more than ``patience`` such losses in a row,
    - once the scaler has lowered its scale below 1, where nothing of the
      range of float16 is left to gain,
    - at once if the running statistics of a batch norm are no longer finite,
      which they would stay.

    Args:
        patience (int): With a loss scaler, how many losses in a row may not
            be finite. Defaults to 10.

    Raises:
        ValueError: ``patience`` is not an integer of at least 0.
    """

    def __init__(self, patience: int = 10) -> None:
        check_integer('patience', patience, 0)
        self.patience = patience
        self._in_a_row = 0

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        """Check the losses.

        They are the ``outputs`` with ``loss`` in their names, which mmengine
        adds up; what is only logged may be NaN.

        Raises:
            UserError: One of them is not finite.
        """
        wrong = [name for name, value in (outputs or {}).items()
                 if 'loss' in name and isinstance(value, Tensor)
                 and not value.isfinite().all()]
        if not wrong:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        what = (f'{", ".join(wrong)} {"is" if len(wrong) == 1 else "are"} NaN '
                f'or infinite. Batch: '
                f'{", ".join(_files(data_batch)) or "unknown"}.')
        if self._in_a_row <= self.patience and _is_harmless(runner):
            print_log(
                f'Iteration {runner.iter + 1}: {what} The loss scaler takes '
                'no step by gradients that overflow, and training goes on.',
                logger='current', level=logging.WARNING)
            return
        raise UserError(
            f'The training ends in iteration {runner.iter + 1}: {what} If '
            'these files are sound, which sigplug.CheckSample in the pipeline '
            'tells, train with a smaller learning rate or without mixed '
            'precision, from the weights of the last checkpoint '
            '(load_from; --resume restores the old rate).')


def _is_harmless(runner: Runner) -> bool:
    """Return whether an overflow has changed nothing in the model."""
    scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
    return (scaler is not None and scaler.is_enabled()
            and scaler.get_scale() >= 1 and all(
                value.isfinite().all()
                for name, value in runner.model.named_buffers()
                if name.endswith(STATISTICS)))


def _files(data_batch: Any) -> list[str]:
    samples = data_batch.get('data_samples') if isinstance(
        data_batch, dict) else None
    names = []
    for sample in samples if isinstance(samples, Sequence) else ():
        info = getattr(sample, 'metainfo', {})
        names.append(str(info.get('lidar_path') or info.get('img_path')))
    return names
