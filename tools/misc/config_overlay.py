"""The difference between two configs, as a config on top of the first."""
from collections.abc import Iterator
from typing import Any

from yapf.yapflib.yapf_api import FormatCode

ABSENT = type('Absent', (), {'__repr__': lambda self: '(absent)'})()


def iter_changes(old: Any, new: Any, key: str = '') -> Iterator[str]:
    """Yield where two configs differ, as deep inside as possible."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = {name: (old.get(name, ABSENT), new.get(name, ABSENT))
                 for name in [*old, *new]}
    elif (isinstance(old, (list, tuple)) and type(old) is type(new)
          and len(old) == len(new)):
        pairs = dict(enumerate(zip(old, new, strict=True)))
    else:
        # By their text, as NaN is not equal to itself.
        if repr(old) != repr(new):
            yield f'{key}: {old!r} -> {new!r}'
        return
    for name, pair in pairs.items():
        yield from iter_changes(*pair, f'{key}.{name}' if key else str(name))


def make_overlay(old: dict, new: dict) -> dict:
    """Return what mmengine merges into the old dict to get the new one."""
    if set(old) - set(new):
        return dict(_delete_=True, **new)
    child = {}
    for key, value in new.items():
        before = old.get(key, ABSENT)
        if not any(iter_changes(before, value)):
            continue
        if isinstance(value, dict) and before is not ABSENT:
            value = (make_overlay(before, value) if isinstance(before, dict)
                     else dict(_delete_=True, **value))
        child[key] = value
    return child


def child_text(base: str, overlay: dict) -> str:
    """Return the child as Python code in the style of OpenMMLab."""
    line = f'_base_ = {base!r}'
    line += '  # noqa: E501' * (len(line) > 79)
    code = '\n'.join(f'{key} = {to_code(value)}'
                     for key, value in overlay.items())
    code, _ = FormatCode(code, style_config=dict(
        based_on_style='pep8',
        split_before_expression_after_opening_paren=True))
    return f'{line}\n\n{code}'


def to_code(value: Any) -> str:
    """Return a value as Python code."""
    if isinstance(value, dict):
        if all(isinstance(key, str) and key.isidentifier() for key in value):
            return 'dict({})'.format(', '.join(
                f'{key}={to_code(item)}' for key, item in value.items()))
        return '{{{}}}'.format(', '.join(
            f'{key!r}: {to_code(item)}' for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        items = ''.join(f'{to_code(item)}, ' for item in value)
        return f'[{items[:-2]}]' if isinstance(value, list) else f'({items})'
    return repr(value)
