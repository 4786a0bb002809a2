"""The exit codes of the command-line tools, and printing from one process."""
import errno
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed

from sigplug.errors import UserError
from sigplug.files import relative

from .screen import quieten_imports

# The errors for no room: on the disk, in the quota, or under the limit of the
# process.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# The command that continues what runs, where that is not the tool itself.
RESUME = 'SIGPLUG_RESUME'
# What returns the advice for where the tool is stopped; str, an empty text.
_advice: Callable[[], str] = str


def resume_command(target: str | None = None) -> str:
    """Return the command that continues the tool that runs.

    Where make has started it, that is its target of ``make``.
    """
    arguments = sys.argv[1:]
    # Of several the last one counts, which takes the last checkpoint.
    if arguments[-1:] != ['--resume']:
        arguments.append('--resume')
    if target and 'MAKELEVEL' in os.environ:
        return f'make {target} ARGS={shlex.quote(shlex.join(arguments))}'
    return shlex.join(
        [relative(sys.executable), relative(sys.argv[0]), *arguments])


def advise_resume(work_dir: str, resumed: bool = False) -> None:
    """From now on, say how to continue where a training is stopped.

    Unless it has ``resumed``, a checkpoint has to be written from now on.
    """
    global _advice
    start = 0 if resumed else time.time() - 1
    record = Path(work_dir, 'last_checkpoint')

    def advice() -> str:
        if not record.is_file() or record.stat().st_mtime < start:
            return ''
        command = os.environ.get(RESUME) or resume_command()
        return f' Continue it with\n    {command}'

    _advice = advice


def run_tool(main: Callable[[], None]) -> int:
    """Run the ``main`` of a command-line tool.

    Returns:
        int: The exit code: 0; 2 after a :class:`UserError` or on a full
        disk, with a message on the standard error (of the first process; after
        the start of a distributed run, of each); 130 or 143 where Ctrl-C or
        SIGTERM have stopped it, 141 where nobody reads what it prints.
    """
    global _advice
    _advice = str
    quieten_imports()
    try:
        with _raise_on_sigterm():
            main()
            sys.stdout.flush()
    except UserError as error:
        # In a distributed run it may concern one of the processes alone.
        if is_rank_zero() or torch.distributed.is_initialized():
            print(f'error: {error}', file=sys.stderr, flush=True)
        return 2
    # Nobody reads what is printed, as behind `| head`.
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        print_on_rank_zero(
            f'error: {error}. Files that were written before are whole. '
            f'Make room.{_advice()}', file=sys.stderr)
        return 2
    except BaseException as error:
        stop: BaseException | None = error
        # mmengine makes another error of one that comes while it formats a
        # config, as it does for each checkpoint.
        while not isinstance(stop, (KeyboardInterrupt, _Terminated)):
            if stop is None:
                raise
            stop = stop.__context__
        number = (signal.SIGTERM if isinstance(stop, _Terminated) else
                  signal.SIGINT)
        print_on_rank_zero(f'Stopped by {number.name}.{_advice()}',
                           file=sys.stderr)
        return 128 + number
    return 0


class _Terminated(BaseException):
    """SIGTERM as an exception, so that files and workers are closed."""


@contextmanager
def _raise_on_sigterm() -> Iterator[None]:
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


def is_rank_zero() -> bool:
    """Return whether this is the first of the processes of a launcher."""
    return os.environ.get('RANK', '0') == '0'


def print_on_rank_zero(text: str, **kwargs: Any) -> None:
    """Print from the first of the processes of a launcher."""
    if is_rank_zero():
        print(text, flush=True, **kwargs)
