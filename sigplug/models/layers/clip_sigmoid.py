"""The clipped sigmoid as an activation layer."""
import torch.fx
from torch import Tensor, nn

from sigplug.ops import clip_sigmoid
from sigplug.ops._checks import check_between
from sigplug.registry import register_everywhere

# To torch.fx the operation is one node: it looks at its input.
torch.fx.wrap('clip_sigmoid')


@register_everywhere
class ClipSigmoid(nn.Module):
    """Sigmoid clipped to ``[min_val, max_val]``.

    See :func:`sigplug.ops.clip_sigmoid`. Configs select it by
    ``dict(type='ClipSigmoid')``, for instance as ``act_cfg`` of mmcv's
    ``ConvModule`` or as ``heatmap_act`` of :class:`sigplug.CenterHead`.

    Args:
        eps (float): Distance of both bounds from 0 and 1. Defaults to 1e-4.
        min_val (float, optional): Lower bound, instead of ``eps``.
        max_val (float, optional): Upper bound, instead of ``1 - eps``.
        grad (str): Gradient outside the bounds, ``'zero'`` or
            ``'straight_through'``. Defaults to ``'zero'``.
        inplace (bool): Accepted, as mmcv's ``ConvModule`` passes it to each
            activation; the input is never overwritten. Defaults to False.

    Raises:
        TypeError: A bound is not a number, or ``inplace`` not a bool.
        ValueError: A bound or ``grad`` is out of its range.

    Examples:
        >>> act = ClipSigmoid(min_val=0.01, max_val=0.99)
        >>> act(torch.tensor([-2., -4., 0., 6., 8.]))
        tensor([0.1192, 0.0180, 0.5000, 0.9900, 0.9900])
    """

    def __init__(self,
                 eps: float = 1e-4,
                 min_val: float | None = None,
                 max_val: float | None = None,
                 grad: str = 'zero',
                 inplace: bool = False) -> None:
        super().__init__()
        check_between('eps', eps, 0.0, 0.5)
        self.min_val = eps if min_val is None else min_val
        self.max_val = 1 - eps if max_val is None else max_val
        self.grad = grad
        self.inplace = inplace
        # The operation checks its arguments: now, not at the first batch.
        self.forward(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Activate logits of any shape; the dtype is kept."""
        return clip_sigmoid(
            x,
            self.min_val,
            self.max_val,
            grad=self.grad,
            inplace=self.inplace)

    def extra_repr(self) -> str:
        """Return the arguments that ``print(module)`` shows."""
        return (f'min_val={self.min_val}, max_val={self.max_val}, '
                f'grad={self.grad!r}, inplace={self.inplace}')
