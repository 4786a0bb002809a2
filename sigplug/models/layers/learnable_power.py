"""The power ``p`` of the generalised mean, fixed or trained."""
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sigplug.ops._checks import (
    check_flag,
    check_integer,
    check_number,
    check_positive,
    is_number,
    warn,
)


class LearnablePower(nn.Module):
    """Hold the power ``p`` and the clamp ``eps`` of a GeM module.

    A trained ``p`` is a parameter of shape ``(1, )`` or ``(channels, )``. The
    optimiser moves it freely; its projection onto ``p_range`` is used, with
    the gradient passed through, so that a value that has drifted out can come
    back. A fixed ``p`` is not part of the state_dict, but is taken over from
    a checkpoint that has one. The arguments are those of :class:`GeM`.
    """

    p: Tensor
    # True to have a fixed p in the state_dict too.
    stores_fixed_p = False

    def __init__(self,
                 p: float | Sequence[float] = 3.0,
                 eps: float = 1e-6,
                 p_trainable: bool = True,
                 channels: int | None = None,
                 p_range: tuple[float, float] = (1.0, 50.0)) -> None:
        super().__init__()
        check_positive('eps', eps)
        check_flag('p_trainable', p_trainable)
        if channels is not None:
            check_integer('channels', channels, 1)
        self.eps = eps
        self.p_trainable = p_trainable
        self.p_range = _check_range(p_range)
        self.initial_p = self._check_values(p, channels)
        values = torch.empty(len(self.initial_p))
        if p_trainable:
            self.p = nn.Parameter(values)
        else:
            self.register_buffer('p', values, self.stores_fixed_p)
        self.reset_parameters()

    def _check_values(self, p: Any, channels: int | None) -> list[float]:
        """Return one value per channel."""
        values = list(p) if isinstance(p, (list, tuple)) else [p]
        for value in values:
            check_number('p', value)
        size = channels or 1
        if len(values) not in (1, size):
            raise ValueError(f'p must be one value or {size}, one for each '
                             f'channel, level or group, but got {p}')
        if not all(value > 0 for value in values):
            raise ValueError(f'p must be above 0, but got {p}')
        low, high = self.p_range
        if self.p_trainable and not all(low <= v <= high for v in values):
            raise ValueError('a trained p must start within '
                             f'p_range=({low}, {high}), but got p={p}: give '
                             'another range, or p_trainable=False')
        return [float(value) for value in values] * (size // len(values))

    def reset_parameters(self) -> None:
        """Set ``p`` to its initial value."""
        with torch.no_grad():
            self.p.copy_(torch.tensor(self.initial_p))
        self._read_fixed_p()

    def _read_fixed_p(self) -> None:
        """Keep a fixed ``p`` as a float, for the exact mean and maximum.

        Not at each call, as reading from a GPU waits for it. A cast of the
        module to a half-precision dtype does not change the float.
        """
        self._fixed_p: float | None = None
        if not self.p_trainable and not self.p.is_meta:
            values = set(self.p.tolist())
            self._fixed_p = values.pop() if len(values) == 1 else None

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str,
                              *args: Any) -> None:
        """Take over a fixed ``p`` too, and warn of one out of its range."""
        found = state_dict.get(f'{prefix}p')
        if not self.p_trainable and found is not None:
            # Part of the state_dict only while it is loaded.
            self.register_buffer('p', self.p, persistent=True)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not self.p_trainable:
            self.register_buffer('p', self.p, self.stores_fixed_p)
            self._read_fixed_p()
        elif found is not None and not found.is_meta:
            low, high = self.p_range
            if not ((found >= low) & (found <= high)).all():
                values = [round(value, 4) for value in found.tolist()]
                warn(f'{prefix}p={values} of the checkpoint lies outside '
                     f'p_range=({low}, {high}): the nearest value within is '
                     'used. Give another p_range to use p itself.')

    def power(self) -> float | Tensor:
        """Return the ``p`` to use: within ``p_range`` if it is trained."""
        if not self.p_trainable:
            return self.p if self._fixed_p is None else self._fixed_p
        used = self.p.detach().clamp(*self.p_range)
        if torch.jit.is_tracing() and not self.training:
            # A graph that does not depend on whether gradients are enabled.
            return used
        # p - p.detach() is exactly 0: it adds a gradient and no value.
        return used + (self.p - self.p.detach())

    def extra_repr(self) -> str:
        """Return the arguments that ``print(module)`` shows."""
        p = '?' if self.p.is_meta else [
            round(value, 4) for value in self.p.tolist()]
        trained = f', p_range={self.p_range}' if self.p_trainable else ''
        return (f'p={p}, eps={self.eps}, '
                f'p_trainable={self.p_trainable}{trained}')


def _check_range(p_range: Any) -> tuple[float, float]:
    """Return two finite numbers with ``0 < low < high``."""
    if (not isinstance(p_range, (tuple, list)) or len(p_range) != 2
            or not all(map(is_number, p_range))):
        raise ValueError(f'p_range must be two numbers, but got {p_range!r}')
    low, high = (float(bound) for bound in p_range)
    if not 0 < low < high < math.inf:
        raise ValueError('p_range must be two finite numbers with '
                         f'0 < low < high, but got {tuple(p_range)}')
    return low, high
