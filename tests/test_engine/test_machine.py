import importlib.metadata
import platform
import socket

import torch

from sigplug import __version__
from sigplug.engine.machine import describe_machine, list_versions


def test_machine_without_its_name():
    machine = describe_machine()
    assert machine['cpu'] and machine['cores'] >= 1
    name, version = machine['system'].split()
    assert name == platform.system() and len(version.split('.')) > 1
    # Without the name of the build.
    assert platform.release().startswith(version)
    assert set(version) <= set('0123456789.')
    assert not any(socket.gethostname() in str(value).split()
                   for value in machine.values())


def test_versions():
    versions = list_versions('pytest', 'no-such-package')
    assert versions['torch'] == importlib.metadata.version('torch')
    assert torch.__version__.startswith(versions['torch'].split('+')[0])
    assert versions['sigplug'] == __version__
    assert 'pytest' in versions and 'no-such-package' not in versions
