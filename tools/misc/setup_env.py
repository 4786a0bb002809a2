#!/usr/bin/env python3
"""Build ``.venv``: the pinned stack, mmcv with its operators, and sigplug.

``make env`` runs this file with the Python that the environment is to have.
It needs the standard library only, since it runs before anything is installed.

Versions stand in ``requirements/constraints.txt``; where packages come from is
pip's own configuration. What pip and the compiler say goes to
``.venv/setup-logs``. ``.venv/setup-env.json`` remembers which steps are done,
so that a second run does only what is missing, and a run that was stopped in
the middle of an installation starts afresh.

mmcv's wheel is compiled once and kept in ``$SIGPLUG_CACHE``, else
``$XDG_CACHE_HOME/sigplug``, else ``~/.cache/sigplug``.

Environment variables: ``SIGPLUG_CACHE``; ``FORCE_CUDA=1`` compiles mmcv's
operators for CUDA (default: CPU only, whatever GPUs are there); ``MAX_JOBS``
limits the compiler processes.
"""
# This file must at least parse on the older Pythons it turns away, so nothing
# newer than Python 3.6 in its syntax.

import argparse
import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows; check_python() says that it is not supported
    fcntl = None

OLDEST, NEWEST = (3, 10), (3, 12)
OWN = '{}.{}'.format(*sys.version_info[:2])
GIB = 1024**3
# Measured with the CPU-only torch; the CUDA libraries of the default Linux
# wheels come on top.
DISK_CPU, DISK_CUDA = 5 * GIB, 12 * GIB
# Peak of one compiler process on mmcv's largest files, with a margin.
MEMORY_PER_JOB = 2 * GIB
QUIET_PERIOD = 30.0  # seconds between signs of life without a terminal

ROOT = Path(__file__).resolve().parents[2]
STATE_FILE = 'setup-env.json'
# A change in one of these makes every step run again (pip then finds most of
# it in place).
INPUTS = ('requirements/*.txt', 'setup.py', 'sigplug/version.py',
          'tools/misc/setup_env.py')
# Variables that change what the compiler produces, hence part of the key.
BUILD_VARIABLES = ('CC', 'CXX', 'CFLAGS', 'CXXFLAGS', 'CPPFLAGS', 'LDFLAGS')
CUDA_VARIABLES = ('CUDA_HOME', 'TORCH_CUDA_ARCH_LIST', 'MMCV_CUDA_ARGS')
# Variables that would send packages elsewhere or bring foreign ones in.
FOREIGN_VARIABLES = ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET', 'PIP_PREFIX',
                     'PIP_ROOT', 'FORCE_MLU', 'FORCE_MPS', 'FORCE_NPU')

FACTS = """
import json, platform, sysconfig, torch
print(json.dumps(dict(
    torch=torch.__version__,
    python=sysconfig.get_config_var('SOABI'),
    platform=sysconfig.get_platform(),
    libc='-'.join(platform.libc_ver()),
    gpus=sorted({'%d.%d' % torch.cuda.get_device_capability(i)
                 for i in range(torch.cuda.device_count())}))))
"""
CHECK_MMCV = """
import torch
from mmcv.ops import nms
boxes = torch.tensor([[0., 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)[1]
assert kept.tolist() == [0, 2], kept
"""
CHECK_STACK = """
import importlib.metadata as m
import mmdet.models, mmdet3d.models, nuscenes
print(', '.join(n + ' ' + m.version(n) for n in
                ('torch', 'mmcv', 'mmdet', 'mmdet3d', 'sigplug')))
"""

COMPILER_REMEDY = (
    'install a C++ compiler, then run this again.\n'
    '  Debian, Ubuntu:  sudo apt install build-essential\n'
    '  Fedora, RHEL:    sudo dnf install gcc-c++ make\n'
    '  macOS:           xcode-select --install')
HEADERS_REMEDY = (
    "install this Python's header files, then run this again.\n"
    f'  Debian, Ubuntu:  sudo apt install python{OWN}-dev\n'
    f'  Fedora, RHEL:    sudo dnf install python{OWN}-devel')
DISK_REMEDY = (
    f'free some space and run this again. About {DISK_CPU // GIB} GiB are '
    f'needed, {DISK_CUDA // GIB} GiB where torch\nbrings its CUDA libraries. '
    'pip also unpacks in the folder for temporary files: if that\none is '
    'small, set TMPDIR to a larger one.')
