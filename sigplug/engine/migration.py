"""A config of mmdet3d or mmdet, turned into one that uses sigplug.

The result is a child of the config: what it does not name stays as it was.
Before anyone gets to see it, it is loaded and compared, and its parts are
built beside the stock ones.
"""
import copy
import os
import os.path as osp
import re
from collections.abc import Iterable, Iterator
from keyword import iskeyword
from math import inf, isfinite
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from sigplug.errors import UserError

from .preflight import load_config
from .results import write_text

# The stock heads, each with the name of its heatmap loss.
HEADS = {
    'CenterHead': 'loss_cls',
    'CenterNetHead': 'loss_center_heatmap',
    'CenterNetUpdateHead': 'loss_cls',
    'CornerHead': 'loss_heatmap',
    'CentripetalHead': 'loss_heatmap',
}
PILLAR_NETS = {
    'PillarFeatureNet': 'GeMPillarFeatureNet',
    'DynamicPillarFeatureNet': 'GeMDynamicPillarFeatureNet',
}
LOSS, LOGITS_LOSS = 'GaussianFocalLoss', 'GaussianFocalLossWithLogits'
STOCK = ('', 'mmdet', 'mmdet3d')
POWER = 'gem.p'
# For a config that imports its types: where in sigplug.models they are.
MODULES = {
    'ClipSigmoid': 'layers',
    LOGITS_LOSS: 'losses',
    **dict.fromkeys(HEADS, 'dense_heads'),
    **dict.fromkeys(PILLAR_NETS.values(), 'voxel_encoders'),
}
WIDTH = 79
ABSENT = type('Absent', (), {'__repr__': lambda self: '(absent)'})()

KeyPath = tuple[str | int, ...]
Change = tuple[KeyPath, Any, Any]


class Migration(NamedTuple):
    """A config that uses sigplug.

    Attributes:
        text (str): The config, empty where nothing is to be changed.
        changes (list[str]): What it changes, as ``key: old -> new``.
        notes (list[str]): What could not be checked.
    """

    text: str
    changes: list[str]
    notes: list[str]


class Part(NamedTuple):
    """A dict with a ``type`` inside of a config.

    Attributes:
        path (KeyPath): The keys that lead to it.
        node (dict): The dict.
        scope (str, optional): The scope in which it is built.
        parent (dict): The dict around it.
    """

    path: KeyPath
    node: dict
    scope: str | None
    parent: dict

    @property
    def package(self) -> str:
        """The package that the type is prefixed with, or ``''``."""
        return _full_name(self.node).rpartition('.')[0].partition('.')[0]

    @property
    def name(self) -> str:
        """The name of the class."""
        return _full_name(self.node).rpartition('.')[2]

    def __str__(self) -> str:
        return f'{_dotted(self.path)}.type = {self.node["type"]!r}'


