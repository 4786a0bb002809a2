"""A check that the parts of a LiDAR heatmap detector fit together."""
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from mmengine.config import Config

from sigplug.errors import UserError

from .preflight import iter_datasets, iter_dicts


def check_model(cfg: Config) -> None:
    """Compare the parts of a LiDAR heatmap detector with one another.

    A mismatch would end in an error about shapes at best, and in boxes at the
    wrong place or in classes that are never trained at worst. Other models
    are left alone.

    Args:
        cfg (Config): The config.

    Raises:
        UserError: The grids of the parts differ, or the classes of the
            head and of a data set.
    """
    model = cfg.get('model') or {}
    head = model.get('pts_bbox_head') or {}
    coder = head.get('bbox_coder') or {}
    if 'tasks' not in head or 'out_size_factor' not in coder:
        return
    _check_grid(model, coder)
    names: list[str] = []
    for i, task in enumerate(head['tasks'] or ()):
        own = task.get('class_names')
        if own is None or task.get('num_class', len(own)) != len(own):
            raise UserError(
                f'model.pts_bbox_head.tasks.{i} needs class_names, as many '
                f'as its num_class: {dict(task)}.')
        names += own
    for key, node in iter_datasets(cfg):
        metainfo = node.get('metainfo')
        classes = metainfo.get('classes') if isinstance(
            metainfo, dict) else None
        # A name stands for a file, which mmengine reads.
        if not isinstance(classes, (list, tuple)):
            continue
        # A head of only the first classes may be tested, but in training it
        # would take objects of the others for background.
        expected = len(names)
        if key.startswith('train'):
            expected = min([len(classes), *_count_filtered_classes(node)])
        if (expected != len(names) or expected > len(classes)
                or _order_differs(names, classes)):
            raise UserError(
                f'The labels of the data are places in {key}.metainfo.classes '
                f'= {list(classes)}, but the tasks of model.pts_bbox_head '
                f'have the class_names {names}. Give both the same names in '
                'the same order; for a head of the first classes alone, the '
                'training pipeline ObjectNameFilter with these.')


def _count_filtered_classes(dataset: dict) -> Iterator[int]:
    """Yield how many classes each filter in a pipeline keeps."""
    for _, step in iter_dicts(dataset.get('pipeline'), ''):
        # A name, or the class of a config in Python.
        if 'ObjectNameFilter' in str(step.get('type')):
            yield len(step['classes'])


def _order_differs(names: Iterable[str], classes: Iterable[str]) -> bool:
    """Return whether a name stands at another place in the other list.

    The place is the label, so names in only one of the lists do not matter.
    """
    first, second = ([re.sub(r'[\W_]', '', str(name)).lower()
                      for name in group] for group in (names, classes))
    return any(a != b and (a in second or b in first)
               for a, b in zip(first, second, strict=False))


def _check_grid(model: dict, coder: dict) -> None:
    """Compare the grids that the parts of a model name, in x and y."""
    parts: dict[str, dict] = {
        'data_preprocessor.voxel_layer':
            (model.get('data_preprocessor') or {}).get('voxel_layer') or {},
        'pts_voxel_encoder': model.get('pts_voxel_encoder') or {},
        'pts_bbox_head.bbox_coder': coder,
        'train_cfg.pts': (model.get('train_cfg') or {}).get('pts') or {},
        'test_cfg.pts': (model.get('test_cfg') or {}).get('pts') or {},
    }
    seen: dict[str, tuple[str, list]] = {}

    def compare(name: str, key: str, value: Any) -> None:
        # In the plane: some parts have no height.
        value = np.ravel(np.asarray(value, dtype=float))[:2].tolist()
        first, wanted = seen.setdefault(name, (key, value))
        if len(value) != len(wanted) or not np.allclose(value, wanted):
            raise UserError(
                f'model.{key} = {value} does not fit model.{first} = '
                f'{wanted}. Give all parts of the model the same grid: '
                'voxel_size, point_cloud_range and out_size_factor.')

    for part, node in parts.items():
        for name in ('voxel_size', 'out_size_factor'):
            if node.get(name) is not None:
                compare(name, f'{part}.{name}', node[name])
        for name in ('point_cloud_range', 'pc_range'):
            if node.get(name) is not None:
                compare('origin', f'{part}.{name} (its x, y)', node[name])
    layer = parts['data_preprocessor.voxel_layer']
    if layer.get('point_cloud_range') is None or (
            layer.get('voxel_size') is None):
        return
    area = np.asarray(layer['point_cloud_range'], dtype=float)
    size = np.asarray(layer['voxel_size'], dtype=float)
    name = 'number of voxels in x and y'
    compare(name, f'data_preprocessor.voxel_layer ({name})',
            np.round((area[3:5] - area[:2]) / size[:2]))
    grid = parts['train_cfg.pts'].get('grid_size')
    if grid is not None:
        compare(name, 'train_cfg.pts.grid_size (its x, y)', grid)
    shape = (model.get('pts_middle_encoder') or {}).get('output_shape')
    if shape is not None:
        compare(name, 'pts_middle_encoder.output_shape (its x, y)',
                shape[::-1])
