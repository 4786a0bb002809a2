"""The power ``p`` of the generalised mean, fixed or trained."""
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sigplug.ops._checks import (
    check_flag,
    check_number,
    is_integer,
    is_number,
)


class Power(nn.Module):
    """Owns the power ``p`` of a GeM module.

    A trained ``p`` is a parameter of shape ``(1, )`` or ``(channels, )``.
    The optimiser moves it freely; what is used is its projection onto
    ``p_range``, with the gradient passed through, so that a value that has
    drifted out can come back. A fixed ``p`` is not part of the state_dict; one
    that a checkpoint brings is taken over.

    Args:
        p (float | Sequence[float]): The (initial) power, above 0; a sequence
            holds one value per channel. A fixed ``p`` may be ``inf``, which
            gives the maximum. Defaults to 3.0.
        p_trainable (bool): Whether ``p`` is trained. Defaults to True.
        channels (int, optional): Number of channels, for one ``p`` per
            channel; ``None`` shares one. Defaults to None.
        p_range (tuple[float, float]): Smallest and largest value that is
            used of a trained ``p``. Defaults to (1.0, 50.0).

    Raises:
        TypeError: An argument is of another type.
        ValueError: An argument is out of its range.
    """

    p: Tensor
    _initial_p: Tensor

    def __init__(self,
                 p: float | Sequence[float] = 3.0,
                 p_trainable: bool = True,
                 channels: int | None = None,
                 p_range: tuple[float, float] = (1.0, 50.0)) -> None:
        super().__init__()
        if (not isinstance(p_range, (tuple, list)) or len(p_range) != 2
                or not all(map(is_number, p_range))):
            raise ValueError(
                f'p_range must be two numbers, but got {p_range!r}')
        low, high = (float(bound) for bound in p_range)
        if not 0 < low < high < math.inf:
            raise ValueError('p_range must be two finite numbers with '
                             f'0 < low < high, but got {tuple(p_range)}')
        check_flag('p_trainable', p_trainable)
        if channels is not None and not is_integer(channels, 1):
            raise ValueError('channels must be an integer of at least 1 or '
                             f'None, but got {channels!r}')
        size = channels or 1
        values: list[Any] = list(p) if isinstance(p, (list, tuple)) else [p]
        for value in values:
            check_number('p', value)
        values = [float(value) for value in values]
        if len(values) not in (1, size):
            raise ValueError(f'p must be one value or one for each of '
                             f'channels={channels}, but got {len(values)}')
        if not all(value > 0 for value in values):
            raise ValueError(f'p must be above 0, but got {p}')
        if p_trainable and not all(low <= value <= high for value in values):
            raise ValueError('a trained p must start within '
                             f'p_range=({low}, {high}), but got p={p}: give '
                             'another range, or p_trainable=False')
        self.p_trainable = p_trainable
        self.p_range = (low, high)
        initial = torch.tensor(values * (size // len(values)))
        self.register_buffer('_initial_p', initial, persistent=False)
        if p_trainable:
            self.p = nn.Parameter(initial.clone())
        else:
            self.register_buffer('p', initial.clone(), persistent=False)
        self._shared_p = self._read_shared_p()

    def _read_shared_p(self) -> float | None:
        """A fixed ``p`` as a float, which selects the exact mean or maximum.

        Read once, since reading it from a GPU waits for the device. Hence it
        also keeps its value when the module is cast to a half type.
        """
        if self.p_trainable or self.p.is_meta:
            return None
        values = set(self.p.tolist())
        return values.pop() if len(values) == 1 else None

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str,
                              local_metadata: dict, strict: bool,
                              missing_keys: list[str],
                              unexpected_keys: list[str],
                              error_msgs: list[str]) -> None:
        """Load, and take over the ``p`` of a checkpoint that trained it."""
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      strict, missing_keys, unexpected_keys,
                                      error_msgs)
        key = f'{prefix}p'
        if self.p_trainable or key not in state_dict:
            return
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        found = state_dict[key]
        if found.shape != self.p.shape:
            # In torch's words, which tools read. It has said so already
            # where p is part of the state_dict.
            if not any(f' {key}: ' in message for message in error_msgs):
                error_msgs.append(
                    f'size mismatch for {key}: copying a param with shape '
                    f'{found.shape} from checkpoint, the shape in current '
                    f'model is {self.p.shape}.')
            return
        with torch.no_grad():
            self.p.copy_(found)
        self._shared_p = self._read_shared_p()

    def reset_parameters(self) -> None:
        """Set ``p`` back to its initial value."""
        with torch.no_grad():
            self.p.copy_(self._initial_p)
        self._shared_p = self._read_shared_p()

    def power(self) -> float | Tensor:
        """The ``p`` that is used: within ``p_range`` if it is trained."""
        if not self.p_trainable:
            return self.p if self._shared_p is None else self._shared_p
        # p - p.detach() is exactly 0: it adds a gradient and no value.
        used = self.p.detach().clamp(*self.p_range)
        return used + (self.p - self.p.detach())

    def extra_repr(self) -> str:
        """Arguments shown by ``print(module)``."""
        p = '?' if self.p.is_meta else [
            round(value, 4) for value in self.p.tolist()]
        trained = f', p_range={self.p_range}' if self.p_trainable else ''
        return f'p={p}, p_trainable={self.p_trainable}{trained}'
