"""The machine, and versions that sigplug is not made for."""
import platform
import socket
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sigplug.cli import machine

LISTS = Path(__file__).parents[2] / 'requirements'
REQUIRES = ['numpy', 'pytest<9; extra == "tests"'] + [
    f'{Requirement(line)}; extra == "{extra}"'
    for extra, name in dict(mim='mminstall', onedl='onedl').items()
    for line in (LISTS / f'{name}.txt').read_text().splitlines()
    if line[0] != '#']


@pytest.fixture
def installed(monkeypatch):
    found = dict(torch='2.13.0+cpu', mmengine='0.10.7', mmcv='2.1.0',
                 mmdet='3.3.0', mmdet3d='1.4.0', pytest='9.2.0')

    def version(name):
        if found.get(name):
            return found[name]
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine, 'requires', lambda name: REQUIRES)
    monkeypatch.setattr(machine, 'version', version)
    return found


@pytest.mark.parametrize('change, words', [
    ({}, []),
    # A nightly build.
    (dict(mmdet3d=None, torch='2.14.0.dev20261101+cu130'), []),
    (dict(torch='2.0.1+cu118'), ['torch 2.0.1+cu118', '"torch>=2.1.0"']),
    (dict(mmcv='2.2.0'), ['mmcv 2.2.0', '"mmcv>=2.0.0,<2.2.0"']),
    (dict(mmdet3d='1.10.0'), ['"mmdet3d>=1.2.0,<1.5.0"']),
    # The other line of packages.
    ({'mmcv': None, 'onedl-mmcv': '2.3.6'}, []),
    ({'onedl-mmcv': '2.3.6'}, ['onedl-mmcv and mmcv are both installed']),
    ({'mmengine': None, 'onedl-mmengine': '1.0.0'},
     ['"onedl-mmengine>=0.10.10,<0.11"']),
])
def test_versions(installed, recwarn, change, words):
    installed.update(change)
    machine.warn_about_unsupported_versions()
    texts = [str(warning.message) for warning in recwarn]
    assert len(texts) == bool(words)
    assert all(word in texts[0] for word in words)


def test_machine_without_its_name():
    found = machine.describe_machine()
    assert found['cpu'] and found['cores'] >= 1
    name, version = found['system'].split()
    assert name == platform.system() and len(version.split('.')) > 1
    # Without the name of the build.
    assert platform.release().startswith(version)
    assert set(version) <= set('0123456789.')
    assert not any(socket.gethostname() in str(value).split()
                   for value in found.values())
