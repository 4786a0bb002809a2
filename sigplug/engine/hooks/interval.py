"""Hooks that act as often as a log is written."""
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sigplug.ops._checks import check_integer


class IntervalHook(Hook):
    """Base of hooks that act every so many iterations of an epoch.

    Args:
        interval (int): The number of iterations. A shorter epoch counts at
            its end, as for mmengine's ``LoggerHook``.

    Raises:
        ValueError: ``interval`` is not an integer of at least 1.
    """

    def __init__(self, interval: int) -> None:
        check_integer('interval', interval, 1)
        self.interval = interval

    def is_due(self, runner: Runner, batch_idx: int) -> bool:
        """Return whether the hook acts in an iteration of an epoch."""
        loader = runner.train_dataloader
        return self.every_n_inner_iters(batch_idx, self.interval) or (
            len(loader) <= self.interval
            and self.end_of_epoch(loader, batch_idx))
