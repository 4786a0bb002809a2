"""Checks before a run, and clear words for the failures that are known.

Each check raises a :class:`sigplug.errors.UserError`, whose one message
names the problem and the remedy.
"""
import difflib
import os
import os.path as osp
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import mmengine.registry
import numpy as np
import torch
from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope, Registry

from sigplug.errors import UserError

from .checkpoint import load_safely

GENERATOR = 'tools/dataset_converters/create_synthetic_nuscenes.py'


def load_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config file and merge the values of ``--cfg-options``.

    Args:
        path (str): The config file.
        options (dict, optional): Values by dotted key.

    Raises:
        UserError: The file is missing or broken, or an option does not
            fit the config.
    """
    if osp.isdir(path):
        raise UserError(f'The config {path!r} is a folder: name a file '
                             'in it.')
    if not osp.isfile(path):
        raise UserError(
            f'The config {path!r} does not exist (working directory: '
            f'{os.getcwd()}).{_similar_files(path)}')
    try:
        cfg = Config.fromfile(path)
    # mmengine objects to a wrong _base_ in many ways.
    except (AssertionError, ConfigParsingError, ImportError, KeyError,
            OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f'The config {path!r} cannot be read. {_text(error)}') from error
    try:
        cfg.merge_from_dict(options or {})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f'--cfg-options {_as_options(options or {})} does not fit the '
            f'config {path!r}: {_text(error)}') from error
    return cfg


def check_stack(cfg: Config) -> None:
    """Import the packages that the scope of the config stands on.

    Where numpy has no ``long`` it gets one, which ``ObjectSample`` of mmdet3d
    1.4.0 cannot do without.

    Args:
        cfg (Config): The config.

    Raises:
        UserError: A package is missing, or not made for the others.
    """
    scope = cfg.get('default_scope', 'mmengine')
    if scope not in ('mmcv', 'mmdet', 'mmdet3d'):
        return
    for name in ('mmcv.ops', scope):
        try:
            import_module(name)
        # mmdet and mmdet3d assert the versions of their dependencies.
        except (ImportError, AssertionError, OSError) as error:
            raise UserError(
                f'{name} cannot be imported: {error}\n'
                f"The config's default_scope {scope!r} needs mmcv with its "
                'compiled operators, mmdet and mmdet3d. `make env` builds a '
                'working environment; in an existing one, install an mmcv '
                f'that was built for torch {torch.__version__}.') from error
    # Gone in numpy 1.24, and this very type again since 2.0. mmdet3d#2821
    vars(np).setdefault('long', np.int_)


def check_data(cfg: Config, *splits: str) -> None:
    """Look for the data that the data loaders and evaluators will read.

    Args:
        cfg (Config): The config.
        *splits (str): ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        UserError: A data root, an annotation file or the folder of the
            point clouds is missing.
    """
    for split in splits:
        version = _nuscenes_version(cfg.get(f'{split}_dataloader'))
        for section in (f'{split}_dataloader', f'{split}_evaluator'):
            for key, node in _dicts(cfg.get(section), section):
                for name, path in _data_paths(node, section, version):
                    if not osp.exists(path):
                        raise UserError(_missing_data(
                            f'{key}.{name}', path, node.get('data_root')))


def check_data_root(cfg: Config, root: str) -> None:
    """See that a config reads the data set that ``SIGPLUG_DATA_ROOT`` names.

    Args:
        cfg (Config): The config, loaded with that variable.
        root (str): The folder of the data set.

    Raises:
        UserError: It reads another one.
    """
    for split in ('train', 'val', 'test'):
        for key, node in _dicts(cfg.get(f'{split}_dataloader'),
                                f'{split}_dataloader'):
            found = node.get('data_root')
            if found and osp.realpath(found) != osp.realpath(root):
                raise UserError(
                    f'{cfg.filename} reads {key}.data_root = {found!r} in '
                    f'place of {root!r}: it does not take SIGPLUG_DATA_ROOT '
                    'from the environment, as the nus-mini configs in '
                    'configs/ do (one in plain Python cannot). Choose one '
                    'that does.')


def check_model(cfg: Config) -> None:
    """Compare the parts of a LiDAR heatmap detector with one another.

    What does not fit would end in an error about shapes at best, and in boxes
    at the wrong place or in classes that are never trained at worst. Other
    models are left alone.

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
    known = []
    for i, task in enumerate(head['tasks'] or ()):
        names = task.get('class_names')
        if names is None:
            raise UserError(
                f'model.pts_bbox_head.tasks.{i} has no class_names, the names '
                f'of the classes of the task: {dict(task)}.')
        if task.get('num_class', len(names)) != len(names):
            raise UserError(
                f'model.pts_bbox_head.tasks.{i}: num_class is '
                f'{task["num_class"]}, but class_names has {len(names)} '
                f'names: {list(names)}.')
        known += names
    for split in ('train', 'val', 'test'):
        for key, node in _dicts(cfg.get(f'{split}_dataloader'),
                                f'{split}_dataloader'):
            metainfo = node.get('metainfo')
            classes = metainfo.get('classes') if isinstance(
                metainfo, dict) else None
            # A name stands for a file, which mmengine reads.
            if not isinstance(classes, (list, tuple)):
                continue
            # The label of a box is a place, whatever the head calls it. A
            # head of the first classes alone is tested as it is, but in
            # training objects of the others would be background to it.
            kept = len(known)
            if split == 'train':
                kept = min([len(classes), *_filtered(node)])
            if kept != len(known) or kept > len(classes) or _is_shuffled(
                    known, classes):
                raise UserError(
                    f'The labels of the data are places in '
                    f'{key}.metainfo.classes = {list(classes)}, but the tasks '
                    f'of model.pts_bbox_head have the class_names {known}. '
                    'Give both the same names in the same order; for a head '
                    'of the first classes alone, the training pipeline '
                    'ObjectNameFilter with these.')


