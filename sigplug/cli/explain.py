"""Errors of a config in one sentence each, with the key that they concern."""
import difflib
import inspect
import os.path as osp
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import mmengine.registry
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, Registry

from sigplug.engine.upstream_fixes import find_built_config
from sigplug.errors import UserError

# What mmengine puts on top of an error in custom_imports.
FAILED_IMPORT = re.compile(
    r'Failed to import (?:custom modules from .*|([\w.]+))', re.DOTALL)
UNKNOWN_TYPE = re.compile(
    r"'?([\w.]+) is not in the .* registry|Failed to get ([\w.]+)")
UNKNOWN_ARGUMENT = re.compile(
    r"(\w*)\.?__init__\(\) got an unexpected keyword argument '(\w+)'")
# Other classes are somebody's own work, who needs the traceback of a fault.
STACK = ('sigplug', 'mmengine', 'mmcv', 'mmdet', 'mmdet3d', 'torch')


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


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return a hint at names like this one, or an empty text.

    A mapping says how each is written.
    """
    close = difflib.get_close_matches(name, list(names), 3, cutoff)
    if isinstance(names, Mapping):
        close = [names[other] for other in close]
    return f' Did you mean {" or ".join(map(repr, close))}?' if close else ''


def iter_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, the first to happen last."""
    while error is not None:
        yield error
        error = error.__cause__ or (
            None if error.__suppress_context__ else error.__context__)


def describe(error: BaseException) -> str:
    """Return what an error and its causes say, in one line."""
    lines = []
    for cause in iter_causes(error):
        # str(KeyError) would quote the text.
        text = str(cause.args[0] if isinstance(cause, KeyError) and cause.args
                   else cause)
        if not FAILED_IMPORT.fullmatch(text):
            lines.append(' '.join(f'{type(cause).__name__}: {text}'.split()))
    first, *others = dict.fromkeys(lines or [str(error)])
    return first + ''.join(f' (from {other})' for other in others)


