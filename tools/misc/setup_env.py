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
limits the compiler processes; ``COLUMN=torch2.1`` builds ``.venv-torch2.1``,
where the pins of ``requirements/columns/torch2.1.txt`` take the place of those
of the same packages; ``DOCS=1`` also installs what builds ``docs/``.
"""
# The older Pythons that check_python() turns away must get as far as that:
# neither syntax nor annotations here that Python 3.6 cannot evaluate.

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

SUPPORTED = ('3.10', '3.11', '3.12')
OWN = '{}.{}'.format(*sys.version_info[:2])
# The one running this may lie in the environment that is to be removed.
BASE_PYTHON = os.path.realpath(sys.executable)
QUIET_PERIOD = 30  # seconds between signs of life

ROOT = Path(__file__).resolve().parents[2]
COLUMN = os.environ.get('COLUMN', '')
DOCS = os.environ.get('DOCS') == '1'
CONSTRAINTS = ROOT / 'requirements' / 'constraints.txt'
MMCV_VERSION = re.search(r'(?m)^mmcv==(\S+)', CONSTRAINTS.read_text())[1]
VENV = ROOT / ('.venv-' + COLUMN if COLUMN else '.venv')
PYTHON = VENV / 'bin' / 'python'
STATE_FILE = VENV / 'setup-env.json'
# A change in one of these makes every step run again.
INPUTS = ('requirements/*.txt', 'requirements/columns/*.txt', 'setup.py',
          'sigplug/version.py', 'tools/misc/setup_env.py')
# Variables that change what the compiler produces, hence part of the key.
BUILD_VARIABLES = ('CC', 'CXX', 'CFLAGS', 'CXXFLAGS', 'CPPFLAGS', 'LDFLAGS')
CUDA_VARIABLES = ('CUDA_HOME', 'TORCH_CUDA_ARCH_LIST', 'MMCV_CUDA_ARGS')

FACTS = """
import json, platform, sysconfig, torch
print(json.dumps(dict(
    torch=torch.__version__,
    python=sysconfig.get_config_var('SOABI'),
    platform=sysconfig.get_platform(),
    libc='-'.join(platform.libc_ver()),
    cuda=sorted({'%d.%d' % torch.cuda.get_device_capability(i)
                 for i in range(torch.cuda.device_count())}))))