def migrate(config: str,
            out: str | None = None,
            *,
            logits: bool = False,
            gem: bool = False,
            overwrite: bool = False) -> Migration:
    """Make the child of a config that uses sigplug in place of stock parts.

    Its heatmap heads become those of sigplug and keep their losses.

    Args:
        config (str): A config file, or a name such as ``'mmdet3d::...'``.
        out (str, optional): The file that the child is written to.
        logits (bool): Whether the Gaussian focal loss becomes that of the
            logits. Defaults to False.
        gem (bool): Whether the pillar nets become those with a generalised
            mean. Defaults to False.
        overwrite (bool): Whether ``out`` may exist. Defaults to False.

    Returns:
        Migration: The child and what it changes.

    Raises:
        UserError: The config is not understood, or ``out`` cannot be
            written. Nothing was written then.
    """
    path = _find(config)
    if out is not None:
        _check_out(out, path, overwrite)
    old = _load(path, config).to_dict()
    if Config._is_lazy_import(path):
        changes = list(_changes(old, _edited(old, config, logits, gem)))
        if changes:
            raise UserError(_by_hand(config, changes))
        return Migration('', [], [])
    named = '::' in config
    base = config if named else osp.abspath(path)
    with TemporaryDirectory() as folder:
        # Also for its own sake: below a name, mmengine adds scopes.
        old = _load_text(f'_base_ = {base!r}', folder, config)
        new = _edited(old, config, logits, gem)
        if not any(_changes(old, new)):
            return Migration('', [], [])
        # First, as the eye expects it.
        new = dict(
            custom_imports=_with_sigplug(new.pop('custom_imports', None)),
            **new)
        notes = _check_parts(old, new)
        if out is not None:
            folder = osp.dirname(osp.abspath(out))
            base = base if named else osp.relpath(base, folder)
        text = _child_text(base, _overlay(old, new))
        _check_child(text, folder, new, config)
    if out is not None:
        try:
            write_text(out, text)
        except OSError as error:
            raise UserError(
                f'--out {out!r} cannot be written. {_text(error)}') from error
    return Migration(text, [_line(*c) for c in _changes(old, new)], notes)


def _find(config: str) -> str:
    """The file of a config; mmengine takes such names in _base_ only."""
    if '::' not in config:
        return config
    try:
        return Config._get_cfg_path(config, '')[0]
    except Exception as error:
        raise UserError(
            f'The config {config!r} cannot be found. {_text(error)}\n'
            'Such a name is mmdet3d:: or mmdet:: and a path below the '
            "package's configs, as in _base_.") from error


def _check_out(out: str, path: str, overwrite: bool) -> None:
    if not out.endswith('.py'):
        raise UserError(f'--out must end in .py, but is {out!r}.')
    if osp.exists(out) and osp.exists(path) and osp.samefile(out, path):
        raise UserError(
            f'--out {out!r} is the config itself, which the result builds '
            'upon. Name another file.')
    folder = osp.dirname(osp.abspath(out))
    if not osp.isdir(folder):
        raise UserError(
            f'--out {out!r}: the folder {folder!r} does not exist. Make it '
            'first.')
    if osp.exists(out) and not (overwrite and osp.isfile(out)):
        raise UserError(
            f'--out {out!r} exists. Name another file, or replace a file by '
            'adding --overwrite.')


def _load(path: str, config: str) -> Config:
    try:
        return load_config(path)
    except UserError as error:
        if 'custom modules' not in str(error):
            raise
        raise UserError(
            f'The config {config!r} cannot be read. {error.__cause__}\n'
            'Name its folder: PYTHONPATH=FOLDER python ...') from error
    # A config is a program.
    except Exception as error:
        raise UserError(
            f'The config {config!r} cannot be read. {_text(error)}') from error


def _load_text(text: str, folder: str, config: str) -> dict:
    """Load a config from a file that is only there meanwhile."""
    path = osp.join(folder, f'.sigplug_migration_{os.getpid()}.py')
    try:
        with open(path, 'x') as file:
            file.write(f'{text}\n')
        return _load(path, config).to_dict()
    except OSError as error:
        raise UserError(
            f'A file in {folder!r} cannot be written. {_text(error)}'
        ) from error
    finally:
        if osp.exists(path):
            os.remove(path)


def _edited(old: dict, config: str, logits: bool, gem: bool) -> dict:
    """A copy of a config with the parts of sigplug."""
    new = copy.deepcopy(old)
    heads = list(_heads(new))
    if not heads:
        raise UserError(
            f'{config!r} has no heatmap head that sigplug replaces '
            f'({", ".join(HEADS)}){_instead(new, "head")}. The other parts '
            'of sigplug are chosen by hand, see "In your mmdet3d project" in '
            'the README.')
    for part, name in heads:
        is_stock = part.name == name and part.package in STOCK
        if is_stock:
            part.node['type'] = f'sigplug.{name}'
        if logits:
            _take_logits(part, HEADS[name])
        # The others replace a plain sigmoid, or have this by default.
        elif is_stock and name == 'CenterHead':
            part.node['heatmap_act'] = dict(type='ClipSigmoid')
    if gem:
        _take_generalised_mean(new, config)
    return new


