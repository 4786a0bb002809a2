"""What the encoders refuse before they are built."""
from collections.abc import Sequence
from typing import Any

from sigplug.ops._checks import check_integer, is_integer, is_number
from sigplug.registry import check_config


def check_numbers(name: str, values: Sequence[float], size: int) -> None:
    """Raise a ``ValueError`` unless there are ``size`` numbers."""
    if (isinstance(values, (str, int, float)) or values is None
            or len(values) != size or not all(map(is_number, values))):
        raise ValueError(
            f'{name} must be {size} numbers, but got {values!r}')


def check_arguments(encoder: object, arguments: dict[str, Any]) -> None:
    """Raise a ``ValueError`` at what the encoder makes no sense of."""
    if 'mode' in arguments:
        raise ValueError(
            f"mode={arguments['mode']!r} does not apply to "
            f'{type(encoder).__name__}: p=1 is the mean and a fixed p=inf '
            'the maximum')
    channels = arguments.get('feat_channels', (1, ))
    if not isinstance(channels, (tuple, list)) or not channels or not all(
            is_integer(c, 1) for c in channels):
        raise ValueError('feat_channels must be integers of at least 1, one '
                         f'for each layer, but got {channels!r}')
    if 'in_channels' in arguments:
        check_integer('in_channels', arguments['in_channels'], 1)
    if arguments.get('norm_cfg') is not None:
        check_config('norm_cfg', arguments['norm_cfg'])
    for name, size in (('voxel_size', 3), ('point_cloud_range', 6)):
        if name in arguments:
            check_numbers(name, arguments[name], size)
