"""The machine and the versions that a measurement was taken with."""
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sigplug.version import __version__

PACKAGES = ('torch', 'triton', 'mmengine', 'mmcv', 'mmdet', 'mmdet3d', 'numpy',
            'nuscenes-devkit')


def describe_machine() -> dict[str, Any]:
    """Return the model ``cpu``, the usable ``cores`` and the ``system``.

    Neither the name of the machine nor that of a build is among them.
    """
    model = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        match = re.search(r'model name\s*:\s*(.+)', cpuinfo.read_text())
        model = match[1] if match else model
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity') else os.cpu_count())
    release = re.match(r'[\d.]*', platform.release())
    system = f'{platform.system()} {release[0] if release else ""}'
    return dict(cpu=model, cores=cores, system=system.strip())


def list_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed stack."""
    found = dict(python=platform.python_version(), sigplug=__version__)
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
