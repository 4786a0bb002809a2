"""A long job as a sequence of tools, each in a process of its own."""
import os
import shlex
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from sigplug.files import relative

# The environment variables that a stage needs.
SETTINGS = ('SIGPLUG_DATA_ROOT', 'SIGPLUG_DATA_VERSION',
            'CUDA_VISIBLE_DEVICES')
LINES_OF_A_FAILURE = 15


def run_stage(name: str, tool: Path | str, *args: Any,
              log: Path | None = None) -> float:
    """Run one tool, started as a user would start it.

    A failure is reported with the command that repeats it, and ends this
    process with the exit code of the tool. Where this process is interrupted,
    the tool is ended too. The output goes to the terminal, or to the end of
    a file ``log``.

    Returns:
        float: The seconds it took.
    """
    command = [relative(sys.executable), relative(tool), *map(str, args)]
    line = shlex.join(command)
    if log is None:
        print(f'\n=== {name}: {line}', flush=True)
    start = perf_counter()
    with open(log or os.devnull, 'a') as file:
        output = file if log else None
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            code = process.wait()
        # Ctrl-C, or SIGTERM as an exception. The tool would go on alone.
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code != 0:
        if log is not None:
            lines = log.read_text(errors='replace').splitlines()
            print('', *lines[-LINES_OF_A_FAILURE:], f'(from {log})',
                  sep='\n', file=sys.stderr)
        setting = ' '.join(
            f'{name}={shlex.quote(os.environ[name])}'
            for name in SETTINGS if name in os.environ)
        print(
            f'\nerror: the stage {name!r} failed with exit code {code}. Run '
            f'it alone with\n    {setting} {line}',
            file=sys.stderr)
        # A negative code is a signal.
        sys.exit(code if code > 0 else 1)
    return round(perf_counter() - start, 1)


def hide_unusable_gpus() -> None:
    """Keep the stages on the CPU if mmcv's operators cannot use the GPU.

    mmengine would choose the GPU, and training would fail in voxelisation.
    """
    try:
        from mmcv.ops import get_compiling_cuda_version
    # The training reports it.
    except (ImportError, OSError):
        return
    if torch.cuda.is_available() and (
            get_compiling_cuda_version() == 'not available'):
        print("The GPU is not used: mmcv's operators were compiled without "
              'CUDA (make env FORCE_CUDA=1 compiles them for it).',
              flush=True)
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
