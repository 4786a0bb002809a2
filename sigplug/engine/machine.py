"""What a measurement says about where it was taken."""
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
    # What follows names a build.
    release = re.match(r'[\d.]*', platform.release())
    system = f'{platform.system()} {release[0] if release else ""}'
    return dict(cpu=model, cores=cores, system=system.strip())


def list_versions(*more: str) -> dict[str, str]:
    """The versions of what results depend on.

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
