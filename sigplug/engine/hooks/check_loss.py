"""A training that has lost its numbers ends, and says where."""
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from sigplug.engine.preflight import PreflightError
from sigplug.registry import register_hook_everywhere


@register_hook_everywhere
class CheckLossHook(Hook):
    """End the training at the first loss that is NaN or infinite.

    mmdet's ``CheckInvalidLossHook`` does so every 50 iterations, without
    the name of the loss or of the data. Each iteration costs nothing more:
    mmengine's ``RuntimeInfoHook`` waits for the losses anyway.
    """

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        """Look at the losses.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Ignored.
            data_batch (dict, optional): The batch, whose files are named.
            outputs (dict[str, Tensor], optional): The losses, by names with
                ``loss`` in them as mmengine adds them up; what is only
                logged may be NaN.

        Raises:
            PreflightError: One of them is not finite.
        """
        wrong = [name for name, value in (outputs or {}).items()
                 if 'loss' in name and isinstance(value, Tensor)
                 and not value.isfinite().all()]
        if not wrong:
            return
        files = _files(data_batch)
        raise PreflightError(
            f'The training ends in iteration {runner.iter + 1}: '
            f'{", ".join(wrong)} {"is" if len(wrong) == 1 else "are"} NaN or '
            f'infinite. Batch: {", ".join(files) or "unknown"}. If these '
            'files are sound, which sigplug.CheckSample in the pipeline '
            'tells, train with a smaller learning rate or without mixed '
            'precision, from the weights of the last checkpoint '
            '(load_from; --resume restores the old rate).')


def _files(data_batch: Any) -> list[str]:
    samples = data_batch.get('data_samples') if isinstance(
        data_batch, dict) else None
    names = []
    for sample in samples if isinstance(samples, Sequence) else ():
        info = getattr(sample, 'metainfo', {})
        names.append(str(info.get('lidar_path') or info.get('img_path')))
    return names
