import platform
import socket

from sigplug.engine.machine import describe_machine


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
