"""A hook that logs the power of every generalised mean."""
from mmengine.runner import Runner

from sigplug.models.layers.learnable_power import LearnablePower
from sigplug.registry import HOOKS

from .interval import IntervalHook, log_values, unwrap


@HOOKS.register_module()
class GeMPowerHook(IntervalHook):
    """Log ``p`` of every GeM module: layers, necks, reductions of points.

    The value of the module ``a.gem`` is logged as ``train/p/a.gem`` through
    the message hub, so that mmengine's ``LoggerHook`` writes it to the log
    and to the visualiser; one per channel as ``.mean``, ``.min`` and
    ``.max``. It is the parameter itself, which may have drifted out of the
    module's ``p_range``; what is used is then the nearer bound.

    On a GPU it waits once for the device.

    Args:
        interval (int): Log every so many iterations of an epoch, and at the
            end of a shorter epoch, as ``LoggerHook`` does; best set to its
            interval. Defaults to 50, as there.

    Raises:
        ValueError: ``interval`` is not an integer of at least 1.
    """

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        """Hand the powers to the message hub."""
        if not self.is_due(runner, batch_idx):
            return
        powers = {}
        for name, module in unwrap(runner.model).named_modules():
            if isinstance(module, LearnablePower):
                p = module.p.detach().float()
                if len(p) == 1:
                    powers[f'p/{name}'] = p[0]
                else:
                    powers[f'p/{name}.mean'] = p.mean()
                    powers[f'p/{name}.min'] = p.min()
                    powers[f'p/{name}.max'] = p.max()
        log_values(runner, powers)
