"""A check that the built parts of a LiDAR heatmap detector fit together."""
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from sigplug.errors import UserError

# A multiple of all strides that detectors have.
SPAN = 128
# Detectors that reduce points without their numbers in each voxel, by those
# that read them.
DYNAMIC = {'MVXTwoStageDetector': 'DynamicMVXFasterRCNN',
           'VoxelNet': 'DynamicVoxelNet'}


def check_model(model: Any, datasets: Mapping[str, Any]) -> None:
    """Compare the parts of a LiDAR heatmap detector with one another.

    A mismatch would end in an error about shapes at best, and in boxes at the
    wrong place or of the wrong class at worst. Models without a head that
    names its classes, or with several, are left alone, and so are parts with
    a ``forward``, or what else is compared, of their own.

    The data sets go by ``'train'``, ``'val'`` and ``'test'``.

    Raises:
        UserError: The classes of a head and of a data set differ, or the
            grids of the parts, or layers cannot work together.
    """
    heads = {name: module for name, module in model.named_modules()
             if isinstance(getattr(module, 'class_names', None), list)}
    # Several share the classes in a way of their own.
    if len(heads) != 1:
        return
    (name, head), = heads.items()
    _check_detector(model)
    if _is_stock(head, 'get_targets'):
        names = np.hstack(head.class_names).tolist()
        for split, dataset in datasets.items():
            for leaf in _unwrap(dataset):
                _check_classes(f'model.{name}', names, split, leaf)
    _check_grid(_iter_grids(model, name, head, 'train' in datasets))
    _check_strides(model, head)


def _is_stock(part: Any, *methods: str) -> bool:
    """Return whether a part has these methods, all of mmdet3d or sigplug."""
    return all(
        getattr(getattr(type(part), method, None), '__module__',
                '').startswith(('mmdet3d.', 'sigplug.'))
        for method in methods)


def _unwrap(dataset: Any) -> Iterator[Any]:
    """Yield the data sets inside the wrappers of OpenMMLab."""
    inner = getattr(dataset, 'datasets', None) or getattr(
        dataset, 'dataset', None)
    if inner is None or not type(dataset).__module__.startswith('mm'):
        yield dataset
        return
    for part in inner if isinstance(inner, (list, tuple)) else [inner]:
        yield from _unwrap(part)


def _check_classes(head: str, names: list[str], split: str,
                   dataset: Any) -> None:
    """Compare the class names of a head with the labels.

    A name that only one of them has does not matter.
    """
    metainfo = getattr(dataset, 'metainfo', None) or {}
    classes = list(metainfo.get('classes') or ())
    if any(name in classes and classes.index(name) != place
           for place, name in enumerate(names)):
        raise UserError(
            f'Labels of the {split} data ({type(dataset).__name__}) are '
            f'indices into its classes {classes}, but {head} has the '
            f'class_names {names}. Give both the same names in the same '
            'order: metainfo=dict(classes=...) of the data set, and the tasks '
            'of the head.')


def _iter_grids(model: Any, name: str, head: Any,
                training: bool) -> Iterator[tuple[str, str, Any]]:
    """Yield a quantity, its place and its value, for what is used of it."""
    layer = _find_voxel_layer(model)
    if layer is not None:
        place = 'data_preprocessor.voxel_layer'
        yield 'voxel_size', f'{place}.voxel_size', layer.voxel_size
        yield 'origin', f'{place}.point_cloud_range', layer.point_cloud_range
    part, encoder = _find(model, 'voxel_encoder')
    if getattr(encoder, '_with_voxel_center', False) and _is_stock(
            encoder, 'forward'):
        yield 'voxel_size', f'{part}.voxel_size', (encoder.vx, encoder.vy)
        yield ('origin', f'{part}.point_cloud_range',
               encoder.point_cloud_range)
    sources = []
    coder = getattr(head, 'bbox_coder', None)
    if _is_stock(coder, 'decode'):
        sources.append((f'{name}.bbox_coder', vars(coder), 'pc_range'))
    if training and _is_stock(head, 'get_targets'):
        place = ('train_cfg.pts' if name == 'pts_bbox_head' else
                 f'{name}.train_cfg')
        sources.append((place, getattr(head, 'train_cfg', None) or {},
                        'point_cloud_range'))
    for place, values, origin in sources:
        if values.get(origin) is not None:
            yield 'origin', f'{place}.{origin}', values[origin]
        size, factor = values.get('voxel_size'), values.get('out_size_factor')
        if size is not None and factor:
            yield ('voxel_size * out_size_factor', place,
                   np.asarray(size[:2], dtype=float) * factor)


