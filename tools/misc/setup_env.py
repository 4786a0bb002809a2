#!/usr/bin/env python3
"""Build ``.venv``: the pinned stack, mmcv with its operators, and sigplug.

``make env`` runs this file, which needs the standard library only, with the
Python of the environment. ``.venv/setup-env.json`` remembers the steps that
are done; what pip and the compiler print goes to ``.venv/setup-logs``. mmcv's
wheel is compiled once and kept in ``$SIGPLUG_CACHE``, else
``~/.cache/sigplug``.

Environment variables: ``FORCE_CUDA=1`` compiles mmcv's operators for CUDA
(default: CPU only); ``MAX_JOBS`` limits the compiler processes;
``COLUMN=torch2.1`` builds ``.venv-torch2.1``, where the pins of
``requirements/columns/torch2.1.txt`` replace those of the same packages;
``DOCS=1`` also installs what builds ``docs/``.
"""
import fcntl
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
ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / 'requirements'
COLUMN = os.environ.get('COLUMN', '')
VENV = ROOT / ('.venv-' + COLUMN if COLUMN else '.venv')
PYTHON = VENV / 'bin' / 'python'
STATE_FILE = VENV / 'setup-env.json'
# A change in one of these makes every step run again.
INPUTS = ('requirements/**/*.txt', 'setup.py', 'sigplug/version.py',
          'tools/misc/setup_env.py')
CHECK = """
import mmdet.models, mmdet3d.models, sigplug, torch
from mmcv.ops import nms
boxes = torch.tensor([[0., 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)[1]
assert kept.tolist() == [0, 2], kept
"""
# Texts of errors and what to do; the first match counts. A retry that helped
# also leaves a network error, hence that comes last.
REMEDIES = (
    ('Killed signal|annot allocate|out of memory|MemoryError',
     'memory ran out: make env MAX_JOBS=1'),
    ('No space left|Disk quota', 'free some space: 5 GiB are needed, 12 GiB '
     'with the CUDA libraries of torch'),
    ('ensurepip', f'sudo apt install python{OWN}-venv'),
    ('CUDA_HOME|detected CUDA version', 'install the CUDA toolkit of '
     "torch's CUDA version, or compile for the CPU: make env FORCE_CUDA=0"),
    ('Connect|[Tt]imeout|name resolution|Proxy|SSL|No matching distribution',
     'check the network, the proxy, and the package index (pip config list)'),
    ('', f'read the log; to start again, remove {VENV.name}'),
)


class SetupError(Exception):
    """A sentence for the user."""


def run(name, *command, **variables):
    """Run a command with its output in a log, which is also returned."""
    log = VENV / 'setup-logs' / (name.replace(' ', '-') + '.log')
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('w+b') as file:
        # A session of its own, so that an interrupt also ends the compilers.
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL,
            stdout=file, stderr=file, cwd=ROOT, start_new_session=True,
            env=dict(os.environ, **variables))
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        file.seek(0)
        output = file.read().decode(errors='replace').strip()
    if code:
        remedy = next(remedy for pattern, remedy in REMEDIES
                      if re.search(pattern, output))
        lines = '\n  | '.join(['', *output.splitlines()[-10:]])
        raise SetupError(f'{name} failed (exit code {code}), see '
                         f'{log.relative_to(ROOT)}:{lines}\n{remedy}')
    return output


def check_python(version=OWN):
    """Refuse a Python for which the pinned stack has no packages."""
    if version not in SUPPORTED:
        raise SetupError(f'{sys.executable} is Python {version}, but the '
                         f'stack needs {SUPPORTED[0]} to {SUPPORTED[-1]}: '
                         'make env PYTHON=python3.11')


