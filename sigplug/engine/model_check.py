"""A check that the built parts of a LiDAR heatmap detector fit together."""
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import nn

from sigplug.errors import UserError

# A multiple of all strides that detectors have.
SPAN = 128
# Detectors that reduce points without their numbers in each voxel, by those
# that read them, and the method which does.
DYNAMIC = {
    'MVXTwoStageDetector': ('extract_pts_feat', 'DynamicMVXFasterRCNN'),
    'VoxelNet': ('extract_feat', 'DynamicVoxelNet'),
}


def check_model(model: Any, datasets: Mapping[str, Any]) -> None:
    """Compare the parts of a LiDAR heatmap detector with one another.

    A mismatch would end in an error about shapes at best, and in boxes at the
    wrong place or of the wrong class at worst. Models without a head that
    names its classes are left alone.

    Args:
        model (nn.Module): The detector.
        datasets (dict): The built data sets, by ``'train'``, ``'val'`` and
            ``'test'``.

    Raises:
        UserError: The classes of a head and of a data set differ, or the
            grids of the parts, or layers cannot work together.
    """
    heads = {name: module for name, module in model.named_modules()
             if getattr(module, 'class_names', None)}
    if heads:
        _check_detector(model)
    for name, head in heads.items():
        names = np.hstack(head.class_names).tolist()
        for split, dataset in datasets.items():
            for leaf in _unwrap(dataset):
                _check_classes(f'model.{name}', names, split, leaf)
        _check_grid(_iter_grids(model, name, head, 'train' in datasets))
        _check_strides(model, name, head)
    for split, dataset in datasets.items():
        if heads and split != 'train' and dataset:
            _check_versions(split, dataset[0])


def _unwrap(dataset: Any) -> Iterator[Any]:
    """Yield the data sets inside wrappers."""
    inner = getattr(dataset, 'datasets', None) or getattr(
        dataset, 'dataset', None)
    if inner is None:
        yield dataset
        return
    for part in inner if isinstance(inner, (list, tuple)) else [inner]:
        yield from _unwrap(part)


def _check_classes(head: str, names: list[str], split: str,
                   dataset: Any) -> None:
    """Compare the class names of a head and of a pipeline with the labels."""
    classes = list(getattr(dataset, 'metainfo', {}).get('classes') or ())
    if not classes:
        return
    where = f'the {split} data ({type(dataset).__name__})'
    # Names in only one of the lists do not matter: a label is a place.
    if len(names) > len(classes) or _misplaced(names, classes):
        raise UserError(
            f'The labels of {where} are places in its classes {classes}, but '
            f'{head} has the class_names {names}. Give both the same names in '
            'the same order: metainfo=dict(classes=...) of the data set, and '
            'the tasks of the head.')
    if split == 'train' and len(names) < len(classes):
        print_log(f'{head} has no class for {classes[len(names):]} of '
                  f'{where}: to it these objects are background.', 'current')
    pipeline = getattr(dataset, 'pipeline', None)
    for step in getattr(pipeline, 'transforms', ()):
        # That of ObjectSample labels what it pastes by its own list.
        pasted = list(getattr(getattr(step, 'db_sampler', None), 'classes',
                              None) or ())
        # ObjectNameFilter keeps as many of the first labels as it has names.
        kept = list(getattr(step, 'classes', None) or ())
        if _misplaced(pasted, classes) or (
                set(kept) & set(classes[len(kept):])):
            raise UserError(
                f'{type(step).__name__} in the pipeline of {where} has the '
                f'classes {pasted or kept}, but labels are places in the '
                f'classes of the data set, {classes}. Give it the first of '
                'these, in the same order.')


def _check_versions(split: str, sample: Any) -> None:
    """Check that the pipeline of a test gives one version of a sample."""
    if isinstance(sample, dict):
        sample = sample.get('data_samples')
    if isinstance(sample, (list, tuple)):
        raise UserError(
            "mmdet3d's detectors cannot be tested with test-time augmentation:"
            f' the pipeline of the {split} data gives several versions of each'
            ' sample. Leave out TestTimeAug or MultiScaleFlipAug3D.')


def _misplaced(names: list[str], classes: list[str]) -> bool:
    """Return whether a name stands at another place in ``classes``."""
    return any(name in classes and classes.index(name) != place
               for place, name in enumerate(names))


def _iter_grids(model: Any, name: str, head: Any,
                training: bool) -> Iterator[tuple[str, str, Any]]:
    """Yield a quantity, its place and its value, for what is used of it."""
    layer = _find_voxel_layer(model)
    if layer is not None:
        place = 'data_preprocessor.voxel_layer'
        yield 'voxel_size', f'{place}.voxel_size', layer.voxel_size
        yield 'origin', f'{place}.point_cloud_range', layer.point_cloud_range
    part, encoder = _find(model, 'voxel_encoder')
    if getattr(encoder, '_with_voxel_center', False):
        yield 'voxel_size', f'{part}.voxel_size', (encoder.vx, encoder.vy)
        yield ('origin', f'{part}.point_cloud_range',
               encoder.point_cloud_range)
    part, middle = _find(model, 'middle_encoder')
    if hasattr(middle, 'nx'):
        yield 'grid', f'{part}.output_shape', (middle.nx, middle.ny)
    elif layer is not None:
        yield 'grid', 'data_preprocessor.voxel_layer', _count_voxels(layer)
    sources = [(f'{name}.bbox_coder', vars(getattr(head, 'bbox_coder', head)))]
    if training:
        place = ('train_cfg.pts' if name == 'pts_bbox_head' else
                 f'{name}.train_cfg')
        sources.append((place, getattr(head, 'train_cfg', None) or {}))
    for place, values in sources:
        for key, quantity in dict(
                voxel_size='voxel_size', out_size_factor='out_size_factor',
                pc_range='origin', point_cloud_range='origin',
                grid_size='grid').items():
            if values.get(key) is not None:
                yield quantity, f'{place}.{key}', values[key]


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