def _filtered(dataset: dict) -> Iterator[int]:
    """How many classes the filters in the pipeline of a data set let by."""
    for _, step in _dicts(dataset.get('pipeline'), ''):
        # A name, or the class of a config in Python.
        if 'ObjectNameFilter' in str(step.get('type')):
            yield len(step['classes'])


def _is_shuffled(known: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether a name stands at another place; other names are no matter."""
    known, classes = ([re.sub(r'[\W_]', '', str(name)).lower()
                       for name in names] for names in (known, classes))
    return any(ours != theirs and (ours in classes or theirs in known)
               for ours, theirs in zip(known, classes, strict=False))


def _check_grid(model: dict, coder: dict) -> None:
    """See :func:`check_model`."""
    parts = {
        'data_preprocessor.voxel_layer':
            (model.get('data_preprocessor') or {}).get('voxel_layer'),
        'pts_voxel_encoder': model.get('pts_voxel_encoder'),
        'pts_bbox_head.bbox_coder': coder,
        'train_cfg.pts': (model.get('train_cfg') or {}).get('pts'),
        'test_cfg.pts': (model.get('test_cfg') or {}).get('pts'),
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
        node = node or {}
        for name in ('voxel_size', 'out_size_factor'):
            if node.get(name) is not None:
                compare(name, f'{part}.{name}', node[name])
        for name in ('point_cloud_range', 'pc_range'):
            if node.get(name) is not None:
                compare('origin', f'{part}.{name} (its x, y)', node[name])
    layer = parts['data_preprocessor.voxel_layer'] or {}
    if layer.get('point_cloud_range') is None or (
            layer.get('voxel_size') is None):
        return
    area = np.asarray(layer['point_cloud_range'], dtype=float)
    size = np.asarray(layer['voxel_size'], dtype=float)
    grid = np.round((area[3:5] - area[:2]) / size[:2])
    name = 'number of voxels in x and y'
    compare(name, f'data_preprocessor.voxel_layer ({name})', grid)
    grid = (parts['train_cfg.pts'] or {}).get('grid_size')
    if grid is not None:
        compare(name, 'train_cfg.pts.grid_size (its x, y)', grid)
    shape = (model.get('pts_middle_encoder') or {}).get('output_shape')
    if shape is not None:
        compare(name, 'pts_middle_encoder.output_shape (its x, y)',
                shape[::-1])


def check_checkpoint(path: str,
                     argument: str,
                     resume: bool = False) -> dict[str, Any]:
    """Load a checkpoint once, to find out before the run that it will do.

    Args:
        path (str): A file; a URL is left to mmengine.
        argument (str): Where the path comes from, for the message.
        resume (bool): Whether training is to continue from it.

    Returns:
        dict: The checkpoint; that of a URL is not loaded and empty.

    Raises:
        UserError: The checkpoint is missing or unreadable, or training
            cannot continue from it.
    """
    if '://' in path:
        return {}
    if osp.isdir(path):
        raise UserError(
            f'{argument}: {path!r} is a folder. Name a checkpoint file, such '
            f'as {osp.join(path, "epoch_1.pth")!r}.')
    if not osp.isfile(path):
        raise UserError(
            f'{argument}: the checkpoint {path!r} does not exist (working '
            f'directory: {os.getcwd()}).{_similar_files(path)}')
    try:
        checkpoint = load_safely(path, map_location='cpu')
    # Whatever goes wrong here, this file is of no use to the run.
    except Exception as error:
        raise UserError(
            f'{argument}: the checkpoint {path!r} '
            f'{_why_unreadable(error)}') from error
    if not isinstance(checkpoint, dict):
        raise UserError(
            f'{argument}: {path!r} is no checkpoint, which is a dict with the '
            f'weights: it holds a {type(checkpoint).__name__}.')
    if not resume:
        return checkpoint
    absent = {'meta', 'message_hub', 'optimizer'} - set(checkpoint) or {
        f'meta[{key!r}]' for key in ('epoch', 'iter')
    } - {f'meta[{key!r}]' for key in checkpoint['meta']}
    if absent:
        raise UserError(
            f'{argument}: training cannot continue from {path!r}, which has '
            f'no {", ".join(sorted(absent))}. To start from its weights, use '
            f'--cfg-options load_from={path} instead of --resume.')
    # mmengine never writes this entry, but would execute it as Python.
    if 'config' in checkpoint['meta']:
        raise UserError(
            f"{argument}: {path!r} holds a config in meta['config'], which "
            'mmengine would execute. Remove it if you trust the file.')
    return checkpoint


@contextmanager
def explain_registry_errors(cfg: Config) -> Iterator[None]:
    """Name the misspelt ``type`` when something cannot be built.

    Args:
        cfg (Config): The config that is built from.

    Raises:
        UserError: In place of the registry's error.
    """
    try:
        yield
    except (KeyError, RuntimeError) as error:
        if not re.search(
                r'not in the .* registry|Cannot find .* in registry|'
                r'Failed to get ', str(error)):
            raise
        unknown = unknown_types(cfg)
        message = '\n'.join(
            f'{key}.type = {name!r} is not registered.{hint}'
            for key, name, hint in unknown)
        raise UserError(message or _text(error)) from error


@contextmanager
def explain_data_errors() -> Iterator[None]:
    """Name the info file, and the sample in it, that a dataset cannot read.

    The file is read once, by the dataset, and not before: that of nuScenes
    takes a while.

    Raises:
        UserError: In place of the error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _why_no_samples(error)
        if reason is None:
            raise
        raise UserError(reason) from error


def _why_no_samples(error: BaseException) -> str | None:
    """What a dataset of mmengine was reading when it raised the error."""
    place, dataset = '', None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name, values = frame.f_code.co_name, frame.f_locals
        if name == 'full_init' and isinstance(values['self'], BaseDataset):
            dataset = values['self']
            place = f'The info file {dataset.ann_file!r} cannot be used'
        elif dataset is None:
            continue
        elif name == 'load_data_list' and 'raw_data_info' in values:
            place += f': its entry {len(values["data_list"])} is wrong'
        elif name == '_get_unserialized_subset':
            return (f'indices={dataset._indices!r} does not fit a '
                    f'{type(dataset).__name__} of {len(dataset.data_list)} '
                    f'samples ({_text(error)}).')
        elif name == '_serialize_data' and not dataset.data_list:
            if dataset._indices is not None:
                return (f'indices={dataset._indices!r} leaves no sample of '
                        f'{dataset.ann_file!r}.')
            place += ': it holds no sample'
    if not place:
        return None
    return (f'{place} ({_text(error)}). Make it anew: docs/datasets.md gives '
            'the command for each data set.')


def unknown_types(cfg: Config) -> list[tuple[str, str, str]]:
    """Find the ``type`` names that are in none of the registries.

    Args:
        cfg (Config): The config.

    Returns:
        list[tuple[str, str, str]]: Key, name and a hint at similar names.
    """
    scope = cfg.get('default_scope', 'mmengine')
    roots = [
        value for value in vars(mmengine.registry).values()
        if isinstance(value, Registry)
    ]
    found = []
    with DefaultScope.overwrite_default_scope(scope):
        for key, node in _dicts(cfg._cfg_dict, ''):
            name = node.get('type')
            if isinstance(name, str) and not any(
                    _resolves(root, name) for root in roots):
                names = {n for root in roots for n in _names(root, name)}
                found.append((key, name, _did_you_mean(name, names)))
    return found


def _resolves(root: Registry, name: str) -> bool:
    try:
        with root.switch_scope_and_registry(None) as registry:
            return registry.get(name) is not None
    except (ImportError, RuntimeError):
        return False


def _names(registry: Registry, like: str) -> Iterator[str]:
    """All names in a registry and its children, with a scope if like has."""
    prefix = f'{registry.scope}.' if '.' in like else ''
    for name in registry.module_dict:
        yield prefix + name
    for child in registry.children.values():
        yield from _names(child, like)


def _dicts(node: Any, key: str) -> Iterator[tuple[str, dict]]:
    """All dicts inside a config with their dotted keys."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(node, dict):
        yield key, node
        items = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    else:
        return
    for name, value in items:
        yield from _dicts(value, f'{key}.{name}' if key else str(name))


def _nuscenes_version(dataloader: dict | None) -> str:
    """The folder of the tables that mmdet3d's NuScenesMetric will load."""
    for _, node in _dicts(dataloader, ''):
        metainfo = node.get('metainfo')
        if isinstance(metainfo, dict) and 'version' in metainfo:
            return metainfo['version']
    return 'v1.0-trainval'


def _data_paths(node: dict, section: str,
                version: str) -> Iterator[tuple[str, str]]:
    """The local paths in one dict of a data loader or an evaluator."""
    root = node.get('data_root') or ''
    if (node.get('backend_args') is not None or not isinstance(root, str)
            or '://' in root):
        return
    if root:
        yield 'data_root', root
    # With or without its scope, or the class.
    if 'NuScenesMetric' in str(node.get('type')):
        yield 'data_root with its tables', osp.join(root, version)
    # A dataset's files lie below its data root, an evaluator's do not.
    base = root if section.endswith('_dataloader') else ''
    if isinstance(node.get('ann_file'), str) and node['ann_file']:
        yield 'ann_file', osp.join(base, node['ann_file'])
    if isinstance(node.get('info_path'), str):
        yield 'info_path', node['info_path']
    prefix = node.get('data_prefix')
    if isinstance(prefix, dict) and prefix.get('pts'):
        yield 'data_prefix.pts', osp.join(base, prefix['pts'])


def _missing_data(key: str, path: str, root: str | None) -> str:
    root = root or osp.dirname(path)
    if 'synthetic' in root:
        remedy = ('Generate the data set with\n    python '
                  f'{GENERATOR} --out {root.rstrip("/")} --seed 0')
    else:
        remedy = (
            f'Put or link the data set at {root!r} and create its info files '
            "with mmdet3d's tools/create_data.py as docs/datasets.md says, or "
            'name another place and version (for the nus-mini configs '
            'SIGPLUG_DATA_ROOT and SIGPLUG_DATA_VERSION in the environment, '
            'else --cfg-options). Without nuScenes, use a nus-mini config '
            f'and generate its synthetic data set with\n    python {GENERATOR}'
            ' --out data/synthetic_nuscenes --seed 0')
    return (f'The data is missing: {path!r} ({key}) does not exist (working '
            f'directory: {os.getcwd()}).\n{remedy}')


def _why_unreadable(error: Exception) -> str:
    name = re.search(r'(?i)unsupported global:?(?: GLOBAL)? ([\w.]+)',
                     str(error))
    if name:
        return (f'holds {name[1]}, which torch does not trust: loading it '
                'might execute any code. Only if you trust the source of the '
                'file, load it by torch.load(..., weights_only=False) and '
                'save its state_dict alone.')
    return ('cannot be loaded. It is no checkpoint, or damaged by an '
            f'interrupted write or download ({type(error).__name__}).')


def _similar_files(path: str) -> str:
    folder = osp.dirname(path) or '.'
    names = os.listdir(folder) if osp.isdir(folder) else []
    return _did_you_mean(osp.basename(path), names)


def _did_you_mean(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    return f' Did you mean {" or ".join(map(repr, close))}?' if close else ''


def _as_options(options: dict[str, Any]) -> str:
    return ' '.join(f'{key}={value}' for key, value in options.items())


def _text(error: BaseException) -> str:
    """The name and the first line of an error."""
    # str(KeyError) would quote the text.
    text = error.args[0] if isinstance(error, KeyError) else error
    first, *_ = str(text).splitlines() or ['']
    return f'{type(error).__name__}: {first}'
