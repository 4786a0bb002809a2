"""Pictures of heatmaps beside their targets."""
import torch
from mmengine.dist import is_main_process
from mmengine.runner import Runner
from torch import Tensor, nn

from sigplug.registry import HOOKS

from .interval import HeatmapObserverHook


@HOOKS.register_module()
class HeatmapImageHook(HeatmapObserverHook):
    """Show heatmaps of :class:`sigplug.CenterHead` beside their targets.

    The picture, ``heatmap_beside_target``, goes to the visualiser of the
    runner and so to each of its backends. It has the first sample of the
    batch from above: on the left the highest score of all classes in each
    cell, on the right the target, see
    :func:`sigplug.visualization.draw_heatmap_pair`. A model with several such
    heads gives one picture for each, named ``{head}.heatmap_beside_target``.
    Only rank 0 draws.

    Args:
        interval (int): Draw every so many iterations of an epoch, and at the
            end of a shorter epoch. Defaults to 500.

    Raises:
        ValueError: ``interval`` is not an integer of at least 1.
    """

    def __init__(self, interval: int = 500) -> None:
        super().__init__(interval)
        # Score and target of each task, by the prefix of the head.
        self._maps: dict[str, list[Tensor]] = {}

    def _measure(self, head: nn.Module, prefix: str, task: int, logits: Tensor,
                 target: Tensor) -> None:
        if is_main_process():
            # An overflow that mixed precision passes over may be NaN.
            score = logits[0].sigmoid().nan_to_num()
            pair = torch.stack([score, target[0]])
            self._maps.setdefault(prefix, []).append(pair.amax(1))

    def _report(self, runner: Runner) -> None:
        for prefix, tasks in self._maps.items():
            # matplotlib is imported with the first picture.
            from sigplug.visualization import draw_heatmap_pair
            pair = torch.stack(tasks).amax(0).cpu().numpy()
            runner.visualizer.add_image(
                f'{prefix}heatmap_beside_target', draw_heatmap_pair(*pair),
                runner.iter + 1)
        self._maps.clear()
