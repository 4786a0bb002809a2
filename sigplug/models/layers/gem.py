"""Generalised-mean pooling as a layer."""
from collections.abc import Sequence

import torch.fx
from torch import Tensor

from sigplug.ops import gem_pool
from sigplug.ops._checks import check_flag
from sigplug.ops._windows import check_windows
from sigplug.registry import register_everywhere

from .learnable_power import LearnablePower

# To torch.fx the operation is one node: it looks at its input.
torch.fx.wrap('gem_pool')

Window = int | Sequence[int | None] | None


@register_everywhere
class GeM(LearnablePower):
    r"""Generalised-mean pooling, global or windowed.

    .. math::
        y = \Big(\frac{1}{N} \sum_{i=1}^N \max(x_i, \epsilon)^p\Big)^{1/p}

    See :func:`sigplug.ops.gem_pool`, which also checks the windows. The
    pooled dims stay, with size 1 when the pooling is global.

    Args:
        p (float | Sequence[float]): The (initial) power, above 0; 1 is the
            mean, and it tends to the maximum as it grows. A fixed ``p`` may
            be ``inf``. Defaults to 3.0.
        eps (float): Lower clamp of the input. Defaults to 1e-6.
        clamp (bool): Whether to clamp the input at ``eps``; without it the
            input must be non-negative. Defaults to True.
        p_trainable (bool): Whether ``p`` is trained. A fixed ``p`` is not
            part of the state_dict, but is taken over from a checkpoint that
            has one. Defaults to True.
        channels (int, optional): Number of channels, for one ``p`` per
            channel; ``None`` shares one. Defaults to None.
        kernel_size (int | tuple[int | None] | None): Window size; ``None``,
            also per entry, is the full extent. Defaults to None.
        stride (int | tuple[int | None] | None): Step of the windows.
            Defaults to ``kernel_size``.
        padding (int | tuple[int]): Zeros added on both sides, which count in
            the mean. Defaults to 0.
        p_range (tuple[float, float]): Smallest and largest value that is used
            of a trained ``p``. The optimiser may move it out, and back. A
            checkpoint with a ``p`` outside gives a warning.
            Defaults to (1.0, 50.0).
        output_size (int | tuple[int], optional): Number of windows along each
            dim, as for ``torch.nn.AdaptiveAvgPool2d``, instead of
            ``kernel_size``, ``stride`` and ``padding``. Defaults to None.

    Raises:
        TypeError: ``p`` or ``eps`` is not a number, or a switch not a bool.
        ValueError: An argument is out of its range.

    Examples:
        >>> GeM(p=3.0)(torch.rand(2, 8, 4, 4)).shape
        torch.Size([2, 8, 1, 1])
    """

    def __init__(self,
                 p: float | Sequence[float] = 3.0,
                 eps: float = 1e-6,
                 clamp: bool = True,
                 p_trainable: bool = True,
                 channels: int | None = None,
                 kernel_size: Window = None,
                 stride: Window = None,
                 padding: int | Sequence[int] = 0,
                 p_range: tuple[float, float] = (1.0, 50.0),
                 output_size: int | Sequence[int] | None = None) -> None:
        super().__init__(p, eps, p_trainable, channels, p_range)
        check_flag('clamp', clamp)
        check_windows(kernel_size, stride, padding, output_size)
        self.clamp = clamp
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``(N, C, *spatial)``; the dtype is kept."""
        return gem_pool(
            x,
            self.power(),
            self.kernel_size,
            self.stride,
            self.padding,
            eps=self.eps if self.clamp else None,
            output_size=self.output_size)

    def extra_repr(self) -> str:
        """Return the arguments that ``print(module)`` shows."""
        return (f'{super().extra_repr()}, clamp={self.clamp}, '
                f'kernel_size={self.kernel_size}, stride={self.stride}, '
                f'padding={self.padding}, output_size={self.output_size}')
