"""The versions of the packages around sigplug."""
from importlib.metadata import PackageNotFoundError, requires, version
from warnings import warn

# matplotlib requires it, and mmengine imports it.
from packaging.requirements import Requirement


def warn_about_unsupported_versions() -> None:
    """Warn about packages that are older or newer than sigplug is made for.

    The ranges are those of ``requirements/mminstall.txt``, which an installed
    sigplug has in its metadata. It is a warning, since mmengine would turn an
    error into "not in the registry".
    """
    try:
        wanted = [Requirement(line) for line in requires('sigplug') or []]
    except PackageNotFoundError:
        return
    for requirement in wanted:
        name, marker = requirement.name, requirement.marker
        if marker is None or not marker.evaluate(dict(extra='mim')):
            continue
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            bounds = ','.join(
                sorted(map(str, requirement.specifier), reverse=True))
            warn(f'{name} {installed} is installed, but sigplug is made for '
                 f'{name}{bounds}: python -m pip install "{name}{bounds}"',
                 stacklevel=3)
