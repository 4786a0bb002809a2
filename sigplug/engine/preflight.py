"""Checks before a run, and clear words for the failures that are known.

Each check raises :class:`PreflightError` with one message that names the
problem and the remedy; :func:`run_tool` prints it and ends with exit code 2.
Any other exception keeps its traceback.
"""
import difflib
import os
import os.path as osp
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import mmengine.registry
import numpy as np
import torch
from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError
from mmengine.registry import DefaultScope, Registry

GENERATOR = 'tools/dataset_converters/create_synthetic_nuscenes.py'


class PreflightError(Exception):
    """A problem that the user can solve; its text is the whole message."""


def run_tool(main: Callable[[], None]) -> int:
    """Run the ``main`` of a command-line tool.

    Args:
        main (Callable): The tool.

    Returns:
        int: The exit code: 0, or 2 after a :class:`PreflightError`, whose
        message went to the standard error (once for all ranks).
    """
    try:
        main()
    except PreflightError as error:
        print_once(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def is_first_process() -> bool:
    """Whether this is the first of those that a launcher started."""
    ranks = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
    return all(os.environ.get(name, '0') == '0' for name in ranks)


def print_once(text: str, **kwargs: Any) -> None:
    """Print from the first of the processes that a launcher started.

    Args:
        text (str): The text.
        **kwargs: As for ``print``.
    """
    if is_first_process():
        print(text, flush=True, **kwargs)


def load_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config file and merge the values of ``--cfg-options``.

    Args:
        path (str): The config file.
        options (dict, optional): Values by dotted key.

    Raises:
        PreflightError: The file is missing or broken, or an option does not
            fit the config.
    """
    if osp.isdir(path):
        raise PreflightError(f'The config {path!r} is a folder: name a file '
                             'in it.')
    if not osp.isfile(path):
        raise PreflightError(
            f'The config {path!r} does not exist (working directory: '
            f'{os.getcwd()}).{_similar_files(path)}')
    try:
        cfg = Config.fromfile(path)
    # mmengine objects to a wrong _base_ in many ways.
    except (AssertionError, ConfigParsingError, ImportError, KeyError,
            OSError, SyntaxError, ValueError) as error:
        raise PreflightError(
            f'The config {path!r} cannot be read. {_text(error)}') from error
    try:
        cfg.merge_from_dict(options or {})
    except (KeyError, TypeError, ValueError) as error:
        raise PreflightError(
            f'--cfg-options {_as_options(options)} does not fit the config '
            f'{path!r}: {_text(error)}') from error
    return cfg


def check_stack(cfg: Config) -> None:
    """Import the packages that the scope of the config stands on.

    Where numpy has no ``long`` it gets one, which ``ObjectSample`` of mmdet3d
    1.4.0 cannot do without.

    Args:
        cfg (Config): The config.

    Raises:
        PreflightError: A package is missing, or not made for the others.
    """
    scope = cfg.get('default_scope', 'mmengine')
    if scope not in ('mmcv', 'mmdet', 'mmdet3d'):
        return
    for name in ('mmcv.ops', scope):
        try:
            import_module(name)
        # mmdet and mmdet3d assert the versions of their dependencies.
        except (ImportError, AssertionError, OSError) as error:
            raise PreflightError(
                f'{name} cannot be imported: {error}\n'
                f"The config's default_scope {scope!r} needs mmcv with its "
                'compiled operators, mmdet and mmdet3d. `make env` builds a '
                'working environment; in an existing one, install an mmcv '
                f'that was built for torch {torch.__version__}.') from error
    # Gone in numpy 1.24, and this very type again since 2.0. mmdet3d#2821
    if 'long' not in vars(np):
        np.long = np.int_


def check_data(cfg: Config, *splits: str) -> None:
    """Look for the data that the data loaders and evaluators will read.

    Args:
        cfg (Config): The config.
        *splits (str): ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        PreflightError: A data root, an annotation file or the folder of the
            point clouds is missing.
    """
    for split in splits:
        version = _nuscenes_version(cfg.get(f'{split}_dataloader'))
        for section in (f'{split}_dataloader', f'{split}_evaluator'):
            for key, node in _dicts(cfg.get(section), section):
                for name, path in _data_paths(node, section, version):
                    if not osp.exists(path):
                        raise PreflightError(_missing_data(
                            f'{key}.{name}', path, node.get('data_root')))


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
        PreflightError: The checkpoint is missing or unreadable, or training
            cannot continue from it.
    """
    if '://' in path:
        return {}
    if not osp.isfile(path):
        raise PreflightError(
            f'{argument}: the checkpoint {path!r} does not exist (working '
            f'directory: {os.getcwd()}).{_similar_files(path)}')
    try:
        checkpoint = torch.load(path, map_location='cpu')
    # Whatever goes wrong here, this file is of no use to the run.
    except Exception as error:
        raise PreflightError(
            f'{argument}: the checkpoint {path!r} '
            f'{_why_unreadable(error)}') from error
    if not resume:
        return checkpoint
    absent = {'meta', 'message_hub', 'optimizer'} - set(checkpoint)
    if absent:
        raise PreflightError(
            f'{argument}: training cannot continue from {path!r}, which has '
            f'no {", ".join(sorted(absent))}. To start from its weights, use '
            f'--cfg-options load_from={path} instead of --resume.')
    # mmengine never writes this entry, but would execute it as Python.
    if 'config' in checkpoint['meta']:
        raise PreflightError(
            f"{argument}: {path!r} holds a config in meta['config'], which "
            'mmengine would execute. Remove it if you trust the file.')
    return checkpoint


@contextmanager
def clear_registry_errors(cfg: Config) -> Iterator[None]:
    """Name the misspelt ``type`` when something cannot be built.

    Args:
        cfg (Config): The config that is built from.

    Raises:
        PreflightError: In place of the registry's error.
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
        raise PreflightError(message or _text(error)) from error


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
    if node.get('type') == 'NuScenesMetric':
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
                'file, allow the name with '
                'torch.serialization.add_safe_globals.')
    return ('cannot be loaded. It is no checkpoint, or damaged by an '
            f'interrupted write or download ({type(error).__name__}).')


def _similar_files(path: str) -> str:
    folder = osp.dirname(path) or '.'
    names = os.listdir(folder) if osp.isdir(folder) else []
    return _did_you_mean(osp.basename(path), names)


def _did_you_mean(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    return f' Did you mean {" or ".join(map(repr, close))}?' if close else ''


def _as_options(options: dict[str, Any] | None) -> str:
    return ' '.join(f'{key}={value}' for key, value in options.items())


def _text(error: Exception) -> str:
    """The name and the first line of an error."""
    # str(KeyError) would quote the text.
    text = error.args[0] if isinstance(error, KeyError) else error
    first, *_ = str(text).splitlines() or ['']
    return f'{type(error).__name__}: {first}'
