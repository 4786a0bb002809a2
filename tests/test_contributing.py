"""The worked example of CONTRIBUTING.md works as it is written there."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INIT = 'sigplug/models/layers/__init__.py'


def read_snippets():
    """Content by path, of the python snippets that begin with a path."""
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    blocks = re.findall(r'(?ms)^```python\n# (\S+\.py)\n(.*?)^```', text)
    assert len(blocks) == len(dict(blocks))
    return dict(blocks)


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """A copy of the package with the example in it."""
    tree = tmp_path_factory.mktemp('example')
    for name in ('sigplug', 'configs'):
        shutil.copytree(ROOT / name, tree / name, ignore=(
            shutil.ignore_patterns('__pycache__', '.mim')))
    shutil.copy(ROOT / 'pyproject.toml', tree)
    for name, text in read_snippets().items():
        path = tree / name
        if name == INIT:
            # Behind the imports.
            before = path.read_text()
            assert before.count('\n\n__all__') == 1 and text.count('\n') == 1
            path.write_text(before.replace(
                '\n\n__all__', f'\n{text.rstrip()}\n\n__all__'))
        else:
            assert not path.exists(), f'{name} is in the package already'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return tree


def run(tree, *command):
    done = subprocess.run(
        [sys.executable, *command], cwd=tree,
        env=dict(os.environ, PYTHONPATH=str(tree), OMP_NUM_THREADS='1'),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_its_own_test_passes(tree):
    test, = (path for path in read_snippets() if path.startswith('tests/'))
    # The package of the copy, not the one that is installed.
    out = run(tree, '-c', 'import os, sys, pytest, sigplug\n'
              'assert sigplug.__file__.startswith(os.getcwd())\n'
              'sys.exit(pytest.main(sys.argv[1:]))',
              '-q', '-p', 'no:cacheprovider', test)
    assert '4 passed' in out


def test_is_in_the_style_of_the_package(tree):
    run(tree, '-m', 'ruff', 'check', '--no-cache', *read_snippets())
