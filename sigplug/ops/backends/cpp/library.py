"""Builds the C++ kernels with the machine's compiler, once, and loads them.

The library stays in ``$SIGPLUG_CACHE``, else ``$XDG_CACHE_HOME/sigplug``, else
``~/.cache/sigplug``, under a name made of all that its content depends on.
"""
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .. import BackendError

SOURCES = Path(__file__).parent
COMPILERS = ('c++', 'g++', 'clang++')
FLAGS = ('-std=c++17', '-O3', '-ffp-contract=fast', '-fno-math-errno',
         '-fno-trapping-math', '-fopenmp', '-fPIC', '-shared', '-Wno-psabi')
TIMEOUT = 600

logger = logging.getLogger('sigplug')


@functools.cache
def load() -> ctypes.CDLL:
    """The library, built if it is not in the cache.

    Raises:
        BackendError: There is no compiler, or it fails.
    """
    compiler = _find_compiler()
    command = (*compiler, *FLAGS, _native_flag())
    sources = sorted(SOURCES.glob('*.cpp'))
    name = f'kernels-{_fingerprint(command)}.so'
    with _cache_folder() as folder:
        library = folder / name
        if not library.exists():
            with _lock(folder / 'kernels.lock'):
                if not library.exists():
                    _compile((*command, *map(str, sources)), library)
        return ctypes.CDLL(str(library))


def _find_compiler() -> tuple[str, ...]:
    names = (os.environ['CXX'], ) if os.environ.get('CXX') else COMPILERS
    for name in names:
        command = name.split()
        if command and shutil.which(command[0]):
            return tuple(command)
    raise BackendError(f'no C++ compiler was found (looked for '
                       f'{", ".join(names)}): install one, or set CXX')


def _native_flag() -> str:
    """For the instructions of this machine; the file never leaves it."""
    arm = platform.machine().lower() in ('aarch64', 'arm64')
    return '-mcpu=native' if arm else '-march=native'


def _fingerprint(command: tuple[str, ...]) -> str:
    """Of the sources, the compiler and the processor."""
    digest = hashlib.sha256(' '.join(command).encode())
    for path in sorted((*SOURCES.glob('*.cpp'), *SOURCES.glob('*.h'))):
        digest.update(path.read_bytes())
    version = subprocess.run((command[0], '--version'), capture_output=True,
                             timeout=TIMEOUT)
    digest.update(version.stdout)
    digest.update(platform.machine().encode())
    # The instruction sets, by the names of x86 and of ARM.
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        digest.update('\n'.join(sorted({
            line for line in lines
            if line.startswith(('model name', 'flags', 'Features'))
        })).encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _cache_folder() -> Iterator[Path]:
    """The cache; where it cannot be written, a folder for this process."""
    user = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    path = os.environ.get('SIGPLUG_CACHE') or f'{user}/sigplug'
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise OSError
    except OSError:
        with tempfile.TemporaryDirectory(prefix='sigplug-') as temporary:
            yield Path(temporary)
    else:
        yield folder


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Lets one of several processes build while the others wait."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open('w') as file:
        # Some network file systems know no locks: then all of them build.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(command: tuple[str, ...], library: Path) -> None:
    logger.warning('sigplug compiles its CPU kernels: some ten seconds, once')
    # Under another name until it is whole: a build may be killed.
    unfinished = library.with_suffix(f'.{os.getpid()}.tmp')
    try:
        result = subprocess.run((*command, '-o', str(unfinished)),
                                capture_output=True, text=True,
                                timeout=TIMEOUT)
        if result.returncode:
            raise BackendError(
                f'{command[0]} could not compile the kernels:\n'
                f'{result.stderr.strip()[:2000]}')
        os.replace(unfinished, library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(
            f'the kernels could not be compiled: {error}') from error
    finally:
        unfinished.unlink(missing_ok=True)
