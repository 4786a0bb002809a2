"""A hook that accelerates the stock heads of a model."""
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sigplug.acceleration import Acceleration, accelerate
from sigplug.registry import HOOKS


@HOOKS.register_module()
class AccelerateHook(Hook):
    """Call :func:`sigplug.accelerate` for a run, and undo it at its end.

    ``custom_hooks = [dict(type='sigplug.AccelerateHook')]`` in a config of
    stock heads is all that is needed. The log says what was replaced.
    """

    _done: Acceleration | None = None

    def before_run(self, runner: Runner) -> None:
        """Accelerate the model, before it is trained or tested."""
        self._done = accelerate(runner.model)
        runner.logger.info(f'AccelerateHook:\n{self._done}')

    def after_run(self, runner: Runner) -> None:
        """Give the model back its own parts."""
        if self._done is not None:
            self._done.undo()