def _heads(cfg: dict) -> Iterator[tuple[Part, str]]:
    """The heatmap heads of a config with the names of their classes."""
    found: list[KeyPath] = []
    for part in _parts(cfg):
        inside = any(part.path[:len(path)] == path for path in found)
        if inside or not _may_be_heatmap_head(part):
            continue
        name = part.name
        if name not in HEADS or part.package not in (*STOCK, 'sigplug'):
            name = _head_derived_from(part)
        found.append(part.path)
        yield part, name


def _may_be_heatmap_head(part: Part) -> bool:
    losses = [part.node.get(key) for key in HEADS.values()]
    return (part.name.endswith(tuple(HEADS)) or 'heatmap_act' in part.node
            or not {'loss_heatmap', 'loss_center_heatmap'}.isdisjoint(
                part.node)
            or any(_name(loss) in (LOSS, LOGITS_LOSS) for loss in losses))


def _head_derived_from(part: Part) -> str:
    """The head of sigplug that a class is derived from."""
    cls = _find_class(part)
    names = [base.__name__ for base in getattr(cls, '__mro__', ())
             if base.__name__ in HEADS]
    for base in getattr(cls, '__mro__', ()):
        if base.__module__.startswith('sigplug.') and base.__name__ in HEADS:
            return base.__name__
    if names:
        remedy = (f'It derives from the stock {names[0]}: import '
                  f'{names[0]} from sigplug.models.dense_heads instead, '
                  'where its code is.')
    else:
        remedy = ('If it derives from one of them, let it derive from the '
                  'one of the same name in sigplug.models.dense_heads '
                  'instead; sigplug has nothing for other heads.')
    raise UserError(
        f'{part} looks like a heatmap head, but is none of those that '
        f'sigplug replaces ({", ".join(HEADS)}). {remedy}')


def _take_logits(part: Part, key: str) -> None:
    """Change the loss of a head to the one that takes logits."""
    loss: Any = part.node.get(key)
    if _name(loss) not in (LOSS, LOGITS_LOSS):
        value = (f'type = {loss["type"]!r}' if _name(loss) else
                 f'= {part.node.get(key, ABSENT)!r}')
        raise UserError(
            f'--loss logits replaces {LOSS}, but '
            f'{_dotted(part.path)}.{key} {value}. Write {key}=dict('
            f"type='{LOSS}', ...) into the config first, with the arguments "
            'that you want, or leave out --loss logits.')
    if _name(loss) == LOSS:
        loss['type'] = f'sigplug.{LOGITS_LOSS}'
    if part.node.get('heatmap_act') is not None:
        part.node['heatmap_act'] = None


def _take_generalised_mean(cfg: dict, config: str) -> None:
    """Change the pillar nets, and how their power is trained."""
    nets = [part for part in _parts(cfg)
            if part.name in PILLAR_NETS and part.package in STOCK]
    is_done = any(part.name in PILLAR_NETS.values()
                  and part.package == 'sigplug' for part in _parts(cfg))
    if not nets and not is_done:
        raise UserError(
            f'--pillar gem replaces {" and ".join(PILLAR_NETS)}, and '
            f'{config!r} has neither{_instead(cfg, "voxel_encoder")}. '
            'Leave out --pillar gem.')
    for part in nets:
        part.node.update(type=f'sigplug.{PILLAR_NETS[part.name]}', p=3.0)
        # p tells which mean it is.
        part.node.pop('mode', None)
        _train_power(cfg, part.path)


