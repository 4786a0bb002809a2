"""Files that are whole at every moment, locks between processes, and paths.

The standard library alone, as :mod:`sigplug.ops` builds on it.
"""
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PARTIAL = '.partial'
# In a checkout, where its links lead; in a wheel, where mim looks.
TOOLS = (Path(__file__).parent / '.mim/tools').resolve()


def relative(path: str | os.PathLike) -> str:
    """Return a path as one types it: relative, if below the working dir."""
    path = os.path.relpath(path)
    return os.path.abspath(path) if path.startswith('..') else path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
    """Yield the name of a file to write, which then replaces ``path``.

    Until then, and for good where the writing fails, ``path`` keeps its
    content.
    """
    # Of this process: where nothing can be locked, several may write.
    partial = f'{os.fspath(path)}.{os.getpid()}{PARTIAL}'
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def lock(path: str | os.PathLike,
         wait: Callable[[], object] | None = None) -> IO[str]:
    """Lock a file, made if missing, until the result is closed.

    It ends with the process, however that ends. Where the system or the file
    system has no locks, nothing is locked. Where another process has the
    lock, ``wait`` is called and its end waited for.

    Raises:
        BlockingIOError: Another process has the lock, and there is no
            ``wait``.
        OSError: The file cannot be made.
    """
    file = open(path, 'a')
    try:
        # Not on Windows.
        import fcntl

        # Unlike that of flock, this lock is not inherited by the workers of
        # a data loader, who outlive a killed training by some seconds.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        if wait is None:
            file.close()
            raise BlockingIOError(*error.args) from error
        wait()
        fcntl.lockf(file, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass
    return file