"""
CHECK_MMCV = """
import torch
from mmcv.ops import nms
boxes = torch.tensor([[0., 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)[1]
assert kept.tolist() == [0, 2], kept
"""

# What one reads in an error, and what to do about it; the first match counts.
# A retry that helped also leaves a network error, hence those come late.
REMEDIES = (
    (r'^Wrong Python',
     f'use Python {SUPPORTED[0]} to {SUPPORTED[-1]} (CPython, 64 bit, Linux '
     'or macOS) and name it, for example:\n  make env PYTHON=python3.11'),
    (r'No space left on device|Disk quota exceeded',
     'free some space: 5 GiB are needed, 12 GiB with the CUDA libraries of '
     'torch. TMPDIR names\nanother folder for temporary files.'),
    (r'Killed signal|annot allocate|out of memory|MemoryError|exit status -9',
     'memory ran out: close other programs, or compile with fewer processes: '
     'make env MAX_JOBS=1'),
    (r'ensurepip|No module named venv',
     'install what this Python lacks to make environments (Debian, Ubuntu: '
     f'sudo apt install\npython{OWN}-venv), or name another Python: make env '
     'PYTHON=...'),
    (r"Python\.h'?:? (No such file|file not found)",
     "install this Python's header files (Debian, Ubuntu: sudo apt install "
     f'python{OWN}-dev;\nFedora: sudo dnf install python{OWN}-devel).'),
    (r'CUDA_HOME environment variable|nvcc.*not found|detected CUDA version',
     "compiling for CUDA needs the CUDA toolkit (nvcc) of torch's CUDA "
     'version; set CUDA_HOME,\nor compile for the CPU: make env FORCE_CUDA=0'),
    (r"(?m)^/bin/sh: .*not found|unable to execute '|\bprobe\.|"
     r'Error compiling objects|subcommand failed',
     'install a C++17 compiler (Debian, Ubuntu: sudo apt install '
     'build-essential; Fedora:\nsudo dnf install gcc-c++), or name another: '
     'make env CXX=g++-12'),
    (r'Connect|[Tt]imeout|timed out|name resolution|unreachable|Proxy|SSL|'
     r'[45]\d\d (Client|Server) Error|No matching distribution',
     'pip did not get a package. Check the network, the proxy (HTTPS_PROXY) '
     'and whether the\nindex (`python3 -m pip config list`) has this version '
     'for this Python and platform.'),
    (r'Permission denied|Read-only file system',
     'make this writable. SIGPLUG_CACHE names another folder for the wheel.'),
    ('^COLUMN=', 'name a file of requirements/columns/, without .txt.'),
    ('', 'read the log. To start afresh, remove .venv and run this again.'),
)


class SetupError(Exception):
    """What failed, the telling lines of a program's output, and a remedy."""

    def __init__(self, what: str, output: str = ''):
        lines = [ln.rstrip()[:300] for ln in output.splitlines() if ln.strip()]
        telling = [ln for ln in lines if re.search(
            r'(?i)\b(error|fatal|failed|killed|refused|unreachable)\b|Error:|'
            r'No (space|such file|matching)|not found', ln)]
        quoted = ''.join(f'\n  | {ln}' for ln in (telling or lines)[-10:])
        remedy = next(remedy for pattern, remedy in REMEDIES
                      if re.search(pattern, f'{what}\n{output}'))
        super().__init__(f'{what}{quoted}\nWhat to do: {remedy}')
        self.output = output


def check_python(version: str = OWN) -> None:
    """Turn away a Python for which the pinned stack has no packages."""
    name = sys.implementation.name
    if not (version in SUPPORTED and name == 'cpython'
            and sys.maxsize > 2**32 and os.name == 'posix'):
        raise SetupError(f'Wrong Python: {sys.executable} is {name} {version} '
                         f'on {sys.platform}.')


# -- Commands and files ------------------------------------------------------


def say(text: str) -> None:
    print(f'env: {text}', flush=True)


def time_since(start: float) -> str:
    return '{} min {} s'.format(*divmod(round(time.monotonic() - start), 60))


def run(label: str, command: list, **variables) -> str:
    """Run a command; what it writes goes to a log, which is also returned.

    Args:
        label: What the command does, for the user; also names the log.
        command: Program and arguments.
        **variables: Environment variables to add.
    """
    log = VENV / 'setup-logs' / (re.sub(r'\W+', '-', label) + '.log')
    log.parent.mkdir(exist_ok=True)
    start, code = time.monotonic(), None
    with log.open('wb') as file:
        # A session of its own, so that an interrupt also ends the compilers.
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL,
            stdout=file, stderr=file, env=dict(os.environ, **variables),
            cwd=ROOT, start_new_session=True)
    try:
        while code is None:
            try:
                code = process.wait(QUIET_PERIOD)
            except subprocess.TimeoutExpired:
                # ninja counts its files.
                count = re.findall(r'(?m)^\s*(\[\d+/\d+\]) ',
                                   log.read_text(errors='replace'))
                say(' '.join([label, '...', time_since(start)] + count[-1:]))
    except BaseException:
        # Interrupt it and all it started; kill what does not end.
        for signum in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signum)
                process.wait(10)
        raise
    output = log.read_text(errors='replace')
    if code:
        raise SetupError(f'{label} failed (exit status {code}), log in '
                         f'{os.path.relpath(log)}:', output)
    return output


def run_python(label: str, code: str) -> str:
    return run(label, [PYTHON, '-c', code])


def wait_for_others() -> None:
    """Be the only set-up in this repository until this process ends."""
    import fcntl  # not on Windows, which check_python() turns away
    handle = os.open(ROOT, os.O_RDONLY)  # never closed
    with contextlib.suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('waiting for another set-up in this repository')
            fcntl.flock(handle, fcntl.LOCK_EX)


