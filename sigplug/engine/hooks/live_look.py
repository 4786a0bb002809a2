"""One switch for everything that TensorBoard can show of a training."""
import os.path as osp
from importlib.util import find_spec

from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import print_log
from mmengine.registry import VISBACKENDS
from mmengine.runner import Runner

from sigplug.errors import UserError
from sigplug.models.layers.learnable_power import LearnablePower
from sigplug.registry import HOOKS

from .bev_image import BEVImageHook
from .gem_power import GeMPowerHook
from .heatmap_image import HeatmapImageHook
from .heatmap_saturation import HeatmapSaturationHook
from .interval import find_observable_heads

BACKEND = 'TensorboardVisBackend'


@HOOKS.register_module()
class LiveLookHook(Hook):
    """Show a training in TensorBoard while it runs.

    One value of the config switches it on::

        default_hooks.live.type=sigplug.LiveLookHook

    It adds mmengine's ``TensorboardVisBackend`` to the visualiser of the
    runner, and the hooks for what mmengine does not log by itself:
    :class:`HeatmapSaturationHook` and :class:`GeMPowerHook` as often as
    ``LoggerHook`` logs, :class:`HeatmapImageHook` and :class:`BEVImageHook`
    with their defaults. A hook that the config already has stays as it is.
    Where the model has no head like :class:`sigplug.CenterHead`, or no GeM,
    there is a line in the log.

    ``tools/analysis_tools/live_look.py WORK_DIR`` starts TensorBoard.
    """

    # Before the run, so that the added hooks miss nothing of it. With a low
    # priority mmengine calls it twice, which adds nothing.
    def before_run(self, runner: Runner) -> None:
        """Add the backend and the hooks.

        Raises:
            UserError: TensorBoard is not installed.
        """
        if find_spec('tensorboard') is None:
            raise UserError(
                'LiveLookHook needs TensorBoard: pip install tensorboard, or '
                'train without default_hooks.live.')
        visualizer = runner.visualizer
        if visualizer.get_backend(BACKEND) is None:
            # mmengine's Visualizer has no method that adds one.
            visualizer._vis_backends[BACKEND] = VISBACKENDS.build(dict(
                type=f'mmengine.{BACKEND}',
                save_dir=osp.join(runner.log_dir, 'vis_data')))
        logged = [hook.interval for hook in runner.hooks
                  if isinstance(hook, LoggerHook)]
        interval = logged[0] if logged else 50
        parts, missing = [BEVImageHook()], []
        if find_observable_heads(runner.model):
            parts += [HeatmapSaturationHook(interval), HeatmapImageHook()]
        else:
            missing.append('heatmaps, since no head is like '
                           'sigplug.CenterHead')
        if any(isinstance(module, LearnablePower)
               for module in runner.model.modules()):
            parts.append(GeMPowerHook(interval))
        else:
            missing.append('p, since the model has no GeM')
        for part in parts:
            if not any(isinstance(hook, type(part)) for hook in runner.hooks):
                runner.register_hook(part)
        if missing:
            print_log(f'LiveLookHook: TensorBoard will not show '
                      f'{", nor ".join(missing)}.', logger='current')