def _check_grid(grids: Iterator[tuple[str, str, Any]]) -> None:
    """Compare what the parts of a model take for the grid, in x and y."""
    seen: dict[str, tuple[str, list]] = {}
    for quantity, place, value in grids:
        # In the plane: some parts have no height.
        value = np.ravel(np.asarray(value, dtype=float))[:2].tolist()
        first, wanted = seen.setdefault(quantity, (place, value))
        if len(value) != len(wanted) or not np.allclose(value, wanted):
            raise UserError(
                f'model.{place} gives the {quantity} {value} in x and y, and '
                f'model.{first} gives {wanted}. Give all parts of the model '
                'the same grid: voxel_size, point_cloud_range and '
                'out_size_factor.')


def _find(model: Any, part: str) -> tuple[str, Any]:
    """Return a part of a detector and its name, which may have a prefix."""
    for name in (f'pts_{part}', part):
        if isinstance(getattr(model, name, None), nn.Module):
            return name, getattr(model, name)
    return part, None


def _find_voxel_layer(model: Any) -> Any:
    preprocessor = getattr(model, 'data_preprocessor', None)
    # BEVFusion has its own.
    return getattr(preprocessor, 'voxel_layer', None) or getattr(
        model, 'pts_voxel_layer', None)


def _count_cells(middle: Any, layer: Any) -> list[int]:
    """Return the size of the grid in x and y."""
    if hasattr(middle, 'nx'):
        return [middle.nx, middle.ny]
    if hasattr(middle, 'sparse_shape'):
        return [*middle.sparse_shape][:0:-1]
    area, size = (np.asarray(value, dtype=float) for value in (
        layer.point_cloud_range, layer.voxel_size))
    return np.round((area[3:5] - area[:2]) / size[:2]).astype(int).tolist()


def _has_stock_flow(model: Any) -> bool:
    """Return whether points become features as in mmdet3d."""
    methods = [name for name in ('extract_feat', 'extract_pts_feat')
               if hasattr(model, name)]
    return bool(methods) and _is_stock(model, *methods)


def _check_detector(model: Any) -> None:
    """Name the detector that an encoder of dynamic voxels needs."""
    encoder = _find(model, 'voxel_encoder')[1]
    if not _is_stock(encoder, 'forward') or not (
            hasattr(encoder, 'pfn_scatter')
            or hasattr(encoder, 'vfe_scatter')):
        return
    bases = {base.__name__ for base in type(model).__mro__}
    for hard, remedy in DYNAMIC.items():
        if (hard in bases and remedy not in bases
                and _has_stock_flow(model)):
            raise UserError(
                f"model.type = '{type(model).__name__}' is for hard voxels, "
                'of a limited number of points each; '
                f"{type(encoder).__name__} needs type='{remedy}' and "
                "voxel_type='dynamic' in model.data_preprocessor.")


def _check_strides(model: Any, head: Any) -> None:
    """Check that the strides of backbone and neck divide the grid.

    The layers are asked themselves, without memory or arithmetic, on the meta
    device.
    """
    middle_name, middle = _find(model, 'middle_encoder')
    layer = _find_voxel_layer(model)
    parts = [part for part in (_find(model, 'backbone')[1],
                               _find(model, 'neck')[1]) if part is not None]
    if (layer is None or not parts or not _has_stock_flow(model)
            or not _is_stock(middle, 'forward')
            or not _is_stock(head, 'forward', 'forward_single')):
        return
    fits = _make_probe(middle, parts)
    for axis, count in enumerate(_count_cells(middle, layer)):
        fitting = count + -count % SPAN
        # Layers that fit nowhere cannot be asked.
        if not fits(count) and fits(fitting):
            raise UserError(
                f'The strides of backbone and neck do not divide the {count} '
                f'cells of the grid in {"xy"[axis]}; {fitting} would fit. '
                'Change point_cloud_range, pc_range, grid_size and '
                f'{middle_name} in all parts of the model and the pipelines.')


def _make_probe(middle: Any, parts: list[nn.Module]) -> Callable[[int], bool]:
    """Return what says whether layers take a square grid of so many cells."""
    try:
        layers = copy.deepcopy(nn.Sequential(*parts)).to('meta').eval()
    # Not every layer can be copied.
    except Exception:
        return lambda size: False
    channels = next((weight.shape[1] for weight in layers.parameters()
                     if weight.ndim == 4), 1)

    def fits(size: int) -> bool:
        for conv in middle.modules():
            # A sparse convolution with a stride. y is in the middle.
            if getattr(conv, 'subm', True) is False:
                size = (size + 2 * conv.padding[1]
                        - conv.kernel_size[1]) // conv.stride[1] + 1
        try:
            with torch.no_grad():
                layers(torch.empty(1, channels, size, size, device='meta'))
        # Whatever layers do that do not fit.
        except Exception:
            return False
        return True

    return fits
