"""Checks before a run, and clear messages for known failures.

Each check raises a :class:`sigplug.errors.UserError`, whose one message
names the problem and the remedy. None of them changes the config.
"""
import difflib
import os
import os.path as osp
import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from zipfile import is_zipfile

import mmengine.registry
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, Registry

from sigplug.errors import UserError

from .checkpoint import read_checkpoint

# What mmengine puts on top of an error in custom_imports.
FAILED_IMPORT = re.compile(
    r'Failed to import (?:custom modules from .*|([\w.]+))', re.DOTALL)
GENERATOR = 'tools/dataset_converters/create_synthetic_nuscenes.py'


def load_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config file and merge the values of ``--cfg-options``.

    Raises:
        UserError: The file is missing or broken, or an option does not
            fit the config.
    """
    _check_file(path, f'The config {path!r}')
    try:
        cfg = Config.fromfile(path)
    # A config is Python code, and mmengine objects to it in many ways.
    except Exception as error:
        raise UserError(f'The config {path!r} cannot be read. '
                        f'{_describe(error)}{_advise_import(error)}'
                        ) from error
    try:
        cfg.merge_from_dict(options or {})
    except (KeyError, TypeError, ValueError) as error:
        given = ' '.join(f'{key}={value}'
                         for key, value in (options or {}).items())
        raise UserError(f'--cfg-options {given} does not fit the config '
                        f'{path!r}: {_describe(error)}') from error
    return cfg


def _advise_import(error: BaseException) -> str:
    """Return what to do about a module of ``custom_imports``."""
    wanted = [match[1] for cause in _chain(error)
              if (match := FAILED_IMPORT.fullmatch(str(cause))) and match[1]]
    if not wanted:
        return ''
    *_, first = _chain(error)
    if isinstance(first, ModuleNotFoundError) and (
            f'{wanted[0]}.'.startswith(f'{first.name}.')):
        return ('. It is in custom_imports of the config: add the folder that '
                'holds it to PYTHONPATH.')
    return f' (while importing {wanted[0]!r} of custom_imports)'


def check_stack(cfg: Config) -> None:
    """Import the packages that the scope of the config needs.

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


def check_data(cfg: Config, *splits: str) -> None:
    """Check that the data of the data loaders and evaluators is there.

    Raises:
        UserError: A data root, an annotation file or the folder of the
            point clouds is missing.
    """
    for split in splits:
        for section in (f'{split}_dataloader', f'{split}_evaluator'):
            for key, node in iter_dicts(cfg.get(section), section):
                for name, path in _iter_data_paths(node, section):
                    if not osp.exists(path):
                        raise UserError(_explain_missing_data(
                            f'{key}.{name}', path, node.get('data_root')))


def check_tables(cfg: Config, split: str, dataset: Any) -> None:
    """Check that the tables which ``NuScenesMetric`` loads are there.

    Args:
        cfg (Config): The config.
        split (str): ``'train'``, ``'val'`` or ``'test'``.
        dataset (Dataset): Its data set, which names the version.

    Raises:
        UserError: They are missing.
    """
    version = (getattr(dataset, 'metainfo', None) or {}).get('version')
    section = f'{split}_evaluator'
    for key, node in iter_dicts(cfg.get(section), section):
        kind, root = node.get('type'), node.get('data_root')
        name = kind if isinstance(kind, str) else getattr(
            kind, '__name__', '')
        if (name.rpartition('.')[2] == 'NuScenesMetric' and version and root
                and '://' not in root and node.get('backend_args') is None
                and not node.get('format_only')
                and not osp.exists(osp.join(root, version))):
            raise UserError(_explain_missing_data(
                f'{key}.data_root with its tables', osp.join(root, version),
                root))


def check_checkpoint(path: str, argument: str,
                     needed: Iterable[str] = ()) -> dict[str, Any]:
    """Return a checkpoint, whose tensors are not read yet.

    Args:
        path (str): A file. A URL is left to mmengine, and gives nothing.
        argument (str): Where the path comes from, for the message.
        needed (Iterable[str]): What training needs to continue from it.

    Raises:
        UserError: It is missing or unreadable, or lacks what is needed.
    """
    if '://' in path:
        return {}
    # As mmengine does.
    path = osp.expanduser(path)
    _check_file(path, f'{argument} {path!r}')
    # Before 1.6 torch wrote another format.
    checkpoint = read_checkpoint(path, 'cpu', mmap=is_zipfile(path))
    absent = set(needed) - set(checkpoint)
    if absent:
        raise UserError(
            f'{argument}: training cannot continue from {path!r}, which has '
            f'no {", ".join(sorted(absent))}. To start from its weights, use '
            f'--cfg-options load_from={path} instead of --resume.')
    return checkpoint


@contextmanager
def explain_registry_errors(cfg: Config) -> Iterator[None]:
    """Name the misspelt ``type`` when something cannot be built.

    Raises:
        UserError: Instead of the registry's error.
    """
    try:
        yield
    except (KeyError, RuntimeError) as error:
        match = re.search(
            r"'?([\w.]+) is not in the .* registry|Failed to get ([\w.]+)",
            str(error))
        if match is None:
            raise
        name = match[1] or match[2]
        known = {other for root in vars(mmengine.registry).values()
                 if isinstance(root, Registry)
                 for other in _iter_names(root, with_scope='.' in name)}
        if name in known:
            raise UserError(_describe(error)) from error
        places = [f'{key}.type' for key, node in iter_dicts(cfg._cfg_dict, '')
                  if node.get('type') == name]
        raise UserError(
            f'{" and ".join(places) or "A type"} = {name!r} is not registered.'
            f'{_did_you_mean(name, known)}') from error