NETWORK_REMEDY = (
    'check the network and the proxy (HTTPS_PROXY), then run this again; what '
    'was downloaded\nis kept. `python3 -m pip config list` shows which index '
    'and certificates pip uses.')
MEMORY_REMEDY = ('memory ran out. Close other programs, or compile with '
                 'fewer processes: make env MAX_JOBS=1')
# What a log says, and what to do about it; the first match counts. A retry
# that helped also leaves a network error, hence the compiler comes before;
# after network errors pip also says that it found no version.
REMEDIES = (
    (r'No space left on device|Disk quota exceeded', DISK_REMEDY),
    (r'Python\.h: No such file', HEADERS_REMEDY),
    (r'Killed signal|[Cc]annot allocate memory|out of memory|MemoryError|'
     r'virtual memory exhausted', MEMORY_REMEDY),
    (r'CUDA_HOME environment variable is not set|nvcc.*not found|'
     r'detected CUDA version',
     "compiling for CUDA needs the CUDA toolkit (nvcc) of torch's CUDA "
     'version; set CUDA_HOME,\nor compile for the CPU: make env FORCE_CUDA=0'),
    (r"unable to execute '|(g\+\+|gcc|c\+\+): (command )?not found",
     COMPILER_REMEDY),
    (r'Error compiling objects|subcommand failed|failed with exit code',
     'the compiler does not get through (see the log). Try another one, for '
     'example\n  make env CXX=g++-12'),
    (r'NewConnectionError|ConnectTimeout|ReadTimeout|NameResolutionError|'
     r'Temporary failure in name resolution|Network is unreachable|'
     r'Connection (refused|reset|aborted|broken)|Could not connect|ProxyError|'
     r'Max retries exceeded|CERTIFICATE_VERIFY_FAILED|SSLError|'
     r'[45]\d\d (Client|Server) Error|IncompleteRead', NETWORK_REMEDY),
    (r'No matching distribution found|Could not find a version',
     'the package index does not have this version for this Python and '
     'platform; with "from\nversions: none" pip may not reach it at all. '
     'Check the network, the index that pip uses\n(`python3 -m pip config '
     'list`) and the version in requirements/constraints.txt.'),
)


class SetupError(Exception):
    """A failure with what was seen and what the user can do."""

    def __init__(self, what, remedy, details=''):
        super().__init__(what)
        self.what, self.remedy, self.details = what, remedy, details

    def __str__(self):
        details = ''.join('\n  | ' + line for line in
                          self.details.splitlines())
        return f'{self.what}{details}\nWhat to do: {self.remedy}'


def check_python(info=sys.version_info, implementation=None, is_64bit=None):
    """Turn away a Python for which the pinned stack has no packages."""
    implementation = implementation or sys.implementation.name
    is_64bit = sys.maxsize > 2**32 if is_64bit is None else is_64bit
    wanted = 'Python {}.{} to {}.{}'.format(*OLDEST + NEWEST)
    if (OLDEST <= tuple(info[:2]) <= NEWEST and implementation == 'cpython'
            and is_64bit and fcntl is not None):
        return
    raise SetupError(
        'Wrong Python: {} is {} {}.{}{} on {}.'.format(
            sys.executable, implementation, info[0], info[1],
            '' if is_64bit else ' (32 bit)', sys.platform),
        f'use {wanted} (CPython, 64 bit, Linux or macOS) and name it, for '
        'example:\n  make env PYTHON=python3.11')


if __name__ == '__main__':
    # Before the annotations below, which an older Python cannot evaluate.
    try:
        check_python()
    except SetupError as error:
        sys.exit(f'env: {error}')


# -- Reporting ---------------------------------------------------------------


def say(text: str) -> None:
    print(f'env: {text}', flush=True)


def show_duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'


class Progress:
    """Signs of life: a running line on a terminal, else one now and then."""

    def __init__(self, label: str):
        self.label = label
        self.start = self.last = time.monotonic()
        self.live = sys.stdout.isatty()

    def update(self, note: str = '') -> None:
        now = time.monotonic()
        text = f'{self.label} ... {show_duration(now - self.start)}{note}'
        if self.live:
            print(f'\r\x1b[Kenv: {text}', end='', flush=True)
        elif now - self.last >= QUIET_PERIOD:
            say(text)
            self.last = now

    def clear(self) -> None:
        if self.live:
            print('\r\x1b[K', end='', flush=True)