def _train_power(cfg: dict, path: KeyPath) -> None:
    """Give the power of a pillar net its own settings in the optimiser."""
    wrapper = cfg.get('optim_wrapper')
    if wrapper is None:
        # The config is for testing only.
        return
    remedy = (f'Leave out --pillar gem, or change {_dotted(path)} by hand, '
              f'and see that the parameters whose names contain {POWER!r} '
              'get a larger learning rate and no weight decay.')
    constructor = wrapper.get('constructor', 'DefaultOptimWrapperConstructor')
    optimizer = wrapper.get('optimizer')
    if (constructor != 'DefaultOptimWrapperConstructor'
            or not isinstance(optimizer, dict)):
        raise UserError(
            '--pillar gem sets optim_wrapper.paramwise_cfg.custom_keys for '
            "mmengine's default constructor and one optimizer, but "
            f'optim_wrapper.constructor = {constructor!r} and '
            f'optim_wrapper.optimizer = {optimizer!r}. {remedy}')
    wrapper['paramwise_cfg'] = wrapper.get('paramwise_cfg') or {}
    keys = wrapper['paramwise_cfg'].setdefault('custom_keys', {})
    for layers in ('pfn_layers', 'pfn_scatter'):
        name = f'{_dotted(path[1:])}.{layers}.0.{POWER}'
        # mmengine takes the longest key that a name contains.
        hiding = [key for key in keys if key in name and key != POWER
                  and len(key) >= len(POWER)]
        if hiding:
            raise UserError(
                f'optim_wrapper.paramwise_cfg.custom_keys has {hiding[0]!r}, '
                f'which mmengine would also take for the power, as it is '
                f'longer than {POWER!r}. {remedy}')
    # mmengine multiplies a weight decay that is written down.
    decay = ('weight_decay' if optimizer.get('weight_decay') is None else
             'decay_mult')
    keys.setdefault(POWER, {'lr_mult': 10.0, decay: 0.0})


def _with_sigplug(custom_imports: dict | None) -> dict:
    """The imports of a config and sigplug."""
    if not custom_imports:
        return dict(imports=['sigplug'], allow_failed_imports=False)
    imports = custom_imports.get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    if 'sigplug' not in imports:
        imports.append('sigplug')
    return dict(custom_imports, imports=imports)


def _parts(cfg: dict) -> Iterator[Part]:
    """All dicts with a type in the models of a config."""
    for key in ('model', 'tta_model'):
        yield from _parts_below(
            cfg.get(key), (key, ), cfg.get('default_scope'), cfg)


def _parts_below(node: Any, path: KeyPath, scope: str | None,
                 parent: dict) -> Iterator[Part]:
    items: Iterable[tuple[Any, Any]]
    if isinstance(node, dict):
        scope = node.get('_scope_') or scope
        if _name(node):
            yield Part(path, node, scope, parent)
        parent, items = node, node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    else:
        return
    for key, value in items:
        yield from _parts_below(value, (*path, key), scope, parent)


def _full_name(node: Any) -> str:
    """The name in the type of a dict; a class also has one."""
    kind = node.get('type') if isinstance(node, dict) else None
    if isinstance(kind, type):
        return f'{kind.__module__}.{kind.__name__}'
    return kind if isinstance(kind, str) else ''


def _name(node: Any) -> str:
    return _full_name(node).rpartition('.')[2]


def _instead(cfg: dict, word: str) -> str:
    """What is there in the place of what was looked for."""
    parts = [str(part) for part in _parts(cfg)
             if str(part.path[-1]).endswith(word)]
    return f'; it has {", ".join(parts)}' if parts else ''