def check_compiler():
    """Refuse to start without what a compilation needs."""
    compiler = os.environ.get('CXX') or 'c++'
    if not shutil.which(compiler.split()[0]):
        raise SetupError(f'{compiler} not found, but mmcv is compiled: sudo '
                         'apt install build-essential')
    # Not the default scheme, which Debian sets to /usr/local.
    include = Path(sysconfig.get_path('include', 'posix_prefix'))
    if not (include / 'Python.h').is_file():
        raise SetupError('Python.h not found, but mmcv is compiled: sudo apt '
                         f'install python{OWN}-dev')


def read_constraints():
    """Return the pins; those of the column replace the usual ones."""
    usual = (REQUIREMENTS / 'constraints.txt').read_text()
    if not COLUMN:
        return usual
    path = REQUIREMENTS / 'columns' / (COLUMN + '.txt')
    if not path.is_file():
        known = ', '.join(sorted(p.stem for p in path.parent.glob('*.txt')))
        raise SetupError(f'COLUMN={COLUMN} is none of {known}')
    other = path.read_text()
    for name in re.findall(r'(?m)^([\w.-]+)==', other):
        usual = re.sub(rf'(?m)^{re.escape(name)}==.*\n', '', usual)
    return usual + other


def find_wheel(torch, cuda):
    """Return the cached wheel of mmcv, and the folder where it belongs."""
    cache = os.environ.get('SIGPLUG_CACHE') or (
        (os.environ.get('XDG_CACHE_HOME') or '~/.cache') + '/sigplug')
    version = re.search(r'(?m)^mmcv==(\S+)', read_constraints())[1]
    folder = Path(cache).expanduser().resolve() / (
        f'mmcv-{version}-torch-{torch}-python-{OWN}-{"cuda" * cuda or "cpu"}')
    return next(folder.glob('*.whl'), None), folder