def ninja_progress(log: str) -> str:
    """The last ``[n/N]`` that ninja wrote, as a note to a running line."""
    found = re.findall(r'(?m)^\s*\[(\d+)/(\d+)\] ', log)
    return ', file {} of {}'.format(*found[-1]) if found else ''


def relevant_lines(log: str, count: int = 10) -> str:
    """The last lines of a log that speak of an error, else its last lines."""
    lines = [line.rstrip()[:300] for line in log.splitlines() if line.strip()]
    pattern = re.compile(
        r'\b(error|fatal|failed|failure|killed|refused|unreachable)\b|'
        r'No (space|such file|matching)|not found|Error:', re.IGNORECASE)
    return '\n'.join(([ln for ln in lines if pattern.search(ln)]
                      or lines)[-count:])


def find_remedy(log: str, returncode: int) -> str:
    """What to do about a command that failed, judged by what it wrote."""
    for pattern, remedy in REMEDIES:
        if re.search(pattern, log):
            return remedy
    if returncode == -signal.SIGKILL:
        return MEMORY_REMEDY
    return 'read the log. To start afresh, remove .venv and run this again.'


# -- Running commands --------------------------------------------------------


def make_environ(venv: Path) -> dict[str, str]:
    """The environment variables for pip and Python inside ``venv``."""
    environ = {
        k: v for k, v in os.environ.items() if k not in FOREIGN_VARIABLES
    }
    environ.update(
        VIRTUAL_ENV=str(venv),
        # torch looks for ninja on the PATH.
        PATH=os.pathsep.join((str(venv / 'bin'), environ.get('PATH', ''))),
        PIP_USER='0',
        PIP_NO_INPUT='1',
        PIP_DISABLE_PIP_VERSION_CHECK='1',
        PYTHONNOUSERSITE='1')
    return environ


def read_tail(path: Path, size: int = 200_000) -> str:
    with path.open('rb') as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode('utf-8', 'replace')


def run(label: str,
        command: list[object],
        log: Path,
        environ: dict[str, str],
        note=lambda log: '') -> None:
    """Run a command with its output in ``log``.

    Args:
        label: What the command does, for the user.
        command: Program and arguments.
        log: File to append to.
        environ: Environment variables.
        note: Makes a remark on progress from the last part of the log.

    Raises:
        SetupError: If the command does not end with status 0.
    """
    command = [str(part) for part in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(label)
    with log.open('ab') as file:
        start = file.tell()
        file.write(f'$ {shlex.join(command)}\n'.encode())
        file.flush()
        # A session of its own, so that an interrupt also ends the compilers.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            env=environ, cwd=ROOT, start_new_session=True)
        try:
            while True:
                try:
                    code = process.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    progress.update(note(read_tail(log)))
        except BaseException:
            end_process_group(process)
            raise
        finally:
            progress.clear()
    if code:
        with log.open('rb') as file:
            file.seek(start)
            output = file.read().decode('utf-8', 'replace')
        output = output.partition('\n')[2]
        raise SetupError(
            f'{label} failed (exit status {code}), log in '
            f'{os.path.relpath(log, ROOT)}:', find_remedy(output, code),
            relevant_lines(output))


def end_process_group(process: subprocess.Popen) -> None:
    """Interrupt a command and all it started; kill what does not end."""
    for signum in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError,
                                 subprocess.TimeoutExpired):
            os.killpg(process.pid, signum)
            process.wait(timeout=10)