@contextmanager
def explain_data_errors(dataloader: dict | None) -> Iterator[None]:
    """Say what is wrong with a dataset that cannot be built.

    The info file is read once, by the dataset, and not before: that of
    nuScenes takes a while. What is built may be a data loader or a dataset.

    Raises:
        UserError: Instead of the dataset's error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Where mmengine's BaseDataset reads its info file.
        calls = {call.name for call in traceback.extract_tb(
            error.__traceback__)}
        nodes = [node for _, node in iter_dicts(dataloader, '')]
        explain = (
            _explain_balance if isinstance(error, ZeroDivisionError) else
            # Of list.index and tuple.index.
            _explain_classes if isinstance(error, ValueError)
            and re.search('not in (list|tuple)', str(error)) else
            lambda _: None)
        text = next(filter(None, map(explain, nodes)), None)
        if text is None and 'full_init' in calls:
            files = [osp.join(node.get('data_root') or '', node['ann_file'])
                     for node in nodes
                     if isinstance(node.get('ann_file'), str)]
            text = (
                f'The info file {" or ".join(map(repr, files))} cannot be '
                f'used ({_describe(error)}). Create it again: '
                'docs/datasets.md gives the command for each data set.')
        if text is None:
            raise
        raise UserError(text) from error


def _explain_classes(node: dict) -> str | None:
    """Name the classes that a dataset of mmdet3d does not have."""
    kind, metainfo = node.get('type'), node.get('metainfo')
    if kind is None or not isinstance(metainfo, dict):
        return None
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    known = getattr(kind, 'METAINFO', {}).get('classes') or ()
    # Others take any.
    if not hasattr(kind, 'parse_ann_info') or not known:
        return None
    absent = [name for name in metainfo.get('classes') or ()
              if name not in known]
    return (f'metainfo.classes of {kind.__name__} names '
            f'{", ".join(map(repr, absent))}, which it does not have.'
            f'{_did_you_mean(absent[0], known)} It has {list(known)}.'
            ) if absent else None


def _explain_balance(node: dict) -> str | None:
    """Name the classes of which ``CBGSDataset`` has nothing to draw."""
    if 'CBGSDataset' not in str(node.get('type')):
        return None
    dataset = DATASETS.build(node['dataset'])
    found = {label for index in range(len(dataset))
             for label in dataset.get_cat_ids(index)}
    absent = [name for label, name in enumerate(dataset.metainfo['classes'])
              if label not in found]
    return ('CBGSDataset draws as many samples of each class, but no sample '
            f'of {node["dataset"].get("ann_file")!r} has a '
            f'{" or a ".join(absent)}. Leave the class out of '
            'metainfo.classes and of the head, or train without CBGSDataset.')


def _iter_names(registry: Registry, with_scope: bool) -> Iterator[str]:
    """Yield the names in a registry and its children."""
    prefix = f'{registry.scope}.' if with_scope else ''
    for name in registry.module_dict:
        yield prefix + name
    for child in registry.children.values():
        yield from _iter_names(child, with_scope)


def iter_dicts(node: Any, key: str) -> Iterator[tuple[str, dict]]:
    """Yield the dicts inside a part of a config, each with its dotted key."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(node, dict):
        yield key, node
        items = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    else:
        return
    for name, value in items:
        yield from iter_dicts(value, f'{key}.{name}' if key else str(name))


def _iter_data_paths(node: dict, section: str) -> Iterator[tuple[str, str]]:
    """Yield the local paths in one dict of a data loader or an evaluator."""
    root = node.get('data_root') or ''
    if (node.get('backend_args') is not None or not isinstance(root, str)
            or '://' in root):
        return
    if root and not node.get('format_only'):
        yield 'data_root', root
    # A dataset's files lie below its data root, an evaluator's do not.
    base = root if section.endswith('_dataloader') else ''
    if isinstance(node.get('ann_file'), str) and node['ann_file']:
        yield 'ann_file', osp.join(base, node['ann_file'])
    if isinstance(node.get('info_path'), str):
        yield 'info_path', node['info_path']
    prefix = node.get('data_prefix')
    if isinstance(prefix, dict) and prefix.get('pts'):
        yield 'data_prefix.pts', osp.join(base, prefix['pts'])


def _explain_missing_data(key: str, path: str, root: str | None) -> str:
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


def _check_file(path: str, what: str) -> None:
    """Raise a ``UserError`` where there is no such file."""
    if osp.isdir(path):
        raise UserError(f'{what} is a folder: name a file in it.')
    if not osp.isfile(path):
        folder = osp.dirname(path) or '.'
        names = os.listdir(folder) if osp.isdir(folder) else []
        raise UserError(
            f'{what} does not exist (working directory: {os.getcwd()}).'
            f'{_did_you_mean(osp.basename(path), names)}')


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3)
    return f' Did you mean {" or ".join(map(repr, close))}?' if close else ''


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, the first to happen last."""
    while error is not None:
        yield error
        error = error.__cause__ or (
            None if error.__suppress_context__ else error.__context__)


def _describe(error: BaseException) -> str:
    """Return what an error says, and the error that it began with."""
    lines = []
    for cause in _chain(error):
        # str(KeyError) would quote the text.
        text = str(cause.args[0] if isinstance(cause, KeyError) and cause.args
                   else cause)
        if not FAILED_IMPORT.fullmatch(text):
            lines += f'{type(cause).__name__}: {text}'.splitlines()[:1]
    first, *others = dict.fromkeys(lines or [str(error)])
    return f'{first} (from {others[-1]})' if others else first