def write_json(path: Path, data: dict) -> None:
    """Write a JSON file, whole or not at all."""
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    temporary.write_text(json.dumps(data, indent=2, sort_keys=True) + '\n')
    temporary.replace(path)


def read_json(path: Path) -> dict:
    """Read a JSON object; empty if the file is missing or not one."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(json.loads(path.read_text()))
    return {}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hash_inputs() -> str:
    """Hash of the files that say what the environment holds."""
    paths = [p for pattern in INPUTS for p in sorted(ROOT.glob(pattern))]
    return sha256(b'\0'.join(bytes(p) + b'\0' + p.read_bytes() for p in paths))


def read_constraints() -> str:
    """The pins, those of the column in the place of the usual ones."""
    usual = CONSTRAINTS.read_text()
    if not COLUMN:
        return usual
    path = ROOT / 'requirements' / 'columns' / (COLUMN + '.txt')
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob('*.txt'))
        raise SetupError('COLUMN={} is none of {}.'.format(
            COLUMN, ', '.join(known)))
    other = path.read_text()
    names = re.findall(r'(?m)^([\w.-]+)==', other)
    for name in names:
        usual = re.sub(rf'(?m)^{re.escape(name)}==.*\n', '', usual)
    return usual + other


def list_installed() -> list:
    """Names and versions of the installed packages, without asking pip."""
    site = VENV / 'lib' / f'python{OWN}' / 'site-packages'
    return sorted(path.name for path in site.glob('*.dist-info'))


# -- mmcv's wheel ------------------------------------------------------------


def find_cache() -> Path:
    """The folder in which wheels outlive the repository."""
    user = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    path = os.environ.get('SIGPLUG_CACHE') or f'{user}/sigplug'
    return Path(path).expanduser().resolve() / 'mmcv'


def make_key(facts: dict, cuda: bool) -> dict:
    """All that decides whether a compiled mmcv fits; FACTS tells the facts."""
    names = BUILD_VARIABLES + (CUDA_VARIABLES if cuda else ())
    key = dict(facts, mmcv=MMCV_VERSION, variables={
        name: os.environ[name] for name in names if os.environ.get(name)})
    return key if cuda else dict(key, cuda=False)


def find_entry(key: dict) -> Path:
    """The folder of a key: the wheel, and ``entry.json`` with its SHA-256."""
    text = json.dumps(key, sort_keys=True)
    return find_cache() / sha256(text.encode())[:16]


def make_record(key: dict, wheel: Path) -> dict:
    """What ``entry.json`` says if the wheel is whole and of this key."""
    return dict(key=key, wheel=wheel.name, sha256=sha256(wheel.read_bytes()))


def find_wheel(key: dict):
    """The wheel that was stored under ``key``; None if it is not as it was."""
    record = read_json(find_entry(key) / 'entry.json')
    for wheel in find_entry(key).glob('*.whl'):
        if record == make_record(key, wheel):
            return wheel
    return None


def check_compiler(label: str) -> None:
    """Compile and link a few lines against the Python headers."""
    compiler = os.environ.get('CXX') or 'c++'
    linker = sysconfig.get_config_var('LDCXXSHARED')
    # Not the default scheme, which Debian sets to /usr/local.
    include = sysconfig.get_path('include', 'posix_prefix')
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, 'probe.cpp').write_text(
            '#include <Python.h>\n#include <optional>\nstd::optional<int> i;')
        run(label, [
            '/bin/sh', '-ec', f"""cd '{folder}'
            {compiler} -std=c++17 -fPIC -I'{include}' -c probe.cpp -o probe.o
            {linker} probe.o -o probe.so"""])


def compile_mmcv(key: dict) -> Path:
    """Compile mmcv from its source distribution, into the cache."""
    check_compiler('C++ compiler')
    entry, label = find_entry(key), f'mmcv {key["mmcv"]}: compile'
    entry.mkdir(parents=True, exist_ok=True)
    # mmcv's largest files take nearly 2 GiB each.
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    jobs = os.environ.get('MAX_JOBS') or str(
        max(1, min(os.cpu_count() or 1, memory // (2 * 1024**3))))
    variables = dict(MMCV_WITH_OPS='1', MAX_JOBS=jobs, FORCE_CUDA='1')
    if key['cuda'] is False:
        # mmcv compiles for CUDA or ROCm as soon as torch sees a device.
        variables.update(CUDA_VISIBLE_DEVICES='', HIP_VISIBLE_DEVICES='',
                         ROCR_VISIBLE_DEVICES='', FORCE_CUDA='0')
    for name in ('CFLAGS', 'CXXFLAGS'):
        variables[name] = f'{os.environ.get(name, "")} -g0 -O2'.strip()
    say(f'{label} its operators ({jobs} at once); this takes 5 to 15 minutes, '
        'once')
    with tempfile.TemporaryDirectory(dir=entry) as folder:
        # pip's own cache does not know about torch: keep out of it.
        run(label,
            [PYTHON, '-m', 'pip', 'wheel', '-v', '--no-cache-dir', '--no-deps',
             '--no-build-isolation', '--no-binary', 'mmcv', '-w', folder,
             f'mmcv=={key["mmcv"]}'], **variables)
        built, = Path(folder).glob('mmcv-*.whl')
        # Whole or not at all: without its record, the wheel does not count.
        wheel = built.replace(entry / built.name)
    write_json(entry / 'entry.json', make_record(key, wheel))
    return wheel


# -- The steps ---------------------------------------------------------------


class Setup:
    """The steps that make the environment.

    The state file holds what the environment is made for (``wanted``), which
    steps are ``done``, the installation under way (``busy``) and, once all is
    done, what is ``installed``.
    """

    def __init__(self):
        read_constraints()  # before anything is touched
        self.state = read_json(STATE_FILE)
        # Without the variable, operators stay what they are.
        cuda = {'0': False, '1': True}.get(
            os.environ.get('FORCE_CUDA'), self.state.get('cuda', False))
        self.wanted = dict(place=str(VENV), python=OWN, inputs=hash_inputs(),
                           cuda=cuda)
        self.is_as_wanted = self.wanted.items() <= self.state.items()

    def save(self, **changes) -> None:
        self.state.update(changes)
        write_json(STATE_FILE, self.state)

    def why_afresh(self) -> str:
        """Why ``.venv`` cannot be built upon; empty if it can."""
        place, python, busy = map(self.state.get, ('place', 'python', 'busy'))
        if not self.state:
            return 'it was not made by this script'
        if (place, python) != (str(VENV), OWN):
            return f'it was made as {place} with Python {python}'
        if busy:
            return f'the last set-up stopped in: {busy}'
        return '' if os.access(PYTHON, os.X_OK) else 'its Python is gone'

    def begin(self) -> None:
        """Take over the environment that is there, or make a new one."""
        if os.path.lexists(VENV):
            reason = self.why_afresh()
            if not reason:
                going_on = (self.is_as_wanted
                            and self.state['installed'] is None)
                say(f'{VENV.name} is incomplete: going on' if going_on else
                    f'{VENV.name} is brought up to date')
                self.save(**self.wanted, installed=None,
                          done=self.state['done'] if going_on else [])
                return
            aside = VENV.with_name(
                time.strftime(f'{VENV.name}.%Y%m%d-%H%M%S'))
            VENV.rename(aside)
            say(f'{VENV.name} is built afresh: {reason}')
            if self.state:  # nobody else's
                shutil.rmtree(aside, ignore_errors=True)
            else:
                say(f'the old one is now {aside.name}')
        VENV.mkdir()
        label = 'virtual environment'
        self.state = dict(self.wanted, busy=label, done=[], installed=None)
        self.save()
        run(label, [BASE_PYTHON, '-m', 'venv', VENV])
        self.save(busy=None)

    def pip(self, label: str, *arguments) -> None:
        """Install under the constraints.

        A pip that was stopped may leave half a package, which the next one
        takes for whole. Hence the environment counts as spoilt until pip is
        through, unless it fails before it touches anything.
        """
        self.save(busy=label)
        try:
            constraints = VENV / 'constraints.txt'
            constraints.write_text(read_constraints())
            run(label, [PYTHON, '-m', 'pip', 'install', '-c', constraints,
                        *arguments])
        except SetupError as error:
            if 'Installing collected packages' not in error.output:
                self.save(busy=None)
            raise
        self.save(busy=None)

    def install_stack(self, label: str) -> None:
        """Install mmcv and all that has wheels; see that mmcv works."""
        facts = json.loads(re.search(
            r'(?m)^\{.*\}$', run_python('import of torch', FACTS))[0])
        if facts['cuda'] and not self.wanted['cuda']:
            say("there is a GPU, but mmcv's operators are made for the CPU; "
                'for CUDA: make env FORCE_CUDA=1')
        key = make_key(facts, self.wanted['cuda'])
        cached = find_wheel(key)
        self.pip('mmcv', '--force-reinstall', '--no-deps',
                 cached or compile_mmcv(key))
        self.pip(label, *(f'-r{ROOT}/requirements/{name}.txt' for name in (
            'runtime', 'mminstall', 'optional', 'tests')))
        try:
            run_python('import of OpenCV', 'import cv2')
        except SetupError:
            # opencv-python needs libGL, which a machine without a screen may
            # lack; the headless build of the same version does not.
            self.pip('OpenCV', '--force-reinstall', '--no-deps',
                     'opencv-python-headless')
        run_python('import of OpenCV and mmengine', 'import cv2, mmengine')
        try:
            run_python('check of mmcv', CHECK_MMCV)
        except SetupError:
            (find_entry(key) / 'entry.json').unlink(missing_ok=True)
            if not cached:
                raise
            say('the cached wheel of mmcv does not work here and is discarded')
            self.install_stack(label)

    def step(self, name: str, action, *arguments) -> None:
        """Do a step that is not done; ``action`` is told its name, too."""
        if name in self.state['done']:
            return
        start = time.monotonic()
        action(name, *arguments)
        self.save(done=self.state['done'] + [name])
        say(f'{name}: {time_since(start)}')

    def install(self) -> None:
        if (self.is_as_wanted and os.access(PYTHON, os.X_OK)
                and self.state['installed'] == list_installed()):
            say(f'{VENV.name} is up to date')
        else:
            self.begin()
            self.install_all()
            say(f'{VENV.name} is ready')
        if DOCS:
            self.step('documentation', self.pip,
                      f'-r{ROOT}/requirements/docs.txt')
            self.save(installed=list_installed())

    def install_all(self) -> None:
        wheels = f'*/mmcv-{MMCV_VERSION}-cp{OWN.replace(".", "")}-*.whl'
        if not any(find_cache().glob(wheels)):
            # It will be needed: say so before anything long.
            self.step('C++ compiler', check_compiler)
        self.step('build tools', self.pip, f'-r{ROOT}/requirements/build.txt')
        self.step('torch', self.pip, 'torch', 'numpy')
        self.step('mmcv and OpenMMLab stack', self.install_stack)
        self.step('sigplug', self.pip, '--no-deps', '--no-build-isolation',
                  '-e', ROOT)
        self.step('check of the stack', run_python,
                  'import mmdet.models, mmdet3d.models, nuscenes, sigplug')
        self.save(installed=list_installed())


def main() -> int:
    try:
        check_python()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # What would send packages elsewhere, or bring foreign ones in.
        os.environ.update(
            PYTHONPATH='', PYTHONHOME='', PIP_TARGET='', PIP_PREFIX='',
            PIP_ROOT='', PIP_USER='0',
            # torch looks for ninja on the PATH.
            PATH=f'{VENV}/bin:{os.environ.get("PATH", "")}')
        wait_for_others()
        Setup().install()
    except (SetupError, OSError) as error:
        if not isinstance(error, SetupError):
            error = SetupError(str(error))
        print(f'env: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nenv: stopped; run it again to go on', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    # It would take minutes to find out that they have no effect.
    if len(sys.argv) > 1:
        sys.exit('env: takes no arguments but environment variables (see the '
                 'top of this file), got ' + ' '.join(sys.argv[1:]))
    sys.exit(main())
