"""Checks before a run, and clear messages for known failures.

Each check raises a :class:`sigplug.errors.UserError`, whose one message
names the problem and the remedy. None of them changes the config.
"""
import inspect
import os
import os.path as osp
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any
from zipfile import is_zipfile

import torch
from mmengine.config import Config

from sigplug.engine.checkpoint import read_checkpoint
from sigplug.errors import UserError
from sigplug.files import TOOLS, relative

from .explain import (
    FAILED_IMPORT,
    describe,
    did_you_mean,
    iter_causes,
    iter_dicts,
)

GENERATOR = TOOLS / 'dataset_converters/create_synthetic_nuscenes.py'
# What a config may hold at its top beside the arguments of Runner.
SETTINGS = {
    'activation_checkpointing', 'auto_scale_lr', 'compile', 'custom_imports',
    'efficient_conv_bn_eval', 'find_unused_parameters', 'model_wrapper_cfg',
    'runner_type', 'sync_bn', 'tta_model', 'tta_pipeline'}
# So alike are a name and its misspelling, and seldom two names.
TYPO = 0.85


def find_config(path: str) -> str:
    """Return the file of a config, also of a name as in ``_base_``.

    Raises:
        UserError: There is none.
    """
    if '::' not in path:
        _check_file(path, f'The config {path!r}')
        return path
    try:
        return Config._get_cfg_path(path, '')[0]
    except Exception as error:
        # Its cause lists all configs that there are.
        raise UserError(
            f'The config {path!r} cannot be found: {error}. Such a '
            "name is mmdet3d:: or mmdet:: and a path below the package's "
            'configs, as in _base_.') from error


def load_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config and merge the values of ``--cfg-options``.

    Raises:
        UserError: It is missing or broken, or an option does not fit it.
    """
    file = find_config(path)
    try:
        cfg = Config.fromfile(file)
    # A config is Python code, and mmengine objects to it in many ways.
    except Exception as error:
        raise UserError(f'The config {path!r} cannot be read. '
                        f'{describe(error)}{_advise_import(error)}'
                        ) from error
    options = options or {}
    for key in options:
        _check_option(cfg, key)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, ValueError) as error:
        given = ' '.join(f'{key}={value}' for key, value in options.items())
        raise UserError(f'--cfg-options {given} does not fit the config '
                        f'{path!r}: {describe(error)}') from error
    return cfg


def _check_option(cfg: Config, key: str) -> None:
    """Refuse a key of ``--cfg-options`` that nothing would read.

    What has another name than all beside it may be an argument that the
    config leaves out.
    """
    node: Any = cfg._cfg_dict
    done: list[str] = []
    for name in key.split('.'):
        if isinstance(node, dict) and name not in node:
            known = {other for other in node if isinstance(other, str)}
            if not done:
                from mmengine.runner import Runner
                known |= {*inspect.signature(Runner).parameters, *SETTINGS}
            if name in known:
                return
            hint = did_you_mean(name, known, TYPO if done else 0.6)
            if hint or not done:
                raise UserError(
                    f'--cfg-options {key}: '
                    f'{".".join(done) or "the config"} has no {name!r}'
                    + (f'.{hint}' if hint else ', and nothing reads it. What '
                       'code of yours reads has to be in the config file.'))
            return
        if isinstance(node, (list, tuple)) and name.isdigit():
            node = node[int(name)] if int(name) < len(node) else None
        else:
            node = node.get(name) if isinstance(node, dict) else None
        done.append(name)


def _advise_import(error: BaseException) -> str:
    """Return what to do about a module of ``custom_imports``."""
    wanted = [match[1] for cause in iter_causes(error)
              if (match := FAILED_IMPORT.fullmatch(str(cause))) and match[1]]
    if not wanted:
        return ''
    *_, first = iter_causes(error)
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

    The data set names their version.

    Raises:
        UserError: They are missing.
    """
    version = (getattr(dataset, 'metainfo', None) or {}).get('version')
    section = f'{split}_evaluator'
    for key, node in iter_dicts(cfg.get(section), section):
        root = dict(_iter_data_paths(node, section)).get('data_root')
        if 'NuScenesMetric' in str(node.get('type')) and root and version:
            tables = osp.join(root, version)
            if not osp.exists(tables):
                raise UserError(_explain_missing_data(
                    f'{key}.data_root with its tables', tables, root))


def check_checkpoint(path: str, argument: str,
                     needed: Iterable[str] = ()) -> dict[str, Any]:
    """Return a checkpoint, whose tensors are not read yet.

    A URL is left to mmengine, and gives nothing.

    Raises:
        UserError: It is missing or unreadable, or lacks what is needed. The
            message names the ``argument`` that the path comes from.
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
    command = f'python {relative(GENERATOR)} --seed 0 --out'
    if 'synthetic' in root:
        remedy = (f'Generate the data set with\n    {command} '
                  f'{root.rstrip("/")}')
    else:
        remedy = (
            f'Put or link the data set at {root!r} and create its info files '
            "with mmdet3d's tools/create_data.py as docs/datasets.md says, or "
            'name another place and version (for the nus-mini configs '
            'SIGPLUG_DATA_ROOT and SIGPLUG_DATA_VERSION in the environment, '
            'else --cfg-options). Without nuScenes, use a nus-mini config '
            f'and generate its synthetic data set with\n    {command} '
            'data/synthetic_nuscenes')
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
            f'{did_you_mean(osp.basename(path), names)}')
