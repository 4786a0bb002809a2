"""What :class:`sigplug.CenterHead` refuses, and why."""
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from sigplug.ops._checks import is_integer, is_number
from sigplug.registry import check_config

# What the heads of the regression targets are called, and their channels.
BOX_HEADS = dict(reg=2, height=1, dim=3, rot=2, vel=2)


def _plain(value: Any) -> Any:
    """The lists of an array or a tensor."""
    return value.tolist() if hasattr(value, 'tolist') else value


def _is_pair(value: Any, fits: Callable[[Any], bool]) -> bool:
    return (not is_number(value) and not isinstance(value, str)
            and len(value) >= 2 and all(map(fits, value[:2])))


def _is_positive(value: Any) -> bool:
    return is_number(value) and 0 < value < float('inf')


_SIZES = ('two or three numbers above 0',
          lambda value: _is_pair(value, _is_positive))
_COUNT = ('an integer of at least 1', lambda value: is_integer(value, 1))
# What train_cfg needs for the targets.
TARGET_VALUES = dict(
    grid_size=_SIZES,
    voxel_size=_SIZES,
    point_cloud_range=('numbers, the origin first',
                       lambda value: _is_pair(value, is_number)),
    out_size_factor=_COUNT,
    max_objs=_COUNT,
    dense_reg=_COUNT,
    min_radius=('a number of at least 0',
                lambda value: is_number(value) and value >= 0),
    gaussian_overlap=('a number in (0, 1)',
                      lambda value: is_number(value) and 0 < value < 1))


def check_parts(tasks: Sequence[dict] | None = None,
                 common_heads: dict | None = None,
                 **parts: Any) -> None:
    """Refuse what upstream takes, and stumbles over later."""
    if not isinstance(tasks, (tuple, list)) or not tasks or not all(
            isinstance(task, dict) and task.get('class_names')
            for task in tasks):
        raise ValueError('tasks must be a list of configs like dict('
                         "num_class=1, class_names=['car']), but got "
                         f'{tasks!r}')
    for name in ('bbox_coder', 'loss_cls', 'loss_bbox', 'separate_head'):
        if name in parts:
            check_config(name, parts[name])
    heads = common_heads if isinstance(common_heads, dict) else {}
    for name, channels in BOX_HEADS.items():
        branch = heads.get(name)
        if branch is None and name == 'vel' and heads:
            continue
        if (not isinstance(branch, (tuple, list)) or len(branch) != 2
                or branch[0] != channels or not is_integer(branch[1], 1)):
            raise ValueError(
                f'common_heads.{name} must be ({channels}, number of '
                f'convolutions), but common_heads is {common_heads!r}')


def check_train_cfg(cfg: dict) -> None:
    """Refuse what gives no targets, or fails only in the first iteration.

    For inference nothing has to be there, see :func:`check_complete`.
    """
    for name, (what, fits) in TARGET_VALUES.items():
        value = _plain(cfg.get(name))
        if value is not None and not fits(value):
            raise ValueError(
                f'train_cfg.{name} must be {what}, but got {value!r}')
    weights = _plain(cfg.get('code_weights'))
    if weights is not None and not (
            isinstance(weights, (tuple, list)) and all(
                is_number(w) and 0 <= w < float('inf') for w in weights)):
        raise ValueError('train_cfg.code_weights must be finite numbers from '
                         f'0 on, but got {weights!r}')


def check_complete(cfg: dict | None) -> None:
    """Refuse to train a head that was built for inference alone."""
    absent = [name for name in TARGET_VALUES if (cfg or {}).get(name) is None]
    if absent:
        raise ValueError(
            f'the losses need {", ".join(absent)} in train_cfg, but it is '
            f'{cfg!r}')


def check_batch(heatmap: Tensor, size: int) -> None:
    """Refuse a heatmap without the samples of the batch."""
    if len(heatmap) != size:
        raise ValueError(
            f'the features are of {len(heatmap)} samples, but the batch has '
            f'{size}: its last one has no points in range, and mmdet3d does '
            "not count it. Choose type='sigplug.Det3DDataPreprocessor' for "
            'model.data_preprocessor')


def check_grid(heatmap: Tensor, target: Tensor, cfg: dict) -> None:
    """Refuse a heatmap whose classes or cells are not its target's."""
    if heatmap.shape[1:] != target.shape[1:]:
        raise ValueError(
            'the predicted heatmaps have the shape (classes, y, x) = '
            f'{tuple(heatmap.shape[1:])}, those of train_cfg '
            f'{tuple(target.shape[1:])}: '
            f"grid_size={list(cfg['grid_size'])} over "
            f"out_size_factor={cfg['out_size_factor']}. Give train_cfg the "
            'grid of the voxels, and the backbone and the neck strides that '
            'divide it by out_size_factor')
