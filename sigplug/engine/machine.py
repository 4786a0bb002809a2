"""The machine and the versions that a measurement was taken with."""
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sigplug.version import __version__

PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmdet3d', 'numpy',
            'nuscenes-devkit')


def describe_machine() -> dict[str, Any]:
    """Describe the processor.

    Returns:
        dict[str, Any]: Its model ``cpu``, the ``cores`` that this process may
        use, and the operating ``system`` with the version of its kernel; not
        the name of the machine.
    """
    model = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        match = re.search(r'model name\s*:\s*(.+)', cpuinfo.read_text())
        model = match[1] if match else model
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity') else os.cpu_count())
    # What follows the number names a build.
    release = platform.release().partition('-')[0]
    return dict(cpu=model, cores=cores,
                system=f'{platform.system()} {release}')


def list_versions(*more: str) -> dict[str, str]:
    """List the versions of what results depend on.

    Args:
        *more (str): Names of further packages, looked up after those of the
            stack.

    Returns:
        dict[str, str]: A version for each package that is installed.
    """
    found = dict(python=platform.python_version(), sigplug=__version__)
    for name in (*PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
