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
        if name in found:
            return found[name]
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine, 'requires', lambda name: REQUIRES)
    monkeypatch.setattr(machine, 'version', version)
    return found


@pytest.fixture
def warned(recwarn):
    """A function that returns what was warned about."""

    def warned():
        recwarn.clear()
        machine.warn_about_unsupported_versions()
        return [str(warning.message) for warning in recwarn]

    return warned


def test_supported(installed, warned):
    assert warned() == []
    del installed['mmdet3d']
    # A nightly build.
    installed['torch'] = '2.14.0.dev20261101+cu130'
    assert warned() == []


def test_the_other_line_of_packages(installed, warned):
    for name in ('mmengine', 'mmcv', 'mmdet', 'mmdet3d'):
        del installed[name]
    installed.update({'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6',
                      'onedl-mmdetection': '3.5.1'})
    assert warned() == []
    installed['mmcv'] = '2.1.0'
    text, = warned()
    assert 'onedl-mmcv and mmcv are both installed' in text


@pytest.mark.parametrize('name, number, bounds', [
    ('torch', '2.0.1+cu118', '>=2.1.0'),
    ('mmcv', '2.2.0', '>=2.0.0,<2.2.0'),
    ('mmdet3d', '1.10.0', '>=1.2.0,<1.5.0'),
    ('onedl-mmengine', '1.0.0', '>=0.10.10,<0.11'),
])
def test_unsupported(installed, warned, name, number, bounds):
    del installed[name.removeprefix('onedl-')]
    installed[name] = number
    text, = warned()
    assert f'{name} {number}' in text and f'"{name}{bounds}"' in text


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
