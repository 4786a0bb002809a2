"""The machine, and the versions of the packages around sigplug."""
import os
import platform
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple
from warnings import warn

from sigplug.version import __version__

PACKAGES = ('torch', 'triton', 'mmengine', 'mmcv', 'mmdet', 'mmdet3d', 'numpy',
            'nuscenes-devkit')
# The stack, in either line of packages.
EXTRAS = 'mim', 'onedl'


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
    release = re.sub(r'[^\d.].*', '', platform.release())
    system = f'{platform.system()} {release}'
    return dict(cpu=model, cores=cores, system=system.strip())


def list_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed stack."""
    found = dict(python=platform.python_version(), sigplug=__version__)
    return found | {name: installed for name in PACKAGES
                    if (installed := find_version(name))}


def find_version(name: str) -> str | None:
    """Return the version of a distribution, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


class Package(NamedTuple):
    """An installed package that sigplug names versions of."""

    module: str
    name: str
    version: str
    bounds: str
    fits: bool


def list_packages() -> list[Package]:
    """Compare the installed packages with the versions sigplug is made for.

    The ranges are those of ``requirements/mminstall.txt`` and, for the line of
    packages that is imported by the same names, ``requirements/onedl.txt``; an
    installed sigplug has them in its metadata.
    """
    try:
        # matplotlib requires it, and mmengine imports it.
        from packaging.requirements import Requirement
        wanted = [Requirement(line) for line in requires('sigplug') or []]
    except (ImportError, PackageNotFoundError):
        return []
    found = []
    for requirement in wanted:
        name, marker = requirement.name, requirement.marker
        installed = find_version(name)
        if installed is None or marker is None or not any(
                marker.evaluate(dict(extra=extra)) for extra in EXTRAS):
            continue
        found.append(Package(
            name.removeprefix('onedl-').replace('mmdetection', 'mmdet'), name,
            installed,
            ','.join(sorted(map(str, requirement.specifier), reverse=True)),
            requirement.specifier.contains(installed, prereleases=True)))
    return found


def find_misfits(packages: Sequence[Package]) -> Iterator[str]:
    """Yield what is wrong with the versions of packages."""
    seen: dict[str, str] = {}
    for module, name, installed, bounds, fits in packages:
        if module in seen:
            yield (f'{name} and {seen[module]} are both installed, in the '
                   f'same folder {module}: uninstall both and install one')
        seen[module] = name
        if not fits:
            yield (f'{name} {installed} is installed, but sigplug is made for '
                   f'{name}{bounds}: python -m pip install "{name}{bounds}"')


def warn_about_unsupported_versions() -> None:
    """Warn about packages that are older or newer than sigplug is made for.

    It is a warning, since mmengine would turn an error into "not in the
    registry".
    """
    for problem in find_misfits(list_packages()):
        warn(problem, stacklevel=3)
