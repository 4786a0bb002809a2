"""Whether the packages around sigplug have the versions it is made for."""
from importlib.metadata import PackageNotFoundError, requires, version

# matplotlib requires it, and mmengine imports it.
from packaging.requirements import Requirement


def find_unsupported() -> list[str]:
    """Name the installed packages that are older or newer than supported.

    The ranges are those of ``requirements/mminstall.txt``, which an installed
    sigplug has in its metadata.

    Returns:
        list[str]: A sentence with the remedy for each package; empty also
        where sigplug is not installed but only on the path.
    """
    try:
        wanted = [Requirement(line) for line in requires('sigplug') or []]
    except PackageNotFoundError:
        return []
    found = []
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
            found.append(
                f'{name} {installed} is installed, but sigplug is made for '
                f'{name}{bounds}: python -m pip install "{name}{bounds}"')
    return found
