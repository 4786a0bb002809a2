"""Generalised mean of ragged sets."""
from torch import Tensor

from ._checks import (
    PowerLike,
    check_device,
    check_input,
    check_integer,
    check_integer_tensor,
    check_shape,
    find_range,
    fits_into,
    prepare_power,
)
from .power_mean import Segments, power_mean


def segment_generalized_mean(x: Tensor,
                             index: Tensor,
                             num_segments: int,
                             p: PowerLike = 3.0,
                             *,
                             eps: float | None = 1e-6,
                             backend: str = 'auto') -> Tensor:
    r"""Generalised mean of ragged sets, such as the points of a pillar.

    .. math::
        y_s = \Big(\frac{1}{N_s} \sum_{i: \mathrm{index}_i = s}
            \max(x_i, \epsilon)^p\Big)^{1/p}

    Args:
        x (Tensor): One row per element, shape ``(M, ...)``.
        index (Tensor): Integer segment of each row, in
            ``[0, num_segments)``, in any order, shape ``(M, )``.
        num_segments (int): Number of segments ``S``.
        p (float | Tensor): The power, above 0; a tensor of one element, or
            one that broadcasts against a row of ``x``. Defaults to 3.0.
        eps (float, optional): Lower clamp of the input; ``None`` does not
            clamp. Defaults to 1e-6.
        backend (str): ``'auto'``, ``'eager'``, ``'cpp'`` or ``'triton'``, see
            :mod:`sigplug.ops.backends`. Defaults to ``'auto'``.

    Returns:
        Tensor: Shape ``(S, ...)``, in the dtype of ``x``; an empty segment
        gives 0.

    Raises:
        TypeError: ``x`` is not a floating point tensor or ``index`` is not an
            integer one.
        ValueError: ``index``, ``num_segments``, ``p`` or ``eps`` is not as
            described.
        BackendError: The backend that is asked for cannot be used.

    Examples:
        >>> x = torch.tensor([[1.], [3.], [5.]])
        >>> segment_generalized_mean(x, torch.tensor([0, 0, 2]), 3, p=1.0)
        tensor([[2.],
                [0.],
                [5.]])
    """
    check_input(x, eps)
    check_integer_tensor('index', index)
    if x.dim() < 1:
        raise ValueError('x must hold rows, but is a scalar')
    check_shape('index', index, x.shape[:1])
    check_device('index', index, x)
    check_integer('num_segments', num_segments, 0)
    p = prepare_power(p, x)
    if isinstance(p, Tensor) and p.numel() > 1 and not fits_into(
            p.shape, x.shape[1:]):
        raise ValueError(f'p of shape {tuple(p.shape)} does not broadcast '
                         f'against a row of x, of shape {tuple(x.shape[1:])}')
    index = index.long()
    values = find_range(index)
    if values and not 0 <= values[0] <= values[1] < num_segments:
        raise ValueError(
            f'index must lie in [0, num_segments={num_segments}), but has '
            f'values from {values[0]} to {values[1]}')
    y = power_mean(x, p, Segments(num_segments, index), eps, backend)
    return y.to(x.dtype)
