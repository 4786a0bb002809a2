"""A long job as a sequence of tools, each in a process of its own."""
import os
import shlex
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from mmengine.config import Config

from sigplug.errors import UserError
from sigplug.files import relative

from .explain import iter_dicts

# The environment variables that a stage needs.
SETTINGS = ('SIGPLUG_DATA_ROOT', 'SIGPLUG_DATA_VERSION',
            'CUDA_VISIBLE_DEVICES')
GPU_PROBE = """
from mmcv.ops import get_compiling_cuda_version
import torch
if get_compiling_cuda_version() == 'not available':
    print('unusable' if torch.cuda.is_available() else 'none')
"""
LINES_OF_A_FAILURE = 15


def run_stage(name: str, tool: Path | str, *args: Any,
              log: Path | None = None) -> dict[str, float]:
    """Run one tool, started as a user would start it.

    A failure is reported with the command that repeats it, and ends this
    process with the exit code of the tool. Where this process is interrupted,
    the tool is ended too. The output goes to the terminal, or to the end of
    a file ``log``.

    Returns:
        dict[str, float]: Its ``seconds`` and its ``peak_memory_mib``: the
        largest resident set among the tool's process and its workers.
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
            _, status, usage = os.wait4(process.pid, 0)
        # Ctrl-C, or SIGTERM as an exception. The tool would go on alone.
        except BaseException:
            process.terminate()
            process.wait()
            raise
    process.returncode = code = os.waitstatus_to_exitcode(status)
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
    # Linux counts KiB, macOS bytes.
    unit = 2**20 if sys.platform == 'darwin' else 2**10
    return dict(
        seconds=round(perf_counter() - start, 1),
        peak_memory_mib=round(usage.ru_maxrss / unit))


def check_data_root(cfg: Config, root: str) -> None:
    """Check that a config reads the data set that ``SIGPLUG_DATA_ROOT`` names.

    Raises:
        UserError: It reads another one.
    """
    for split in ('train', 'val', 'test'):
        name = f'{split}_dataloader'
        for key, node in iter_dicts(cfg.get(name), name):
            found = node.get('data_root')
            if found and os.path.realpath(found) != os.path.realpath(root):
                raise UserError(
                    f'{cfg.filename} reads {key}.data_root = {found!r} in '
                    f'place of {root!r}: it does not take SIGPLUG_DATA_ROOT '
                    'from the environment, as the nus-mini configs in '
                    'configs/ do. Choose one that does.')


def hide_unusable_gpus() -> None:
    """Keep the stages on the CPU if mmcv's operators cannot use the GPU.

    mmengine would choose the GPU, and training would fail in voxelisation.
    """
    # In a process of its own: the memory of this one counts as that of each
    # stage. Where mmcv is missing, the training reports it.
    probe = subprocess.run([sys.executable, '-c', GPU_PROBE],
                           capture_output=True, text=True)
    if probe.stdout.strip() == 'unusable':
        print("The GPU is not used: mmcv's operators were compiled without "
              'CUDA (make env FORCE_CUDA=1 compiles them for it).',
              flush=True)
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
