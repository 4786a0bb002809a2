"""The versions of the packages around sigplug."""
from importlib.metadata import PackageNotFoundError, requires, version
from warnings import warn

# matplotlib requires it, and mmengine imports it.
from packaging.requirements import Requirement

EXTRAS = 'mim', 'onedl'


def warn_about_unsupported_versions() -> None:
    """Warn about packages that are older or newer than sigplug is made for.

    The ranges are those of ``requirements/mminstall.txt`` and, for the line of
    packages that is imported by the same names, ``requirements/onedl.txt``; an
    installed sigplug has both in its metadata. It is a warning, since mmengine
    would turn an error into "not in the registry".
    """
    try:
        wanted = [Requirement(line) for line in requires('sigplug') or []]
    except PackageNotFoundError:
        return
    installed: dict[str, str] = {}
    for requirement in wanted:
        name, marker = requirement.name, requirement.marker
        if marker is None or not any(
                marker.evaluate(dict(extra=extra)) for extra in EXTRAS):
            continue
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        module = name.removeprefix('onedl-').replace('mmdetection', 'mmdet')
        if module in installed:
            warn(f'{name} and {installed[module]} are both installed, in the '
                 f'same folder {module}: uninstall both and install one',
                 stacklevel=3)
        installed[module] = name
        if not requirement.specifier.contains(found, prereleases=True):
            bounds = ','.join(
                sorted(map(str, requirement.specifier), reverse=True))
            warn(f'{name} {found} is installed, but sigplug is made for '
                 f'{name}{bounds}: python -m pip install "{name}{bounds}"',
                 stacklevel=3)