@contextlib.contextmanager
def locked(path: Path, label: str):
    """Hold the lock of a file or folder; wait while another process has it.

    Where the file system has no locks, go on without.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        progress = None
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress = progress or Progress(
                    f'waiting for another set-up ({label})')
                progress.update()
                time.sleep(0.5)
            except OSError:
                break
        if progress:
            progress.clear()
        yield
    finally:
        os.close(handle)


def write_json(path: Path, data: dict) -> None:
    """Write a JSON file, whole or not at all."""
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    temporary.write_text(json.dumps(data, indent=2, sort_keys=True) + '\n',
                         encoding='utf-8')
    os.replace(temporary, path)


def read_json(path: Path) -> dict | None:
    """Read a JSON object; None if the file is missing or not one."""
    try:
        data = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        for block in iter(lambda: file.read(2**20), b''):
            digest.update(block)
    return digest.hexdigest()


# -- What the environment is made from ---------------------------------------


def hash_inputs(root: Path) -> str:
    """Hash of the files that say what the environment holds."""
    digest = hashlib.sha256()
    for pattern in INPUTS:
        for path in sorted(root.glob(pattern)):
            digest.update(f'{path.relative_to(root)}\0'.encode())
            digest.update(path.read_bytes() + b'\0')
    return digest.hexdigest()


def list_installed(venv: Path, python: str) -> list[str]:
    """Names and versions of the installed packages, without asking pip."""
    site = venv / 'lib' / f'python{python}' / 'site-packages'
    return sorted(p.name for p in site.glob('*.dist-info'))


def read_pin(root: Path, name: str) -> str:
    """The version of a package in ``requirements/constraints.txt``."""
    path = root / 'requirements' / 'constraints.txt'
    found = re.search(rf'(?m)^{re.escape(name)}==([^\s;#]+)',
                      path.read_text(encoding='utf-8'))
    if not found:
        raise SetupError(f'No version of {name} in {path}.',
                         f'add a line "{name}==VERSION".')
    return found[1]


def is_current(state: dict | None, venv: Path, inputs: str,
               python: str | None, cuda: bool | None) -> bool:
    """Whether ``venv`` is complete and what is asked for.

    Args:
        state: Content of the state file.
        venv: The environment.
        inputs: :func:`hash_inputs` now.
        python: Wanted version ('3.11'), None for the one it has.
        cuda: Whether mmcv shall have CUDA operators, None for what it has.
    """
    return (bool(state) and state.get('complete') is True
            and state.get('place') == str(venv)
            and state.get('inputs') == inputs
            and python in (None, state.get('python'))
            and cuda in (None, state.get('cuda'))
            and os.access(venv / 'bin' / 'python', os.X_OK)
            and list_installed(venv, state['python']) == state.get(
                'installed'))


# -- The cache of mmcv wheels ------------------------------------------------


def find_cache(environ: dict[str, str]) -> Path:
    """The folder in which wheels outlive the repository."""
    if environ.get('SIGPLUG_CACHE'):
        return Path(environ['SIGPLUG_CACHE']).expanduser().resolve()
    base = Path(environ.get('XDG_CACHE_HOME', ''))
    # The XDG specification: a relative path is to be ignored.
    return (base if base.is_absolute() else Path.home() / '.cache') / 'sigplug'


def make_key(facts: dict, mmcv: str, cuda: bool,
             environ: dict[str, str]) -> dict:
    """All that decides whether a compiled mmcv fits.

    Args:
        facts: What :data:`FACTS` printed in the environment.
        mmcv: Version of mmcv.
        cuda: Whether the operators are compiled for CUDA.
        environ: Environment variables.
    """
    names = BUILD_VARIABLES + (CUDA_VARIABLES if cuda else ())
    return dict(
        mmcv=mmcv,
        torch=facts['torch'],
        python=facts['python'],
        platform=facts['platform'],
        libc=facts['libc'],
        cuda=facts['gpus'] if cuda else False,
        variables={k: environ[k] for k in names if environ.get(k)})


class WheelCache:
    """Wheels that were compiled here, each under a key.

    An entry is a folder named by the key's hash; it holds the wheel and
    ``entry.json`` with the key and the wheel's SHA-256. The latter is written
    last: without it, or where it does not fit, there is no wheel.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def _entry(self, key: dict) -> Path:
        text = json.dumps(key, sort_keys=True)
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:16]

    def fetch(self, key: dict, target: Path) -> Path | None:
        """Copy the wheel of ``key`` into the folder ``target``.

        Returns:
            The copy; None if there is no wheel, or one that is damaged or was
            not stored under this very key.
        """
        entry = self._entry(key)
        record = read_json(entry / 'entry.json')
        if record is None or record.get('key') != key:
            return None
        name = str(record.get('wheel'))
        if Path(name).name != name or not name.endswith('.whl'):
            return None
        target.mkdir(parents=True, exist_ok=True)
        try:
            copy = Path(shutil.copyfile(entry / name, target / name))
        except OSError:
            return None
        if hash_file(copy) != record.get('sha256'):
            copy.unlink()
            return None
        return copy

    def store(self, key: dict, wheel: Path) -> None:
        """Keep a copy of ``wheel`` under ``key``, whole or not at all."""
        entry = self._entry(key)
        entry.mkdir(parents=True, exist_ok=True)
        temporary = entry / f'{wheel.name}.{os.getpid()}.tmp'
        try:
            shutil.copyfile(wheel, temporary)
            os.replace(temporary, entry / wheel.name)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        write_json(
            entry / 'entry.json',
            dict(key=key, wheel=wheel.name, sha256=hash_file(wheel)))

    def discard(self, key: dict) -> None:
        """Forget the wheel of ``key``."""
        with contextlib.suppress(OSError):
            (self._entry(key) / 'entry.json').unlink()

    def may_have(self, mmcv: str, python: str) -> bool:
        """Whether a wheel of these versions is there, for whichever torch."""
        records = map(read_json, self.folder.glob('*/entry.json'))
        keys = [record.get('key') for record in records if record]
        return any(
            isinstance(key, dict) and key.get('mmcv') == mmcv
            and key.get('python') == python for key in keys)

    @contextlib.contextmanager
    def lock(self, key: dict):
        """Keep other set-ups from compiling the same wheel meanwhile."""
        entry = self._entry(key)
        with contextlib.suppress(OSError):
            entry.mkdir(parents=True, exist_ok=True)
        with locked(entry, 'mmcv is being compiled'):
            yield


