"""The activation between the logits of a heatmap and its loss."""
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sigplug.ops._dtypes import upcast_half
from sigplug.registry import MODELS, check_config


def build_heatmap_act(heatmap_act: dict | None, loss: nn.Module | None,
                      default: dict) -> nn.Module:
    """Build the activation in front of a heatmap loss.

    Args:
        heatmap_act (dict, optional): Config of the activation, None for the
            default.
        loss (nn.Module, optional): The loss; one that takes logits says so by
            an attribute ``from_logits``.
        default (dict): Config for a loss that takes probabilities.

    Returns:
        nn.Module: The activation, which leaves its input as it is; the
        identity where ``loss`` takes logits.

    Raises:
        TypeError: ``heatmap_act`` is no config.
        ValueError: ``heatmap_act`` is given and ``loss`` takes logits.
    """
    takes_logits = getattr(loss, 'from_logits', False)
    if takes_logits and heatmap_act is not None:
        raise ValueError(
            f'heatmap_act={heatmap_act} has no effect in front of '
            f'{type(loss).__name__}, which takes logits: '
            'set it to None, or choose a loss that takes probabilities')
    if heatmap_act is None:
        heatmap_act = default
    check_config('heatmap_act', heatmap_act)
    act = nn.Identity() if takes_logits else MODELS.build(heatmap_act)
    # The logits are still needed after the loss.
    if getattr(act, 'inplace', False):
        act.inplace = False
    return act


class HeatmapLogits:
    """Stands for logits whose ``sigmoid`` is the activation of a head.

    mmdet writes ``logits.sigmoid()`` in the middle of its losses. Given this
    in the place of the logits, those lines apply the activation, and no other
    sigmoid is touched, such as one inside of a loss. There is no more to it
    than mmdet does with the logits before, so that anything new there fails
    loudly.

    Args:
        logits (Tensor): Logits of any shape.
        act (Callable): The activation; it gets at least float32, since half
            types hold no probability close to 1.
    """

    def __init__(self, logits: Tensor,
                 act: Callable[[Tensor], Tensor]) -> None:
        self.logits = logits
        self.act = act

    def sigmoid(self) -> Tensor:
        """Activate."""
        return self.act(upcast_half(self.logits))

    def size(self, *dim: int) -> Any:
        """Size of the logits."""
        return self.logits.size(*dim)

    def permute(self, *dims: int) -> 'HeatmapLogits':
        """Permute the dims."""
        return HeatmapLogits(self.logits.permute(*dims), self.act)

    def reshape(self, *shape: int) -> 'HeatmapLogits':
        """Change the shape."""
        return HeatmapLogits(self.logits.reshape(*shape), self.act)

    @classmethod
    def __torch_function__(cls, func: Callable, types: Sequence[type],
                           args: tuple = (),
                           kwargs: dict | None = None) -> 'HeatmapLogits':
        """Concatenate; nothing else that takes tensors takes this."""
        if func is not torch.cat:
            return NotImplemented
        parts, *rest = args
        return cls(
            func([part.logits for part in parts], *rest, **(kwargs or {})),
            parts[0].act)