def _changes(old: Any, new: Any, path: KeyPath = ()) -> Iterator[Change]:
    """Where two configs differ, as deep inside as possible."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _changes(
                old.get(key, ABSENT), new.get(key, ABSENT), (*path, key))
    elif (isinstance(old, (list, tuple)) and type(old) is type(new)
          and len(old) == len(new)):
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from _changes(*pair, (*path, i))
    # Also for what is not equal to itself, as a NaN or a loaded function.
    elif _without_address(old) != _without_address(new):
        yield path, old, new


def _without_address(value: Any) -> str:
    return re.sub(r' at 0x[0-9a-f]+', '', repr(value))


def _overlay(old: dict, new: dict) -> dict:
    """What mmengine merges into the old dict to get the new one."""
    if set(old) - set(new):
        return dict(_delete_=True, **new)
    child = {}
    for key, value in new.items():
        before = old.get(key, ABSENT)
        if not any(_changes(before, value)):
            continue
        if isinstance(value, dict) and before is not ABSENT:
            value = (_overlay(before, value) if isinstance(before, dict) else
                     dict(_delete_=True, **value))
        child[key] = value
    return child


def _child_text(base: str, overlay: dict) -> str:
    """The child as Python code in the style of OpenMMLab."""
    line = f'_base_ = {base!r}'
    lines = [line if len(line) < 80 else f'{line}  # noqa: E501', '']
    lines += [f'{key} = {_code(value, WIDTH - len(key) - 3)}'
              for key, value in overlay.items()]
    return '\n'.join(lines) + '\n'


# Config.pretty_text of mmengine writes an infinite number as a name that
# nothing defines. It and yapf, by which it sets the lines, would also write
# down what _literal refuses, and yapf's FormatCode takes other arguments
# since 0.40.2.
def _code(value: Any, room: float = inf, indent: int = 0) -> str:
    """A value as Python code.

    Args:
        value (Any): The value.
        room (float): The characters that are left in its first line.
            Defaults to any number.
        indent (int): The indent of that line. Defaults to 0.

    Returns:
        str: The code, in several lines if it needs more room.
    """
    if isinstance(value, dict):
        if all(isinstance(key, str) and key.isidentifier()
               and not iskeyword(key) for key in value):
            opening, closing = 'dict(', ')'
            items = [(f'{key}=', item) for key, item in value.items()]
        else:
            opening, closing = '{', '}'
            items = [(f'{key!r}: ', item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        opening, closing = '[]' if isinstance(value, list) else '()'
        items = [('', item) for item in value]
        if isinstance(value, tuple) and len(value) == 1:
            closing = ', )'
    else:
        return _literal(value)
    code = ', '.join(key + _code(item) for key, item in items)
    # A comma, or what closes the dicts around it, may follow.
    if len(f'{opening}{code}{closing}') + 1 + indent // 4 <= room:
        return f'{opening}{code}{closing}'
    indent += 4
    room = WIDTH - indent
    if len(f'{code}{closing}') + indent // 4 > room:
        code = f',\n{" " * indent}'.join(
            key + _code(item, room - len(key), indent)
            for key, item in items)
    return f'{opening}\n{" " * indent}{code}{closing}'


def _literal(value: Any) -> str:
    if isinstance(value, float) and not isfinite(value):
        return f"float('{value}')"
    if not isinstance(value, (str, bytes, int, float, type(None))):
        raise UserError(
            f'{value!r} cannot be written down, but would have to be repeated '
            'in the new config, beside what is changed in the same list or '
            'dict. Change the config by hand.')
    return repr(value)


def _check_child(text: str, folder: str, new: dict, config: str) -> None:
    """Load the child, and see that it is what was meant."""
    wrong = [_line(*change) for change in _changes(
        new, _load_text(text, folder, config))]
    if wrong:
        raise UserError(
            f'{config!r} cannot be changed from a config on top of it, which '
            'would differ from what is meant (meant -> got):\n' +
            '\n'.join(wrong))


def _check_parts(old: dict, new: dict) -> list[str]:
    """Build what is replaced, old and new.

    Returns:
        list[str]: What could not be checked.

    Raises:
        UserError: What is replaced is not what its name says, or the new
            part cannot be built, or has other parameters.
    """
    notes = []
    olds = {part.path: part for part in _parts(old)}
    for after in _parts(new):
        before = olds.get(after.path)
        # A loss is built with its head.
        if (before is None or before.name == LOSS or not any(
                _changes(before.node['type'], after.node['type']))):
            continue
        cls, ours = _find_class(before), _find_class(after)
        if cls and ours and cls not in ours.__mro__:
            raise UserError(
                f'{before} is {cls.__module__}.{cls.__name__} here, which '
                f'{after.node["type"]} is not derived from. Register your '
                'own class under a name of its own, and let it derive from '
                f'{after.node["type"]}.')
        try:
            expected = set(_build(before).state_dict())
        # Its detector may complete it, or the stack is not there.
        except Exception as error:
            notes.append(f'{before} could not be built by itself, and was '
                         f'not compared: {_text(error)}')
            continue
        try:
            names = set(_build(after).state_dict())
        except Exception as error:
            raise UserError(
                f'{after} cannot be built. {_text(error)}') from error
        wrong = sorted(name for name in expected ^ names
                       if name in expected or not name.endswith(POWER))
        if wrong:
            raise UserError(
                f'{after} has other parameters than {before.node["type"]!r}, '
                f'of which checkpoints would not load: {wrong}')
    return notes


def _find_class(part: Part) -> type | None:
    """The class of a part, None where it cannot be found."""
    kind = part.node['type']
    if not isinstance(kind, str):
        return kind
    try:
        with DefaultScope.overwrite_default_scope(part.scope):
            with MODELS.switch_scope_and_registry(None) as registry:
                cls = registry.get(kind)
    # The stack may be missing; mmdet3d asserts its versions.
    except (ImportError, AssertionError, RuntimeError):
        return None
    return cls if isinstance(cls, type) else None


def _build(part: Part) -> nn.Module:
    """Build a part as its detector does."""
    node = copy.deepcopy(part.node)
    if part.path[-1] in ('pts_bbox_head', 'rpn_head', 'bbox_head'):
        stage = dict(pts_bbox_head='pts', rpn_head='rpn').get(part.path[-1])
        for key in ('train_cfg', 'test_cfg'):
            cfg = part.parent.get(key)
            node.setdefault(key, cfg.get(stage) if cfg and stage else cfg)
    with DefaultScope.overwrite_default_scope(part.scope):
        return MODELS.build(ConfigDict(node))


def _by_hand(config: str, changes: list[Change]) -> str:
    """What to do to a config that names types by import."""
    code = [_assignment(*change) for change in changes]
    names: dict[str, set[str]] = {}
    for name in re.findall(r'type=(\w+)|= (\w+)$', '\n'.join(code), re.M):
        name = ''.join(name)
        if name in MODULES:
            names.setdefault(MODULES[name], set()).add(name)
    imports = [f'from sigplug.models.{module} import '
               f'{", ".join(sorted(names[module]))}'
               for module in sorted(names)]
    lines = '\n'.join(f'    {line}' for line in [*imports, *code])
    return (f'{config!r} names its types by import (read_base), so that a '
            'child with names in strings cannot build on it. Add these lines '
            f'at its end, by hand:\n{lines}')


def _assignment(path: KeyPath, old: Any, new: Any) -> str:
    """The line that makes a change, with classes for types."""
    target = str(path[0]) + ''.join(f'[{key!r}]' for key in path[1:])
    if new is ABSENT:
        return f'del {target}'
    code = re.sub(r"type='(?:sigplug\.)?(\w+)'", r'type=\1', _code(new))
    if path[-1] == 'type':
        code = new.rpartition('.')[2]
    return f'{target} = {code}'


def _line(path: KeyPath, old: Any, new: Any) -> str:
    return f'{_dotted(path)}: {old!r} -> {new!r}'


def _dotted(path: KeyPath) -> str:
    return '.'.join(map(str, path))


def _text(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'
