"""Channel context from a generalised-mean descriptor."""
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sigplug.ops._checks import check_integer, check_positive
from sigplug.registry import register_everywhere

from .gem import GeM
from .inner_neck import InnerNeck

FUSION_TYPES = ('channel_mul', 'channel_add')


@register_everywhere
class GeMContext(InnerNeck):
    r"""Weight or shift each channel by a descriptor of the whole map.

    .. math::
        t = W_2 \, \mathrm{relu}(W_1 \, \mathrm{GeM}(x) + b_1) + b_2, \qquad
        y = \begin{cases}
            2 \, \sigma(t) \cdot x & \text{channel\_mul} \\
            x + t & \text{channel\_add}
        \end{cases}

    :math:`W_2` and :math:`b_2` start at 0, where both forms are exactly the
    identity: a trained model keeps its values when the layer is added.
    ``init_weights`` restores that after the ``init_cfg`` of a model. The
    descriptor sees values above ``eps`` only.

    It has two uses. As a plugin of mmcv, where ``in_channels`` comes from the
    backbone::

        plugins=[dict(cfg=dict(type='sigplug.GeMContext', ratio=1. / 16),
                      position='after_conv3')]

    and as a neck, on each level that an inner neck returns::

        neck=dict(type='sigplug.GeMContext', in_channels=256,
                  inner=dict(type='FPN', ...))

    A checkpoint of the model with only the inner neck loads without
    ``strict``: it lacks ``contexts.*`` alone.

    Source: the multiplication is that of `Squeeze-and-Excitation Networks
    <https://arxiv.org/abs/1709.01507>`_, eq. (3), with a gate of 1 at the
    start; the addition, ``ratio`` and the names of the fusion types are those
    of `GCNet <https://arxiv.org/abs/1904.11492>`_, without its layer norm.

    Args:
        in_channels (int | Sequence[int]): Number of channels of all levels,
            which share one context, or of each level, which then has its own.
        ratio (float): Width of the hidden layer, in parts of the channels; it
            has one unit at least. Defaults to 1/16.
        fusion_type (str): ``'channel_mul'`` or ``'channel_add'``.
            Defaults to ``'channel_mul'``.
        p (float): See :class:`GeM`, as for the next three.
        eps (float): Lower clamp of the descriptor's input.
        p_trainable (bool): Whether ``p`` is trained.
        p_range (tuple[float, float]): Range in which ``p`` is used.
        inner (dict | list[dict], optional): Config of the inner neck.
            Defaults to None.

    Examples:
        >>> x = torch.rand(2, 32, 4, 4)
        >>> GeMContext(32)(x).equal(x)
        True
    """

    # mmcv names the plugin within its block by this.
    _abbr_ = 'gem_context'

    def __init__(self,
                 in_channels: int | Sequence[int],
                 ratio: float = 1 / 16,
                 fusion_type: str = 'channel_mul',
                 p: float = 3.0,
                 eps: float = 1e-6,
                 p_trainable: bool = True,
                 p_range: tuple[float, float] = (1.0, 50.0),
                 inner: dict | list[dict] | None = None) -> None:
        super().__init__(inner)
        if fusion_type not in FUSION_TYPES:
            raise ValueError(f'fusion_type must be one of {FUSION_TYPES}, but '
                             f'got {fusion_type!r}')
        check_positive('ratio', ratio)
        self.per_level = isinstance(in_channels, (tuple, list))
        channels: Any = in_channels if self.per_level else [in_channels]
        for c in channels or [in_channels]:
            check_integer('in_channels', c, 1)
        self.in_channels = in_channels
        self.fusion_type = fusion_type
        self.contexts: Any = nn.ModuleList(
            _Context(c, max(1, int(c * ratio)),
                     GeM(p, eps, p_trainable=p_trainable, p_range=p_range))
            for c in channels)

    def init_weights(self) -> None:
        """Restore the identity after a model's ``init_cfg``."""
        super().init_weights()
        for context in self.contexts:
            context.reset_parameters()

    def forward(
        self, inputs: Tensor | Sequence[Tensor]
    ) -> Tensor | Sequence[Tensor]:
        """Apply the context to each level; shapes and dtypes are kept.

        The outputs of the inner neck, or the inputs without one, are the
        levels: a map ``(N, C, H, W)``, or a tuple or list of them.

        Raises:
            ValueError: They do not have the channels of ``in_channels``.
        """
        levels = self.compute_levels(inputs)
        if isinstance(levels, Tensor):
            return self._fuse_levels([levels])[0]
        outs = self._fuse_levels(levels)
        return outs if isinstance(levels, list) else tuple(outs)

    def _fuse_levels(self, levels: Sequence[Tensor]) -> list[Tensor]:
        contexts = list(self.contexts)
        if not self.per_level:
            contexts *= len(levels)
        got = [x.shape[1] for x in levels]
        if got != [context.conv1.in_channels for context in contexts]:
            raise ValueError(f'in_channels={self.in_channels} does not fit '
                             f'{len(got)} level(s) of {got} channels: give '
                             'one number for all levels, or one for each')
        return [self._fuse(x, context(x))
                for x, context in zip(levels, contexts)]

    def _fuse(self, x: Tensor, t: Tensor) -> Tensor:
        if self.fusion_type == 'channel_mul':
            return x * (2 * t.sigmoid()).to(x.dtype)
        return x + t.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the arguments that ``print(module)`` shows."""
        return (f'in_channels={self.in_channels}, '
                f'fusion_type={self.fusion_type!r}')


class _Context(nn.Module):
    """Transform the descriptor of a map, to ``(N, C, 1, 1)``."""

    def __init__(self, in_channels: int, hidden: int, gem: GeM) -> None:
        super().__init__()
        self.gem = gem
        self.conv1 = nn.Conv2d(in_channels, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, in_channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the first convolution, and set the second one to 0."""
        for parameter in (*self.conv1.parameters(), *self.conv2.parameters()):
            nn.init.zeros_(parameter)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity='relu')

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(self.gem(x)).relu())
