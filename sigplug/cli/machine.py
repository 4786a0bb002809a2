"""The machine, and the versions of the packages around sigplug."""
import os
import platform
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any
from warnings import warn

from sigplug.version import __version__

# The lists of requirements with ranges: usual, and imported by the same names.
EXTRAS = 'mim', 'onedl'
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
    return found | {name: installed for name in PACKAGES
                    if (installed := find_version(name))}


def find_version(name: str) -> str | None:
    """Return the version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_versions(
    find: Callable[[str], str | None] = find_version
) -> dict[str, tuple[str, str, bool]]:
    """Compare the installed packages with the versions sigplug is made for.

    The ranges are those of ``requirements/mminstall.txt`` and, for the line of
    packages that is imported by the same names, ``requirements/onedl.txt``; an
    installed sigplug has both in its metadata.

    Args:
        find (Callable): What finds the version of a package, None where it is
            missing. Defaults to that of the distribution.

    Returns:
        dict[str, tuple[str, str, bool]]: Of each package with a range that is
        installed, its version, the range and whether they fit.
    """
    try:
        # matplotlib requires it, and mmengine imports it.
        from packaging.requirements import Requirement
        wanted = [Requirement(line) for line in requires('sigplug') or []]
    except (ImportError, PackageNotFoundError):
        return {}
    found = {}
    for requirement in wanted:
        marker = requirement.marker
        if marker is None or not any(
                marker.evaluate(dict(extra=extra)) for extra in EXTRAS):
            continue
        installed = find(requirement.name)
        if installed is None:
            continue
        bounds = ','.join(
            sorted(map(str, requirement.specifier), reverse=True))
        found[requirement.name] = (
            installed, bounds,
            requirement.specifier.contains(installed, prereleases=True))
    return found


def warn_about_unsupported_versions() -> None:
    """Warn about packages that are older or newer than sigplug is made for.

    It is a warning, since mmengine would turn an error into "not in the
    registry".
    """
    modules: dict[str, str] = {}
    for name, (installed, bounds, fits) in check_versions().items():
        module = name.removeprefix('onedl-').replace('mmdetection', 'mmdet')
        if module in modules:
            warn(f'{name} and {modules[module]} are both installed, in the '
                 f'same folder {module}: uninstall both and install one',
                 stacklevel=3)
        modules[module] = name
        if not fits:
            warn(f'{name} {installed} is installed, but sigplug is made for '
                 f'{name}{bounds}: python -m pip install "{name}{bounds}"',
                 stacklevel=3)
