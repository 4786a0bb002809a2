"""Checks of what CenterPoint's head is built with."""
from functools import partial
from typing import Any

import torch
from mmdet3d.models.task_modules import CenterPointBBoxCoder
from torch import Tensor

from sigplug.ops._checks import is_integer, is_number

from .heatmap_loss import names_in


def losses_without_act(cls: type, base: type) -> list[str]:
    """Return the losses of a subclass that leave ``heatmap_act`` out.

    That is ``class.method`` of those that call neither the method of ``base``
    nor its activation.
    """
    found = []
    for kind in cls.__mro__[:cls.__mro__.index(base)]:
        for name in sorted({'loss', 'loss_by_feat'} & vars(kind).keys()):
            if not {name, 'loss_by_feat', 'heatmap_act'} & names_in(
                    vars(kind)[name]):
                found.append(f'{kind.__name__}.{name}')
    return found


def check_code_weights(cfg: dict, code_size: int) -> Tensor:
    """Return a weight of each value as a tensor, or raise a ``ValueError``."""
    weights = cfg.get('code_weights')
    if weights is None:
        return torch.ones(code_size)
    if (len(weights) != code_size
            or not all(0 <= weight < float('inf') for weight in weights)):
        raise ValueError(
            f'train_cfg.code_weights must have {code_size} finite values of '
            f'at least 0 for these common_heads, but has {len(weights)}: '
            f'{list(weights)}')
    return torch.tensor(weights)


def per_task(value: Any, num_tasks: int) -> list:
    """Return the value of each task; a single value serves all tasks."""
    return list(value) if isinstance(value, (list, tuple)) else (
        [value] * num_tasks)


def check_test_cfg(cfg: dict[str, Any], coder: CenterPointBBoxCoder,
                   num_tasks: int, box_size: int) -> None:
    """Raise a ``ValueError`` if what only predictions read cannot work."""
    def check(name: str, value: Any, is_good: Any, wanted: str) -> None:
        if not is_good(value):
            raise ValueError(
                f'{name} must be {wanted}, but is {value!r}: the first '
                'validation would fail')

    def check_entry(name: str, is_good: Any, wanted: str) -> None:
        check(f'test_cfg.{name}', cfg.get(name, 'missing'), is_good, wanted)

    limits = (partial(_are_numbers, count=6), 'six numbers, (x, y, z) of the '
              'lowest and the highest centre in metres')
    center_range = getattr(coder, 'post_center_range', None)
    if isinstance(center_range, Tensor):
        # mmdet3d makes one of the list in its first prediction.
        center_range = center_range.tolist()
    check('bbox_coder.post_center_range', center_range, *limits)
    velocity = 'with' if box_size == 9 else 'without'
    check('bbox_coder.code_size', coder.code_size,
          lambda value: value == box_size,
          f"{box_size} for common_heads {velocity} 'vel'")
    kinds = per_task(cfg.get('nms_type'), num_tasks)
    check('test_cfg.nms_type', cfg.get('nms_type'),
          lambda _: len(kinds) == num_tasks and {*kinds} <= {
              'circle', 'rotate'},
          f"'circle' or 'rotate', or a list of them for {num_tasks} tasks")
    if 'circle' in kinds:
        check_entry('min_radius', partial(_are_numbers, count=num_tasks),
                    'a list of numbers, the squared radius in metres of each '
                    f'of {num_tasks} tasks')
        check_entry('post_max_size', partial(is_integer, least=1),
                    'an integer of at least 1')
    if 'rotate' in kinds:
        check_entry('nms_thr', is_number, 'a number, the largest overlap')
        check_entry('score_threshold', is_number, 'a number, 0 for none')
        for name in ('pre_max_size', 'post_max_size'):
            check_entry(name, lambda x: x is None or is_integer(x, 1),
                        'an integer of at least 1 or None')
        check_entry('post_center_limit_range', *limits)


def _are_numbers(values: Any, count: int) -> bool:
    return (isinstance(values, (list, tuple)) and len(values) >= count
            and all(map(is_number, values)))
