"""What users may build on changes on purpose only: see ``public_api.txt``.

The list has what the packages export and what else the reference documents,
with the parameters, and the names that configs can use. To renew it run

    python tests/test_public_api.py

and look at its diff: what it takes away or renames breaks somebody's code.
"""
import difflib
import importlib
import inspect
import pkgutil
import re
import textwrap
from pathlib import Path

import sigplug.models
import sigplug.registry

LIST = Path(__file__).with_name('public_api.txt')
REFERENCE = Path(__file__).resolve().parents[1] / 'docs' / 'api'
PACKAGES = [
    'sigplug', 'sigplug.ops', 'sigplug.models',
    *(f'sigplug.models.{module.name}' for module in pkgutil.iter_modules(
        sigplug.models.__path__) if module.ispkg),
    'sigplug.engine.hooks', 'sigplug.datasets', 'sigplug.visualization',
    'sigplug.deploy']
HEADER = """\
# The public API of sigplug. tests/test_public_api.py compares it and says how
# to renew it.
"""


def find_documented():
    """Module and name of all that the pages of the reference describe."""
    for page in sorted(REFERENCE.glob('*.md')):
        module = ''
        for kind, name in re.findall(
                r'(?m)^\.\. (currentmodule|data|auto(?!summary)\w+)'
                r':: (\S+)$', page.read_text()):
            if kind.endswith('module'):
                module = name
            elif '.' in name:
                yield tuple(name.rsplit('.', 1))
            else:
                yield module, name


def describe_call(name, function):
    """A signature without annotations, those of a linter."""
    signature = inspect.signature(function)
    bare = signature.replace(
        return_annotation=signature.empty,
        parameters=[parameter.replace(annotation=signature.empty)
                    for parameter in signature.parameters.values()])
    return f'{name}{bare}'


def describe(name, value):
    """The lines of one name."""
    if isinstance(value, type) and issubclass(value, Exception):
        return [f'{name}: {value.__base__.__name__}']
    if not callable(value):
        return [f'{name}: {type(value).__name__}']
    init = getattr(value, '__init__', None)
    if not getattr(init, '__module__', 'sigplug.').startswith('sigplug.'):
        # Upstream's parameters change with its version.
        return [f'{name}: parameters of {init.__module__}']
    lines = [describe_call(name, value)]
    forward = getattr(value, 'forward', None)
    if forward is not None and forward.__module__.startswith('sigplug.'):
        lines.append(describe_call(f'{name}.forward', forward))
    return lines


def find_registered():
    """The names that configs use, and the registries that hold them."""
    for registry in vars(sigplug.registry).values():
        if getattr(registry, 'scope', None) != 'sigplug':
            continue
        registry.import_from_location()
        for holder, prefix in ((registry, 'sigplug.'), (registry.parent, '')):
            for name, part in holder.module_dict.items():
                if part.__module__.startswith('sigplug.'):
                    yield f'{prefix}{name} ({registry.name})'


def write_list():
    sections = {}
    for name in PACKAGES:
        sections[name, ''] = set(importlib.import_module(name).__all__)
    exported = set().union(*sections.values())
    for module, name in find_documented():
        if name not in exported:
            sections.setdefault((module, ', in docs/api'), set()).add(name)
    text, seen = HEADER, {}
    for (module, note), names in sections.items():
        lines = []
        for name in sorted(names):
            value = getattr(importlib.import_module(module), name)
            first = seen.setdefault(name, module)
            lines += (describe(name, value) if first == module else
                      [f'{name}: see {first}'])
        text += '\n'.join([f'\n[{module}{note}]', *(textwrap.fill(
            line, 79, subsequent_indent='    ', break_long_words=False,
            break_on_hyphens=False) for line in lines)]) + '\n'
    return text + '\n'.join(
        ['\n[names for configs]', *sorted(find_registered())]) + '\n'


def test_reference_has_every_public_name():
    documented = {name for _, name in find_documented()}
    for package in PACKAGES[1:]:
        names = set(importlib.import_module(package).__all__)
        assert names <= documented, names - documented


def test_public_api_is_as_listed():
    diff = '\n'.join(difflib.unified_diff(
        LIST.read_text().splitlines(), write_list().splitlines(),
        LIST.name, 'sigplug', lineterm=''))
    assert not diff, (
        f'the public API is not as {LIST.name} lists it; if that is meant, '
        f'run "python tests/{Path(__file__).name}" and commit the list:\n'
        f'{diff}')


if __name__ == '__main__':
    LIST.write_text(write_list())