def compile_mmcv(folder, cuda):
    """Compile mmcv from its source distribution, into the cache."""
    print('env: compiling mmcv; this takes 5 to 15 minutes, once', flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    # mmcv's largest files take nearly 2 GiB each.
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    jobs = max(1, min(os.cpu_count() or 1, memory // 2**31))
    variables = dict(MMCV_WITH_OPS='1', FORCE_CUDA=str(int(cuda)),
                     MAX_JOBS=os.environ.get('MAX_JOBS') or str(jobs),
                     CFLAGS=os.environ.get('CFLAGS', '') + ' -g0 -O2')
    if not cuda:
        # mmcv compiles for a GPU as soon as torch sees one.
        variables.update(CUDA_VISIBLE_DEVICES='', HIP_VISIBLE_DEVICES='')
    version = folder.name.split('-')[1]
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        # pip's own cache does not know about torch.
        run('compilation of mmcv', PYTHON, '-m', 'pip', 'wheel', '-v',
            '--no-cache-dir', '--no-deps', '--no-build-isolation',
            '--no-binary', 'mmcv', '-w', partial, f'mmcv=={version}',
            **variables)
        wheel, = Path(partial).glob('*.whl')
        return wheel.replace(folder / wheel.name)


class Setup:
    """The steps of the set-up.

    ``state`` is kept in a file: ``wanted``, for what the environment is made,
    the steps that are ``done``, and ``busy``, the one under way.
    """

    def __init__(self):
        self.state = (json.loads(STATE_FILE.read_text())
                      if STATE_FILE.is_file() else {})
        before = self.state.get('wanted', {})
        paths = sorted(p for glob in INPUTS for p in ROOT.glob(glob))
        # Without the variable, operators stay what they are.
        self.cuda = {'0': False, '1': True}.get(
            os.environ.get('FORCE_CUDA'), before.get('cuda', False))
        self.wanted = dict(
            place=str(VENV), python=OWN, cuda=self.cuda,
            inputs=hashlib.sha256(
                b''.join(p.read_bytes() for p in paths)).hexdigest())
        self.spoilt = (
            self.state.get('busy') or not PYTHON.exists()
            or any(before.get(name) != self.wanted[name]
                   for name in ('place', 'python')))

    def save(self, **changes):
        self.state.update(changes)
        partial = STATE_FILE.with_suffix('.partial')
        partial.write_text(json.dumps(self.state, indent=1))
        partial.replace(STATE_FILE)

    def step(self, name, action, *arguments):
        """Do a step that is not done.

        A pip that was stopped may leave half a package, which the next one
        takes for whole. Hence an environment that is found busy is spoilt.
        """
        if name not in self.state['done']:
            start = time.time()
            self.save(busy=name)
            action(name, *arguments)
            self.save(busy=None, done=[*self.state['done'], name])
            print(f'env: {name}: {time.time() - start:.0f} s', flush=True)

    def pip(self, name, *arguments):
        constraints = VENV / 'constraints.txt'
        constraints.write_text(read_constraints())
        run(name, PYTHON, '-m', 'pip', 'install', '-c', constraints,
            *arguments)

    def install_lists(self, name, *lists):
        self.pip(name, *(f'-r{REQUIREMENTS}/{path}.txt' for path in lists))

    def make_venv(self):
        if VENV.exists() and not self.state:
            raise SetupError(f'{VENV} was not made by this script: rename it '
                             'or remove it')
        # The Python that runs this may be the one in the environment.
        run('virtual environment', os.path.realpath(sys.executable), '-m',
            'venv', '--clear', VENV)
        self.state = {}

    def torch_version(self):
        return run('import of torch', PYTHON, '-c',
                   'import torch; print(torch.__version__)').split()[-1]

    def install_mmcv(self, name):
        wheel, folder = find_wheel(self.torch_version(), self.cuda)
        self.pip(name, '--force-reinstall', '--no-deps',
                 wheel or compile_mmcv(folder, self.cuda))

    def check(self, name):
        try:
            run('import of OpenCV', PYTHON, '-c', 'import cv2')
        except SetupError:
            # opencv-python needs libGL, which a machine without a screen may
            # lack; the headless build of the same version does not.
            self.pip('headless OpenCV', '--force-reinstall', '--no-deps',
                     'opencv-python-headless')
        try:
            run(name, PYTHON, '-c', CHECK)
        except SetupError as error:
            wheel, _ = find_wheel(self.torch_version(), self.cuda)
            raise SetupError(f'{error}\nIf mmcv is the reason, also remove '
                             f'{wheel}') from error

    def install(self):
        if self.spoilt:
            check_compiler()
            self.make_venv()
        if self.state.get('wanted') != self.wanted:
            self.save(wanted=self.wanted, busy=None, done=[])
        self.step('build tools', self.install_lists, 'build')
        self.step('torch', self.pip, 'torch', 'numpy')
        self.step('mmcv', self.install_mmcv)
        self.step('OpenMMLab stack', self.install_lists,
                  'runtime', 'mminstall', 'optional', 'tests')
        self.step('sigplug', self.pip, '--no-deps', '--no-build-isolation',
                  '-e', ROOT)
        self.step('check of the stack', self.check)
        if os.environ.get('DOCS') == '1':
            self.step('documentation', self.install_lists, 'docs')
        print(f'env: {VENV.name} is complete', flush=True)


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # These would send packages elsewhere, or bring in foreign ones.
    os.environ.update(PYTHONPATH='', PYTHONHOME='', PIP_TARGET='',
                      PIP_PREFIX='', PIP_USER='0',
                      # torch looks for ninja on the PATH.
                      PATH=f'{VENV}/bin:{os.environ.get("PATH", "")}')
    try:
        check_python()
        read_constraints()
        # Be the only set-up in this repository.
        fcntl.flock(os.open(ROOT, os.O_RDONLY), fcntl.LOCK_EX)
        Setup().install()
    except (SetupError, OSError) as error:
        return f'env: {error}'
    except KeyboardInterrupt:
        print('\nenv: stopped; run it again to go on', file=sys.stderr)
        return 130


if __name__ == '__main__':
    if len(sys.argv) > 1:
        sys.exit('env: takes no arguments but environment variables, see the '
                 'top of this file')
    sys.exit(main())
