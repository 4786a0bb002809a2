"""Whether the packages around sigplug have the versions it is made for."""
import operator
import re
from importlib.metadata import PackageNotFoundError, requires, version

from mmengine.utils import digit_version

COMPARISONS = {'>=': operator.ge, '<': operator.lt}


def find_unsupported() -> list[str]:
    """Name the installed packages that are older or newer than supported.

    The ranges are those of ``requirements/mminstall.txt``, which an installed
    sigplug has in its metadata.

    Returns:
        list[str]: A sentence with the remedy for each package; empty also
        where sigplug is not installed but only on the path.
    """
    try:
        wanted = requires('sigplug') or []
    except PackageNotFoundError:
        return []
    found = []
    for requirement in wanted:
        requirement, _, marker = requirement.partition(';')
        name, bounds = re.fullmatch(
            r'([\w.-]+)\s*\(?([^)]*)\)?', requirement.strip()).groups()
        if 'mim' not in marker:
            continue
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        # Without the build, such as +cu121, which is no part of the order.
        number = digit_version(installed.partition('+')[0])
        bounds = re.findall(r'(>=|<)\s*([\w.]+)', bounds)
        if not all(COMPARISONS[sign](number, digit_version(bound))
                   for sign, bound in bounds):
            bounds = ','.join(sign + bound for sign, bound in sorted(
                bounds, reverse=True))
            found.append(
                f'{name} {installed} is installed, but sigplug is made for '
                f'{name}{bounds}: python -m pip install "{name}{bounds}"')
    return found
