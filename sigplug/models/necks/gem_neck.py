"""Generalised-mean pooling as a global neck."""
from collections.abc import Sequence

from torch import Tensor

from sigplug.models.layers.gem import GeM
from sigplug.registry import register_everywhere


@register_everywhere
class GeMNeck(GeM):
    """Global generalised-mean pooling of one or several feature maps.

    Takes the place, the keyword arguments and the checkpoints (parameter
    ``p`` of shape ``(1, )``) of mmpretrain's ``GeneralizedMeanPooling``. All
    levels share ``p``. See :class:`sigplug.models.GeM`.

    Args:
        p (float | Sequence[float]): The (initial) power. Defaults to 3.0.
        eps (float): Lower clamp of the input. Defaults to 1e-6.
        clamp (bool): Whether to clamp the input at ``eps``.
            Defaults to True.
        p_trainable (bool): Whether ``p`` is trained. Defaults to True.
        channels (int, optional): Number of channels, for one ``p`` per
            channel. Defaults to None.
        p_range (tuple[float, float]): Smallest and largest value that is used
            of a trained ``p``. Defaults to (1.0, 50.0).

    Examples:
        >>> outs = GeMNeck()((torch.rand(2, 8, 4, 4), torch.rand(2, 16, 2, 2)))
        >>> [tuple(out.shape) for out in outs]
        [(2, 8), (2, 16)]
    """

    def __init__(self,
                 p: float | Sequence[float] = 3.0,
                 eps: float = 1e-6,
                 clamp: bool = True,
                 p_trainable: bool = True,
                 channels: int | None = None,
                 p_range: tuple[float, float] = (1.0, 50.0)) -> None:
        super().__init__(
            p=p,
            eps=eps,
            clamp=clamp,
            p_trainable=p_trainable,
            channels=channels,
            p_range=p_range)

    def forward(
        self, inputs: Tensor | Sequence[Tensor]
    ) -> Tensor | tuple[Tensor, ...]:
        """Pool each level to ``(N, C)``.

        Args:
            inputs (Tensor | Sequence[Tensor]): One feature map
                ``(N, C, *spatial)``, or a tuple or list of them.

        Returns:
            Tensor | tuple[Tensor]: ``(N, C)``, one per level if a sequence
            was given.

        Raises:
            TypeError: ``inputs`` is neither a tensor nor a tuple or list.
        """
        if isinstance(inputs, Tensor):
            return super().forward(inputs).flatten(1)
        if isinstance(inputs, (tuple, list)):
            return tuple(super(GeMNeck, self).forward(x).flatten(1)
                         for x in inputs)
        raise TypeError('inputs must be a tensor, or a tuple or list of '
                        f'tensors, but got {type(inputs).__name__}')
