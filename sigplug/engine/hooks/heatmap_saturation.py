"""A hook that logs how much of a heatmap sits at the clip of its sigmoid."""
from typing import Any

from mmengine.runner import Runner
from torch import Tensor

from sigplug.registry import HOOKS

from .interval import HeatmapObserverHook, log_values

# Counted against where a head does not clip: ClipSigmoid's default bounds.
NO_CLIP = (1e-4, 1 - 1e-4, False)


@HOOKS.register_module()
class HeatmapSaturationHook(HeatmapObserverHook):
    r"""Log the saturation of the heatmaps of :class:`sigplug.CenterHead`.

    With the scores :math:`s = \sigma(x)` of a task, its target :math:`t` and
    the clip :math:`[\mathrm{lo}, \mathrm{hi}]` in front of the loss:

    .. math::
        \mathrm{at\_lower\_clip} &= |\{s \le \mathrm{lo}\}| \,/\, |\{s\}| \\
        \mathrm{at\_upper\_clip} &= |\{s \ge \mathrm{hi}\}| \,/\, |\{s\}| \\
        \mathrm{stuck} &= |\{\text{wrong, no gradient}\}| \,/\,
                          |\{\text{wrong}\}|

    A cell is wrong if it is a peak (:math:`t = 1`) with :math:`s < 1/2`, or
    background (:math:`t < 1/2`) with :math:`s > 1/2`; next to a peak, where
    the target lies in between, a high score is not a mistake. A wrong cell
    gets no gradient beyond a clip with ``grad='zero'``, that is as a peak
    below ``lo`` or as background above ``hi``: training can no longer correct
    it. Where no cell is wrong, and with ``grad='straight_through'`` or a loss
    that does not clip its logits, ``stuck`` is 0. Without a clip the first
    two count against the default bounds of :class:`sigplug.ClipSigmoid`.

    The values are logged as ``train/task{i}.{name}`` through the message hub,
    so that mmengine's ``LoggerHook`` writes them to the log and to the
    visualiser. A model with several such heads gets the name of the head in
    front of ``task``. In a distributed run only rank 0 is measured, on its
    share of the batch.

    Only every ``interval``-th iteration is measured, which then waits once
    for the device. In between, the logger repeats the last values.

    Args:
        interval (int): Measure every so many iterations of an epoch, and at
            the end of a shorter epoch, as ``LoggerHook`` logs; best set to
            its interval. Defaults to 50, as there.

    Raises:
        ValueError: ``interval`` is not an integer of at least 1.
    """

    def __init__(self, interval: int = 50) -> None:
        super().__init__(interval)
        self._shares: dict[str, Tensor] = {}

    def _measure(self, head: Any, prefix: str, task: int, logits: Tensor,
                 target: Tensor) -> None:
        low, high, stops = head.heatmap_clip or NO_CLIP
        score = logits.sigmoid()
        wrong = ((target == 1) & (score < 0.5)) | (
            (target < 0.5) & (score > 0.5))
        # At a bound itself the gradient of clamp is still 1.
        stuck = wrong & ((score < low) | (score > high)) & stops
        cells = score.numel()
        self._shares |= {
            f'{prefix}task{task}.at_lower_clip': (score <= low).sum() / cells,
            f'{prefix}task{task}.at_upper_clip': (score >= high).sum() / cells,
            f'{prefix}task{task}.stuck': (
                stuck.sum() / wrong.sum().clamp(min=1))}

    def _report(self, runner: Runner) -> None:
        log_values(runner, self._shares)
        self._shares.clear()
