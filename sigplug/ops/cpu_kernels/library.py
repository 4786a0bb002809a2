"""Build the C++ kernels with the machine's compiler, once, and load them.

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backends import BackendError

SOURCES = Path(__file__).parent
COMPILERS = ('c++', 'g++', 'clang++')
FLAGS = ('-std=c++17', '-O3', '-ffp-contract=fast', '-fno-math-errno',
         '-fno-trapping-math', '-fopenmp', '-fPIC', '-shared', '-Wno-psabi')
TIMEOUT = 600

# With fewer elements, a further thread costs more than it gives.
ELEMENTS_PER_THREAD = 8192

logger = logging.getLogger('sigplug')


@functools.cache
def kernel(name: str, *arguments: Any) -> Callable[..., Any]:
    """Return a function of the library.

    Args:
        name (str): Its name.
        *arguments: Its types of ctypes, as the C++ declares them.
    """
    function = getattr(load(), name)
    function.argtypes, function.restype = arguments, ctypes.c_bool
    return function


def count_threads(x: Tensor) -> int:
    """Return how many threads a tensor is worth."""
    return max(1, min(torch.get_num_threads(),
                      x.numel() // ELEMENTS_PER_THREAD))


def pointer(x: Tensor | None) -> int | None:
    """Return the address of a tensor without gaps; None for None."""
    return None if x is None else x.data_ptr()


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
    with _folder_of(name) as folder:
        library = folder / name
        if not _is_whole(library):
            with _lock(folder / 'kernels.lock'):
                if not _is_whole(library):
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
    # With all words: the first one may be a launcher, such as ccache.
    version = subprocess.run((*command, '--version'), capture_output=True,
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


def _is_whole(library: Path) -> bool:
    """Whether a library is there and ends with the digest of its content.

    A process that loads one that was cut off is killed.
    """
    try:
        content = library.read_bytes()
    except OSError:
        return False
    size = hashlib.sha256().digest_size
    return content[-size:] == hashlib.sha256(content[:-size]).digest()


@contextlib.contextmanager
def _folder_of(name: str) -> Iterator[Path]:
    """The cache if it holds the library, or can; else one of this process."""
    user = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    path = os.environ.get('SIGPLUG_CACHE') or f'{user}/sigplug'
    try:
        folder = Path(path).expanduser()
        if not _is_whole(folder / name):
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError
    # A RuntimeError says that there is no home.
    except (OSError, RuntimeError):
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
    with contextlib.ExitStack() as stack:
        # Some network file systems know no locks, and the file may belong to
        # someone else: then all of them build.
        with contextlib.suppress(OSError):
            file = stack.enter_context(path.open('w'))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(command: tuple[str, ...], library: Path) -> None:
    logger.warning('sigplug compiles its CPU kernels: some ten seconds, once')
    # Under another name until it is whole: a build may be killed.
    unfinished = library.with_suffix(f'.{os.getpid()}.tmp')
    try:
        result = subprocess.run((*command, '-o', str(unfinished)),
                                capture_output=True, text=True,
                                errors='replace', timeout=TIMEOUT)
        if result.returncode:
            raise BackendError(
                f'{command[0]} could not compile the kernels:\n'
                f'{result.stderr.strip()[:2000]}')
        digest = hashlib.sha256(unfinished.read_bytes()).digest()
        with unfinished.open('ab') as file:
            file.write(digest)
        os.replace(unfinished, library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(
            f'the kernels could not be compiled: {error}') from error
    finally:
        unfinished.unlink(missing_ok=True)
