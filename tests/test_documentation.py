"""Links, names, numbers, snippets and commands of README and docs/ are true.

What needs Sphinx is in ``make docs``, where warnings are errors.
"""
import ast
import importlib
import io
import os
import re
import runpy
import shlex
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from mmengine.config import Config

from sigplug.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / 'docs'
READMES = [ROOT / 'README.md', ROOT / 'README_zh-CN.md']
PAGES = [*READMES, ROOT / 'CONTRIBUTING.md', *sorted(DOCS.glob('*.md')),
         *sorted((DOCS / 'api').glob('*.md'))]
each_page = pytest.mark.parametrize(
    'page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
# Programs that are not ours, by their first word or that after the variables.
OTHERS = {'source', 'pip', 'ln', 'export', 'cd', 'cp', 'git'}
# Tools with sub-commands, each with options of its own.
WITH_COMMANDS = {'plot.py', 'report.py'}
# Commands of sigplug itself, with the text that has their options.
OWN = {'doctor': '--compile',
       'predict': (ROOT / 'sigplug/deploy/__main__.py').read_text()}


def blocks(page, language):
    """The snippets of a language."""
    return re.findall(rf'(?ms)^```{language}\n(.*?)^```', page.read_text())


def prose(page):
    """The text without its snippets."""
    return re.sub(r'(?ms)^```.*?^```', '', page.read_text())


# -- Links and names ---------------------------------------------------------


def slug(heading):
    """The anchor of a heading, as GitHub and myst make it."""
    heading = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading).lower()
    return re.sub(r'[^\w\- ]', '', heading).replace(' ', '-')


def headings(page):
    """Those of a page and of what it includes."""
    found = re.findall(r'(?m)^#+ (.*)$', prose(page))
    for included in re.findall(r'(?m)^```{include} (.*)$', page.read_text()):
        found += headings(page.parent / included)
    return found


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if re.match(r'https?://', target):
            continue
        name, _, anchor = target.partition('#')
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in map(slug, headings(path)), target


def test_readmes_say_the_same():
    """Same headings in number, same figures, code, names and links."""
    english, chinese = READMES
    assert english.read_text().startswith(
        'English | [简体中文](README_zh-CN.md)\n')
    assert chinese.read_text().startswith('[English](README.md) | 简体中文\n')

    def facts(page):
        text = prose(page).partition('\n')[2]
        return {
            'headings': re.findall(r'(?m)^#+(?= )', text),
            'figures': sorted(re.findall(r'\d+(?:\.\d+)*', text)),
            'code': sorted(re.findall(r'`[^`]+`', text)),
            'links': re.findall(r'\]\(([^)]+)\)', text),
            'snippets': [
                re.sub(r' *#.*', '', code)
                for language in ('bash', 'python', 'diff')
                for code in blocks(page, language)],
        }

    wanted = facts(english)
    for name, value in facts(chinese).items():
        assert value == wanted[name], name
    assert len(wanted['figures']) > 40


# -- Snippets ----------------------------------------------------------------


@pytest.fixture
def numpy_as_it_is():
    """One snippet gives numpy a name that it lacks."""
    before = set(vars(np))
    yield
    for name in set(vars(np)) - before:
        # A module is imported once, and would be missing from then on.
        if not isinstance(getattr(np, name), ModuleType):
            delattr(np, name)


@each_page
def test_python_snippets(page, tmp_path, numpy_as_it_is):
    """All can be parsed; those that import torch, numpy or sigplug run.

    Configs with a base are loaded. Those of the worked example have a test of
    their own, and parts of a config are parsed only.
    """
    for code in blocks(page, 'python'):
        ast.parse(code)
        if page.name == 'CONTRIBUTING.md':
            continue
        if re.search(r'(?m)^(import|from) (torch|sigplug|numpy)\b', code):
            exec(code, dict(torch=torch, logits=torch.randn(2, 3, 8, 8),
                            x=torch.rand(2, 3, 8, 8)))
        elif '_base_' not in code and 'import' not in code:
            (tmp_path / 'part.py').write_text(code)
            assert len(Config.fromfile(tmp_path / 'part.py')) > 0


@pytest.mark.parametrize('name', [
    'README.md', 'README_zh-CN.md', 'docs/use_in_your_project.md'])
def test_changed_config_loads(name, tmp_path):
    diff, = blocks(ROOT / name, 'diff')
    (tmp_path / 'changed.py').write_text(
        ''.join(line[1:] + '\n' for line in diff.splitlines()))
    head = Config.fromfile(tmp_path / 'changed.py').model.pts_bbox_head
    assert head.type == 'sigplug.CenterHead'
    assert head.heatmap_act.type in ('ClipSigmoid', 'sigplug.ClipSigmoid')


@cache
def help_of(tool, *command):
    """What a tool of ``tools/`` says about its options."""
    text, path = io.StringIO(), str(ROOT / 'tools' / tool)
    with (pytest.MonkeyPatch.context() as patch, redirect_stdout(text),
          redirect_stderr(text), pytest.raises(SystemExit) as end):
        patch.setattr('sys.argv', [path, *command, '--help'])
        patch.syspath_prepend(os.path.dirname(path))
        runpy.run_path(path, run_name='__main__')
    assert not end.value.code, text.getvalue()
    return text.getvalue()


def check_options(words, text):
    for word in words:
        if re.match(r'\[?--?[a-z]', word):
            option = word.strip('[]').partition('=')[0]
            assert re.search(rf'(?<![\w-]){option}(?![\w-])', text), option


def check_command(words):
    """One command line: its program is there, and knows its options."""
    while words and re.match(r'[A-Z_]+=', words[0]):
        del words[0]
    if not words or words[0] in OTHERS:
        return
    if words[0] == 'make':
        makefile = (ROOT / 'Makefile').read_text()
        for word in words[1:]:
            assert '=' in word or re.search(rf'(?m)^{word}:', makefile), word
    elif words[0] == 'mim':
        verb, *rest = words[1:]
        if verb == 'run':
            path, = (ROOT / 'tools').rglob(f'{rest[1]}.py')
            check_options(rest, help_of(path.relative_to(ROOT / 'tools')))
        else:
            assert verb in ('train', 'test', 'install')
    elif words[0] == 'sigplug':
        tool = COMMANDS[words[1]][1]
        check_options(words[2:], help_of(tool) if tool else OWN[words[1]])
    elif words[0] == 'python' and words[1] == '-m':
        assert importlib.util.find_spec(words[2]), words[2]
    elif words[0] == 'python' and words[1].startswith('$MIM'):
        import mmdet3d
        assert Path(words[1].replace(
            '$MIM', f'{mmdet3d.__path__[0]}/.mim')).is_file()
    elif words[0] == 'python':
        if words[1].startswith('examples/'):
            assert (ROOT / words[1]).is_file() and not words[2:], words
            return
        tool = Path(words[1]).relative_to('tools')
        command = words[2:3] if tool.name in WITH_COMMANDS else []
        check_options(words[2:], help_of(tool, *command))
    else:
        path = ROOT / words[0]
        assert path.is_relative_to(ROOT / 'tools'), words
        assert os.access(path, os.X_OK), words[0]
        check_options(words[1:], help_of('train.py'))


@each_page
def test_commands(page):
    for code in blocks(page, 'bash'):
        for line in code.replace('\\\n', ' ').splitlines():
            # Another command, inside of this one.
            line = re.sub(r'\$\(.*\)', 'X', line)
            command = []
            for word in [*shlex.split(line, comments=True), '&&']:
                if word != '&&':
                    command.append(word)
                elif command:
                    check_command(command)
                    command = []
