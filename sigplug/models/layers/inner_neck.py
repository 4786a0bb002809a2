"""A base for necks that work on the outputs of another neck."""
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sigplug.registry import MODELS, check_config


class InnerNeck(nn.Module):
    """Base of necks that build an inner neck from its config.

    Checkpoints of a model that has the inner neck alone can be loaded: a key
    whose first part is no child of this module is the inner neck's. Strict
    loading reports the parameters that such a checkpoint does not have.

    Args:
        inner (dict | list[dict], optional): Config of the inner neck, or of
            several that follow each other; ``None`` works on the inputs
            themselves.

    Raises:
        TypeError: ``inner`` is not a config.
    """

    def __init__(self, inner: dict | list[dict] | None) -> None:
        super().__init__()
        if inner is not None:
            several = isinstance(inner, (tuple, list)) and inner
            for part in inner if several else [inner]:
                check_config('inner', part)
        self.inner = None if inner is None else MODELS.build(inner)

    def compute_levels(
        self, inputs: Tensor | Sequence[Tensor]
    ) -> Tensor | Sequence[Tensor]:
        """Return the outputs of the inner neck, or the inputs without one."""
        return inputs if self.inner is None else self.inner(inputs)

    def init_weights(self) -> None:
        """Initialise the inner neck, as mmengine's modules do."""
        if self.inner is not None and hasattr(self.inner, 'init_weights'):
            self.inner.init_weights()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str,
                              *args: Any) -> None:
        """Load a state_dict, also one of the inner neck alone."""
        if self.inner is not None:
            for key in [key for key in state_dict if key.startswith(prefix)]:
                name = key[len(prefix):]
                if name.partition('.')[0] not in self._modules:
                    state_dict[f'{prefix}inner.{name}'] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)