def _count_voxels(layer: Any) -> list[int]:
    """Return the numbers of voxels in x and y."""
    area, size = (np.asarray(value, dtype=float) for value in (
        layer.point_cloud_range, layer.voxel_size))
    return np.round((area[3:5] - area[:2]) / size[:2]).astype(int).tolist()


def _check_detector(model: Any) -> None:
    """Name the detector that dynamic voxels need."""
    encoder = _find(model, 'voxel_encoder')[1]
    preprocessor = getattr(model, 'data_preprocessor', None)
    if not (getattr(preprocessor, 'voxel_type', None) == 'dynamic'
            or hasattr(encoder, 'pfn_scatter')
            or hasattr(encoder, 'vfe_scatter')):
        return
    for base in type(model).__mro__:
        method, remedy = DYNAMIC.get(base.__name__, ('', ''))
        if method and getattr(type(model), method) is getattr(base, method):
            raise UserError(
                f"model.type = '{type(model).__name__}' is for hard voxels, "
                f'of a limited number of points each; '
                f'{type(encoder).__name__} and dynamic voxels need '
                f"type='{remedy}', and voxel_type='dynamic' in "
                'model.data_preprocessor.')


def _check_strides(model: Any, name: str, head: Any) -> None:
    """Check that the strides of backbone and neck divide the grid.

    The layers are asked themselves, without memory or arithmetic, on the meta
    device.
    """
    middle_name, middle = _find(model, 'middle_encoder')
    layer, parts = _find_voxel_layer(model), [
        part for part in (_find(model, 'backbone')[1],
                          _find(model, 'neck')[1]) if part is not None]
    coder = getattr(head, 'bbox_coder', None)
    factor = getattr(coder, 'out_size_factor', None)
    if middle is None or layer is None or not parts or not factor:
        return
    reduce = _make_probe(middle, nn.Sequential(*parts))

    def fits(count: int) -> bool:
        return reduce(count) * factor == count

    cells = ((middle.nx, middle.ny) if hasattr(middle, 'nx') else
             _count_voxels(layer))
    for axis, count in enumerate(cells):
        if fits(count):
            continue
        found = reduce(count)
        if found and count % found == 0:
            raise UserError(
                f'model.{name}.bbox_coder.out_size_factor is {factor}, but '
                f'backbone and neck make {found} of {count} cells.')
        # Layers that fit nowhere cannot be asked.
        if not fits(count + -count % SPAN):
            return
        low, high = (float(layer.point_cloud_range[i])
                     for i in (axis, axis + 3))
        ranges = ' or '.join(
            f'{size} ({_describe_range(low, high, count, size)})'
            for sizes in (range(count - 1, max(count - SPAN, 0), -1),
                          range(count + 1, count + SPAN))
            for size in itertools.islice(filter(fits, sizes), 1))
        raise UserError(
            f'The strides of backbone and neck do not divide the {count} cells'
            f' ({low:g} to {high:g} m) of the grid in {"xy"[axis]}. The '
            f'nearest numbers that fit: {ranges}. Change point_cloud_range, '
            f'pc_range, grid_size and {middle_name} in all parts of the model '
            'and the pipelines.')


def _describe_range(low: float, high: float, count: int, size: int) -> str:
    """Return a range of more or fewer cells of the same size."""
    grown = (high - low) * (size / count - 1)
    if abs(low + high) < 1e-6:
        low, high = low - grown / 2, high + grown / 2
    else:
        high += grown
    return f'{low:g} to {high:g} m'


def _make_probe(middle: Any, layers: nn.Module) -> Callable[[int], int]:
    """Return what becomes of a square grid of so many cells, 0 if nothing."""
    states = {name: tensor.to('meta') for name, tensor in (
        *layers.named_parameters(), *layers.named_buffers())}
    channels = next((tensor.shape[1] for tensor in states.values()
                     if tensor.ndim == 4), 1)

    @functools.cache
    def reduce(size: int) -> int:
        for conv in middle.modules():
            # A sparse convolution with a stride. y is in the middle, in the
            # usual order of its axes as in BEVFusion's.
            if getattr(conv, 'subm', True) is False:
                size = (size + 2 * conv.padding[1]
                        - conv.kernel_size[1]) // conv.stride[1] + 1
        x = torch.empty(1, channels, size, size, device='meta')
        try:
            with torch.no_grad():
                x = torch.func.functional_call(layers, states, (x, ))
        # Whatever layers do that do not fit.
        except Exception:
            return 0
        while isinstance(x, (list, tuple)):
            x = x[0]
        return x.shape[-1]

    return reduce
