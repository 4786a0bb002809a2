"""The process of a command-line tool: its end, and the others beside it."""
import ctypes
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sigplug.errors import UserError

from .checkpoint import safe_loading

# What the system says where there is no room: on the disk, in the quota, or
# under the limit of the process.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# In which variable a launcher tells each process its number; srun also does
# so where the processes have nothing to do with one another.
RANKS = dict(
    pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
_rank: str | None = None
# Looked up here: between fork and exec, nothing may be loaded.
PRCTL = ctypes.CDLL(None).prctl if sys.platform == 'linux' else None


def run_tool(main: Callable[[], None]) -> int:
    """Run the ``main`` of a command-line tool.

    Checkpoints are read without running what they may hold, see
    :func:`sigplug.engine.checkpoint.safe_loading`.

    Args:
        main (Callable): The tool.

    Returns:
        int: The exit code: 0; 2 after a :class:`UserError` or on a full
        disk, with a message on the standard error (of the first process; after
        the start of a distributed run, of each); 130 or 143 where Ctrl-C or
        SIGTERM have stopped it.
    """
    try:
        with _sigterm_as_exception(), safe_loading():
            main()
    except UserError as error:
        if is_first_process():
            print(f'error: {error}', file=sys.stderr, flush=True)
        # Once the processes work together, it may be one of them alone.
        elif torch.distributed.is_available() and (
                torch.distributed.is_initialized()):
            print(f'error in process {torch.distributed.get_rank()}: {error}',
                  file=sys.stderr, flush=True)
        return 2
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        print_once(
            f'error: {error}. Checkpoints that were written before are '
            'whole. Make room; a training then continues with --resume.',
            file=sys.stderr)
        return 2
    except (KeyboardInterrupt, _Terminated) as stop:
        number = (signal.SIGTERM if isinstance(stop, _Terminated) else
                  signal.SIGINT)
        print_once(f'Stopped by {number.name}. A training continues with '
                   '--resume.', file=sys.stderr)
        return 128 + number
    return 0


class _Terminated(BaseException):
    """SIGTERM as an exception, so that files and workers are closed."""


@contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    process = os.getpid()

    def stop(*_: Any) -> None:
        # A worker that was forked has this handler as well.
        if os.getpid() != process:
            os._exit(128 + signal.SIGTERM)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def use_launcher(launcher: str) -> None:
    """Say how this process was started, for :func:`is_first_process`.

    Args:
        launcher (str): The value of ``--launcher``. ``'none'``, as at the
            start: whatever the environment says, by itself.
    """
    global _rank
    _rank = RANKS.get(launcher)


def is_first_process() -> bool:
    """Whether this is the first of those that the launcher started."""
    return _rank is None or os.environ.get(_rank, '0') == '0'


def print_once(text: str, **kwargs: Any) -> None:
    """Print from the first of the processes that a launcher started.

    Args:
        text (str): The text.
        **kwargs: As for ``print``.
    """
    if is_first_process():
        print(text, flush=True, **kwargs)


def end_with_parent() -> None:
    """Let Linux end this process when the one that started it has died.

    A launcher that is killed could not do it, and the training would go on
    unseen.
    """
    if PRCTL is not None:
        set_death_signal = 1
        PRCTL(set_death_signal, signal.SIGTERM)