# -- Requirements of the machine ---------------------------------------------


def check_venv_module(find=importlib.util.find_spec) -> None:
    """Debian keeps ``ensurepip`` in a package of its own."""
    missing = [name for name in ('venv', 'ensurepip') if find(name) is None]
    if missing:
        raise SetupError(
            f'This Python ({sys.executable}) cannot make virtual environments:'
            f' no module {", ".join(missing)}.',
            'install it, or name another Python (make env PYTHON=...).\n'
            f'  Debian, Ubuntu:  sudo apt install python{OWN}-venv')


def check_disk(path: Path) -> None:
    """Raise if the environment cannot fit, warn if it may not."""
    free = shutil.disk_usage(path).free
    if free < DISK_CPU:
        raise SetupError(
            f'No disk space: {free / GIB:.1f} GiB free in {path}.',
            DISK_REMEDY)
    if free < DISK_CUDA:
        say(f'only {free / GIB:.0f} GiB of disk are free: enough with the '
            'CPU-only torch, not with its CUDA libraries')


def check_compiler(environ: dict[str, str]) -> None:
    """Compile and link a few lines against the Python headers."""
    compiler = shlex.split(environ.get('CXX') or 'c++')
    link = shlex.split(environ.get('LDCXXSHARED') or sysconfig.get_config_var(
        'LDCXXSHARED') or sysconfig.get_config_var('LDSHARED') or 'c++')
    for program in (compiler[0], link[0]):
        if not shutil.which(program, path=environ.get('PATH', '')):
            raise SetupError(f'No C++ compiler: {program} is not on the PATH.',
                             COMPILER_REMEDY)
    # Not the default scheme, which Debian sets to /usr/local.
    include = Path(sysconfig.get_path('include', 'posix_prefix'))
    if not (include / 'Python.h').is_file():
        raise SetupError(f'No Python headers: {include / "Python.h"} is '
                         'missing.', HEADERS_REMEDY)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'probe.cpp')
        source.write_text('#include <Python.h>\n#include <optional>\n'
                          'std::optional<int> probe() { return 1; }\n')
        done = subprocess.run(
            [*compiler, '-std=c++17', '-fPIC', '-c', f'-I{include}',
             str(source), '-o', str(source.with_suffix('.o'))],
            env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SetupError(
            f'The C++ compiler {compiler[0]} cannot compile C++17.',
            COMPILER_REMEDY, relevant_lines(done.stdout))


def count_jobs(environ: dict[str, str]) -> int:
    """Compiler processes to run at once: the cores, if memory allows."""
    if environ.get('MAX_JOBS', '').isdigit():
        return max(1, int(environ['MAX_JOBS']))
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return max(1, min([cores] + [m // MEMORY_PER_JOB for m in find_memory()]))


def find_memory() -> list[int]:
    """Bytes that this machine and this container can still give."""
    sizes = []
    with contextlib.suppress(OSError):
        found = re.search(r'MemAvailable:\s+(\d+) kB',
                          Path('/proc/meminfo').read_text())
        sizes += [int(found[1]) * 1024] if found else []
    with contextlib.suppress(OSError, ValueError):
        sizes.append(int(Path('/sys/fs/cgroup/memory.max').read_text()))
    return sizes


# -- The steps ---------------------------------------------------------------


class Setup:
    """The steps that make one environment.

    Args:
        root: The repository.
        cuda: Whether mmcv's operators are compiled for CUDA.
    """

    def __init__(self, root: Path, cuda: bool):
        self.root = root
        self.cuda = cuda
        self.venv = root / '.venv'
        self.python = self.venv / 'bin' / 'python'
        self.logs = self.venv / 'setup-logs'
        self.requirements = root / 'requirements'
        self.environ = make_environ(self.venv)
        self.cache = WheelCache(find_cache(os.environ) / 'mmcv')
        self.state = {}

    # State

    def save(self, **changes) -> None:
        self.state.update(changes)
        write_json(self.venv / STATE_FILE, self.state)

    def pip_install(self, label: str, log: str, *arguments: object) -> None:
        """Install under the constraints.

        Until pip is through, the environment counts as spoilt; when pip fails
        before it touches anything, it does not.
        """
        path = self.logs / log
        self.save(busy=label)
        start = path.stat().st_size if path.exists() else 0
        command = [self.python, '-m', 'pip', 'install', '-c',
                   self.requirements / 'constraints.txt', *arguments]
        try:
            run(label, command, path, self.environ)
        except SetupError:
            output = path.read_bytes()[start:]
            if b'Installing collected packages' not in output:
                self.save(busy=None)
            raise
        self.save(busy=None)

    def succeeds(self, label: str, log: str, code: str) -> bool:
        """Run Python code in the environment; whether it ends well."""
        try:
            run(label, [self.python, '-c', code], self.logs / log,
                self.environ)
        except SetupError:
            return False
        return True

    # Steps

    def prepare(self, inputs: str) -> None:
        """Take over what is there, or clear the place and begin."""
        state = read_json(self.venv / STATE_FILE)
        if os.path.lexists(self.venv):
            reason = self.why_afresh(state)
            if not reason:
                unchanged = (state['inputs'] == inputs
                             and state['cuda'] == self.cuda
                             and not state['complete'])
                say('.venv is incomplete: going on' if unchanged else
                    '.venv is brought up to date')
                self.state = state
                self.save(inputs=inputs, cuda=self.cuda, complete=False,
                          done=state['done'] if unchanged else [])
                return
            self.clear(state, reason)
        check_venv_module()
        check_disk(self.root)
        self.check_build()
        self.venv.mkdir()
        self.state = dict(
            place=str(self.venv), python=OWN, cuda=self.cuda,
            inputs=inputs, complete=False, busy='virtual environment',
            done=[], mmcv=None, installed=None)
        self.save()
        label = f'virtual environment (.venv, Python {OWN})'
        # Not sys.executable, which may lie in the .venv just removed.
        run(label, [getattr(sys, '_base_executable', None) or sys.executable,
                    '-m', 'venv', self.venv],
            self.logs / 'venv.log', self.environ)
        self.save(busy=None)
        say(label)

    def why_afresh(self, state: dict | None) -> str:
        """Why ``.venv`` cannot be built upon; empty if it can."""
        fields = {'place', 'python', 'cuda', 'inputs', 'complete', 'busy',
                  'done', 'mmcv', 'installed'}
        if state is None or not fields <= set(state):
            return 'it was not made by this script'
        if state['place'] != str(self.venv):
            return 'it was moved or copied here'
        if state['busy']:
            return f'the last set-up stopped in: {state["busy"]}'
        if state['python'] != OWN:
            return f'it has Python {state["python"]}, not {OWN}'
        if not self.succeeds('pip', 'venv.log', 'import pip._internal'):
            return 'its Python does not run'
        return ''

    def clear(self, state: dict | None, reason: str) -> None:
        """Remove our own environment, move anybody else's aside."""
        if state is not None:
            say(f'.venv is built afresh: {reason}')
            if self.venv.is_symlink():
                self.venv.unlink()
            else:
                shutil.rmtree(self.venv)
            return
        aside = self.venv.with_name(time.strftime('.venv.%Y%m%d-%H%M%S'))
        os.rename(self.venv, aside)
        say(f'.venv is built afresh: {reason}; the old one is now '
            f'{aside.name}')

    def check_build(self) -> None:
        """Look for a compiler before anything long, if one will be needed."""
        if not self.cache.may_have(read_pin(self.root, 'mmcv'),
                                   sysconfig.get_config_var('SOABI')):
            check_compiler(self.environ)

    def read_facts(self) -> dict:
        """Ask torch in the environment what a compiled mmcv must fit."""
        done = subprocess.run(
            [str(self.python), '-c', FACTS], env=self.environ,
            stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise SetupError('torch does not work in .venv:',
                             'remove .venv and run this again.',
                             relevant_lines(done.stderr))
        return json.loads(done.stdout.splitlines()[-1])

    def compile_mmcv(self, key: dict) -> Path:
        """Compile mmcv from its source distribution.

        Returns:
            The wheel; a copy is in the cache.
        """
        check_compiler(self.environ)
        jobs = count_jobs(self.environ)
        flags = {name: f'{self.environ.get(name, "")} -g0 -O2'.strip()
                 for name in ('CFLAGS', 'CXXFLAGS')}
        environ = dict(self.environ, **flags, MMCV_WITH_OPS='1',
                       MAX_JOBS=str(jobs), FORCE_CUDA=str(int(self.cuda)))
        if not self.cuda:
            # mmcv compiles for CUDA or ROCm as soon as torch sees a device.
            environ.update(CUDA_VISIBLE_DEVICES='', HIP_VISIBLE_DEVICES='',
                           ROCR_VISIBLE_DEVICES='')
        label = f'mmcv {key["mmcv"]}: compile'
        say(f'{label} its operators ({jobs} at once); this takes 5 to 15 '
            'minutes, once')
        (self.logs / 'mmcv.log').unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(
                prefix='mmcv-', dir=self.venv) as folder:
            # pip's own cache does not know about torch: keep out of it.
            run(label,
                [self.python, '-m', 'pip', 'wheel', '-v', '--no-cache-dir',
                 '--no-deps', '--no-build-isolation', '--no-binary', 'mmcv',
                 '-w', folder, f'mmcv=={key["mmcv"]}'],
                self.logs / 'mmcv.log', environ, ninja_progress)
            built, = Path(folder).glob('mmcv-*.whl')
            wheel = self.venv / 'wheels' / built.name
            wheel.parent.mkdir(exist_ok=True)
            os.replace(built, wheel)
        try:
            self.cache.store(key, wheel)
        except OSError as error:
            say(f'the wheel is not kept for other environments: {error}')
        return wheel

    def get_mmcv(self, key: dict) -> tuple[Path, bool]:
        """The wheel of ``key``, and whether it comes from the cache."""
        with self.cache.lock(key):
            wheel = self.cache.fetch(key, self.venv / 'wheels')
            if wheel:
                return wheel, True
            return self.compile_mmcv(key), False

    def put_mmcv(self, key: dict, wheel: Path, cached: bool) -> None:
        self.pip_install('mmcv', 'mmcv-install.log', '--force-reinstall',
                         '--no-deps', wheel)
        self.save(mmcv=dict(key=key, cached=cached))

    def install_build_tools(self) -> None:
        self.pip_install('build tools', 'build.log', '-r',
                         self.requirements / 'build.txt')

    def install_torch(self) -> None:
        self.pip_install('torch', 'torch.log', 'torch', 'numpy')

    def install_mmcv(self) -> None:
        """Install mmcv from the cache, else compile it."""
        facts = self.read_facts()
        version = read_pin(self.root, 'mmcv')
        key = make_key(facts, version, self.cuda, self.environ)
        if facts['gpus'] and not self.cuda:
            say("there is a GPU, but mmcv's operators are made for the CPU; "
                'for CUDA: make env FORCE_CUDA=1')
        installed = list_installed(self.venv, self.state['python'])
        if ((self.state['mmcv'] or {}).get('key') != key
                or f'mmcv-{version}.dist-info' not in installed):
            self.put_mmcv(key, *self.get_mmcv(key))

    def install_stack(self) -> None:
        """Install all that has wheels, and see that mmcv works with it."""
        names = ('runtime', 'mminstall', 'optional', 'tests')
        lists = [self.requirements / f'{name}.txt' for name in names]
        self.pip_install('stack', 'stack.log',
                         *[part for path in lists for part in ('-r', path)])
        if not self.succeeds('OpenCV', 'check.log', 'import cv2'):
            # opencv-python needs libGL, which a machine without a screen may
            # lack; the headless build of the same version does not.
            self.pip_install('OpenCV', 'stack.log', '--force-reinstall',
                             '--no-deps', 'opencv-python-headless')
        run('check of OpenCV and mmengine',
            [self.python, '-c', 'import cv2, mmengine'],
            self.logs / 'check.log', self.environ)
        self.check_mmcv()

    def check_mmcv(self) -> None:
        """Run an operator; compile anew if a wheel from the cache fails."""
        key, cached = self.state['mmcv']['key'], self.state['mmcv']['cached']
        if self.succeeds('mmcv', 'check.log', CHECK_MMCV):
            return
        with self.cache.lock(key):
            self.cache.discard(key)
        if cached:
            say('the cached wheel of mmcv does not work here and is discarded')
            self.put_mmcv(key, *self.get_mmcv(key))
            if self.succeeds('mmcv', 'check.log', CHECK_MMCV):
                return
            self.cache.discard(key)
        log = self.logs / 'check.log'
        raise SetupError(
            "mmcv's operators do not work, log in "
            f'{os.path.relpath(log, self.root)}:',
            'remove .venv and run this again to compile them anew.',
            relevant_lines(read_tail(log)))

    def install_sigplug(self) -> None:
        self.pip_install('sigplug', 'sigplug.log', '--no-deps',
                         '--no-build-isolation', '-e', self.root)

    def check_stack(self) -> None:
        run('check of the stack', [self.python, '-c', CHECK_STACK],
            self.logs / 'check.log', self.environ)

    def install(self) -> None:
        """Do the steps that are not done."""
        steps = (
            ('build tools', self.install_build_tools),
            (f'torch {read_pin(self.root, "torch")}', self.install_torch),
            (f'mmcv {read_pin(self.root, "mmcv")}', self.install_mmcv),
            ('OpenMMLab stack and test tools', self.install_stack),
            ('sigplug', self.install_sigplug),
            ('check', self.check_stack),
        )
        for name, action in steps:
            if name in self.state['done']:
                continue
            start = time.monotonic()
            action()
            self.save(done=self.state['done'] + [name])
            say(f'{name}: {show_duration(time.monotonic() - start)}')
        self.save(complete=True, installed=list_installed(
            self.venv, self.state['python']))
        versions = read_tail(self.logs / 'check.log').splitlines()[-1]
        say(f'ready: {versions}')


# -- The command -------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Build or complete .venv in the repository.')
    parser.add_argument(
        '--keep-python', action='store_true',
        help='keep an environment that has another supported Python than the '
        'one running this')
    return parser.parse_args(argv)


def set_up(root: Path, keep_python: bool) -> None:
    """Bring ``.venv`` of a repository up to date."""
    venv, inputs = root / '.venv', hash_inputs(root)
    cuda = {'0': False, '1': True}.get(os.environ.get('FORCE_CUDA', ''))

    def has_all() -> bool:
        return is_current(read_json(venv / STATE_FILE), venv, inputs,
                          None if keep_python else OWN, cuda)

    if has_all():
        say('.venv is up to date')
        return
    with locked(root, 'in this repository'):
        if has_all():  # by the one just waited for
            return
        state = read_json(venv / STATE_FILE) or {}
        if keep_python and state.get('python', OWN) != OWN:
            with contextlib.suppress(OSError):
                # Returns only if that Python is gone.
                python = str(venv / 'bin' / 'python')
                os.execv(python, [python, __file__])
        setup = Setup(root, state.get('cuda', False) if cuda is None else cuda)
        setup.prepare(inputs)
        setup.install()


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    def stop(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        set_up(ROOT, args.keep_python)
    except SetupError as error:
        print(f'env: {error}', file=sys.stderr)
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = DISK_REMEDY if full else 'see the message above.'
        print(f'env: {SetupError(str(error), remedy)}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nenv: stopped; run it again to go on', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
