"""Build the C++ kernels with the machine's compiler, once, and load them.

The library stays in ``$SIGPLUG_CACHE``, else ``$XDG_CACHE_HOME/sigplug``, else
``~/.cache/sigplug``, under a name made of the sources and the processor. A
library that is already there needs no compiler.
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
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files import lock, replacing
from ..backends import BackendError

SOURCES = Path(__file__).parent
COMPILERS = ('c++', 'g++', 'clang++')
FLAGS = ('-std=c++17', '-O3', '-ffp-contract=fast', '-fno-math-errno',
         '-fno-trapping-math', '-fopenmp', '-fPIC', '-shared', '-Wno-psabi')
TIMEOUT = 600

# The dtypes of the kernels, by the number that the C++ knows them by.
DTYPES = {torch.float32: 0, torch.bfloat16: 1}

# With fewer elements, a further thread costs more than it gives.
ELEMENTS_PER_THREAD = 8192
# Fewer are for one thread, as in torch: a child of os.fork has no others.
ELEMENTS_FOR_THREADS = 32768

logger = logging.getLogger('sigplug')

# A lock between processes is none between threads.
_ONE_THREAD = threading.Lock()


@functools.cache
def kernel(name: str, arguments: tuple[Any, ...] = ()) -> Callable[..., Any]:
    """Return a function of the library.

    Args:
        name (str): Its name.
        arguments (tuple): The ctypes types of its arguments, as in its C++
            declaration. Defaults to none.
    """
    function = getattr(load(), name)
    function.argtypes, function.restype = arguments, ctypes.c_bool
    return function


def count_threads(x: Tensor) -> int:
    """Return the number of threads to use for a tensor."""
    if x.numel() < ELEMENTS_FOR_THREADS:
        return 1
    return min(torch.get_num_threads(), x.numel() // ELEMENTS_PER_THREAD)


def pointer(x: Tensor | None) -> int | None:
    """Return the address of a tensor without gaps; None for None."""
    return None if x is None else x.data_ptr()


@functools.cache
def load() -> ctypes.CDLL:
    """Load the library; build it if it is not in the cache.

    Raises:
        BackendError: There is no compiler, or it fails.
    """
    name = f'kernels-{_fingerprint()}.so'
    with _ONE_THREAD, _folder_of(name) as (folder, advice):
        library = folder / name
        if not library.is_file():
            with _one_process(folder):
                if not library.is_file():
                    _compile(library, advice)
        return ctypes.CDLL(str(library))


def cache_folder() -> Path:
    """Return the folder where the library stays, which may not exist.

    Raises:
        RuntimeError: There is no home directory.
    """
    user = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    path = os.environ.get('SIGPLUG_CACHE') or f'{user}/sigplug'
    return Path(path).expanduser()


def find_library() -> Path | None:
    """Return the library in the cache, if it is there."""
    with contextlib.suppress(OSError, RuntimeError):
        path = cache_folder() / f'kernels-{_fingerprint()}.so'
        return path if path.is_file() else None
    return None


def _fingerprint() -> str:
    """Return a digest of the sources, the flags and the processor."""
    digest = hashlib.sha256(' '.join((*FLAGS, platform.machine())).encode())
    for path in sorted((*SOURCES.glob('*.cpp'), *SOURCES.glob('*.h'))):
        digest.update(path.read_bytes())
    # The instruction sets, by the names of x86 and of ARM.
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        digest.update('\n'.join(sorted({
            line for line in lines
            if line.startswith(('model name', 'flags', 'Features'))
        })).encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _folder_of(name: str) -> Iterator[tuple[Path, str]]:
    """Yield the cache if the library is or can be there, else a temporary.

    With it comes how long a library there lasts, for whom it is compiled.
    """
    try:
        folder = cache_folder()
        if not (folder / name).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(f'{folder} cannot be written')
    # A RuntimeError: there is no home directory.
    except (OSError, RuntimeError) as error:
        with tempfile.TemporaryDirectory(prefix='sigplug-') as temporary:
            yield Path(temporary), (
                f'again in every process, as the cache cannot be used '
                f'({error}): set SIGPLUG_CACHE to a folder that can be '
                'written')
    else:
        yield folder, 'once on this machine'


@contextlib.contextmanager
def _one_process(folder: Path) -> Iterator[None]:
    """Let one of several processes build while the others wait."""

    def wait() -> None:
        logger.warning('sigplug waits for its CPU kernels, which another '
                       'process compiles into %s', folder)

    with contextlib.ExitStack() as stack:
        # Without a lock all build.
        with contextlib.suppress(OSError):
            stack.enter_context(lock(folder / 'kernels.lock', wait))
        yield


def _compile(library: Path, advice: str) -> None:
    compiler = find_compiler()
    logger.warning(
        'sigplug compiles its CPU kernels with %s into %s, which takes 15 to '
        '45 seconds, %s', compiler[0], library.parent, advice)
    arm = platform.machine().lower() in ('aarch64', 'arm64')
    command = (*compiler, *FLAGS, '-mcpu=native' if arm else '-march=native',
               *map(str, sorted(SOURCES.glob('*.cpp'))), '-o')
    try:
        # A build may be killed.
        with replacing(library) as partial:
            result = subprocess.run(
                (*command, partial), capture_output=True, text=True,
                errors='replace', timeout=TIMEOUT)
            if result.returncode:
                raise BackendError(
                    f'{compiler[0]} could not compile the kernels:\n'
                    f'{result.stderr.strip()[:2000]}')
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(
            f'the kernels could not be compiled: {error}') from error


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler.

    Raises:
        BackendError: There is none.
    """
    names = [os.environ['CXX']] if os.environ.get('CXX') else COMPILERS
    for name in names:
        command = name.split()
        if command and shutil.which(command[0]):
            return command
    raise BackendError(f'no C++ compiler was found (looked for '
                       f'{", ".join(names)}): install one, or set CXX')