@contextmanager
def _explaining(explain: Callable[[Exception], str | None]) -> Iterator[None]:
    """Raise a ``UserError`` for an error that has an explanation."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = explain(error)
        if text is None:
            raise
        # For the log file alone, see screen.NOISE.
        print_log(''.join(traceback.format_exception(error)), 'current')
        raise UserError(text) from error


def explain_build_errors(cfg: Config) -> AbstractContextManager[None]:
    """Name the key of a part of a config that cannot be built.

    Raises:
        UserError: Its type is not registered, or its class refuses a value;
            or the nuScenes devkit has nothing to evaluate.
    """
    return _explaining(lambda error: (
        _explain_type(error, cfg) or _explain_argument(error, cfg)
        or _explain_value(error, cfg) or _explain_evaluation(error)))


def _explain_type(error: Exception, cfg: Config) -> str | None:
    match = UNKNOWN_TYPE.search(str(error)) if isinstance(
        error, (KeyError, RuntimeError)) else None
    if match is None:
        return None
    name = match[1] or match[2]
    default = ('mmengine', cfg.get('default_scope'))
    # How each is written. A bare name counts where it is found.
    names: dict[str, str] = {}
    for root in vars(mmengine.registry).values():
        for scope, bare in _iter_types(root):
            written = f'{scope}.{bare}'
            if '.' in name:
                names[written] = written
            elif scope in default:
                names[bare] = bare
            else:
                names.setdefault(bare, written)
    places = ' and '.join(
        f'{key}.type' for key, node in iter_dicts(cfg._cfg_dict, '')
        if node.get('type') == name) or 'A type'
    if names.get(name) == name:
        # It is there, among parts of another kind.
        return f'{places}: {describe(error)}'
    hint = (f' Write {names[name]!r}: it has no bare name.' if name in names
            else did_you_mean(name, names))
    return f'{places} = {name!r} is not registered.{hint}'


def _iter_types(registry: Any) -> Iterator[tuple[str, str]]:
    """Yield scope and name of the types in a registry and its children."""
    if not isinstance(registry, Registry):
        return
    # Those of sigplug are imported once a prefix asks for them.
    if registry.scope == 'sigplug':
        registry.import_from_location()
    for name in registry.module_dict:
        yield registry.scope, name
    for child in registry.children.values():
        yield from _iter_types(child)


def _explain_argument(error: Exception, cfg: Config) -> str | None:
    """Name an argument that a class does not have, and those like it."""
    match = UNKNOWN_ARGUMENT.search(str(error))
    if match is None or not isinstance(error, TypeError):
        return None
    kind, name = match.groups()
    built, cls = find_built_config(error) or ({}, None)
    known: set[str] = set()
    if name in built and inspect.isclass(cls):
        kind, places = cls.__name__, _find_places(cfg, built)
        for base in inspect.getmro(cls):
            known |= set(inspect.signature(vars(base).get(
                '__init__', object)).parameters)
    else:
        # None of the registry's, as a data loader.
        places = [place for place in _iter_parts(cfg) if name in place[1]]
    if not places:
        return None
    known |= {other for _, node in places for other in node} - {name}
    keys = ' and '.join(f'{key}.{name}' for key, _ in places)
    return (f'{keys}: {kind} takes no argument {name!r}.'
            f'{did_you_mean(name, known)}')


def _explain_value(error: Exception, cfg: Config) -> str | None:
    """Name the part of a config whose class refuses a value."""
    built, cls = find_built_config(error) or ({}, None)
    places = _find_places(cfg, built)
    own = getattr(cls, '__module__', '').partition('.')[0] not in STACK
    if not places or not isinstance(error, ValueError if own else (
            ValueError, TypeError, KeyError, AssertionError, ImportError)):
        return None
    text = describe(error).removeprefix('ValueError: ')
    if own or not str(error):
        call = traceback.extract_tb(error.__traceback__)[-1]
        text = f'{text} ({call.filename}, line {call.lineno})'
    name = text.partition(' ')[0]
    return (' and '.join(f'{key}.{name}' if name in node else key
                         for key, node in places) + f': {text}')


def _explain_evaluation(error: Exception) -> str | None:
    # What the devkit says of no box at all.
    if str(error) != 'Error: Invalid box type: None':
        return None
    return ('The model has found no box within the ranges of the classes, and '
            'the nuScenes devkit does not evaluate nothing. Train for longer '
            'before the first evaluation (train_cfg.val_begin), or lower '
            "score_threshold in the model's test_cfg.")


def _iter_parts(cfg: Config) -> Iterator[tuple[str, dict]]:
    """Yield the dicts that a runner reads, each with its dotted key."""
    # It takes a second to import, which only an error needs here.
    from mmengine.runner import Runner
    for key in inspect.signature(Runner).parameters:
        yield from iter_dicts(cfg.get(key), key)


def _find_places(cfg: Config, built: dict) -> list[tuple[str, dict]]:
    """Return the parts of a config that something was built from.

    Defaults, and what a part gets from the one around it, are in ``built``
    alone.
    """
    kind = _bare_type(built)
    same_type = [(key, node) for key, node in _iter_parts(cfg)
                 if kind is not None and _bare_type(node) == kind]
    return [(key, node) for key, node in same_type if all(
        name == 'type' or name in built and built[name] == value
        for name, value in node.items())] or same_type


def _bare_type(node: dict) -> Any:
    """Return the type of a part without its scope."""
    kind = node.get('type')
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind


def explain_data_errors(dataloader: dict | None,
                        key: str = '') -> AbstractContextManager[None]:
    """Say what is wrong with a data loader or a dataset that cannot be built.

    Raises:
        UserError: Instead of its error.
    """
    return _explaining(lambda error: _explain_data(error, dataloader, key))


def _explain_data(error: Exception, dataloader: dict | None,
                  key: str) -> str | None:
    calls = [call.name for call in traceback.extract_tb(error.__traceback__)]
    nodes = [node for _, node in iter_dicts(dataloader, '')]
    # Of list.index and tuple.index.
    if isinstance(error, ValueError) and re.search(
            'not in (list|tuple)', str(error)):
        if text := next(filter(None, map(_explain_classes, nodes)), None):
            return text
    if isinstance(error, ZeroDivisionError) and 'CBGSDataset' in str(
            [node.get('type') for node in nodes]):
        return ('CBGSDataset draws as many samples of each class, and one of '
                'the classes has no sample. Leave it out of metainfo.classes '
                'and of the head, or train without CBGSDataset.')
    # Where mmengine's BaseDataset reads its info file.
    if 'full_init' in calls:
        files = [osp.join(node.get('data_root') or '', node['ann_file'])
                 for node in nodes if isinstance(node.get('ann_file'), str)]
        return (f'The info file {" or ".join(map(repr, files))} cannot be '
                f'used ({describe(error)}). Create it again: '
                'docs/datasets.md gives the command for each data set.')
    # What the loader itself refuses, which is built without a registry.
    build = {name: place for place, name in enumerate(calls)}
    if isinstance(error, ValueError) and key and build.get(
            'build_dataloader', -1) > build.get('build_from_cfg', -1):
        return f'{key}: {describe(error).removeprefix("ValueError: ")}'
    return None


def _explain_classes(node: dict) -> str | None:
    """Name the classes that a dataset of mmdet3d does not have."""
    kind, metainfo = node.get('type'), node.get('metainfo')
    if kind is None or not isinstance(metainfo, dict):
        return None
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    known = getattr(kind, 'METAINFO', {}).get('classes') or ()
    absent = [name for name in metainfo.get('classes') or ()
              if name not in known]
    # Others take any.
    if not (hasattr(kind, 'parse_ann_info') and known and absent):
        return None
    return (f'metainfo.classes of {kind.__name__} names '
            f'{", ".join(map(repr, absent))}, which it does not have.'
            f'{did_you_mean(absent[0], known)} It has {list(known)}.')
