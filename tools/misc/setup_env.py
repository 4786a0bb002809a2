#!/usr/bin/env python3
"""Build ``.venv``: the pinned stack, mmcv with its operators, and sigplug.

``make env`` runs this file, which needs the standard library only, with the
Python of the environment. ``.venv/setup-env.json`` remembers what was built;
what pip and the compiler print goes to ``.venv/setup.log``. mmcv's wheel is
compiled once and kept in ``$SIGPLUG_CACHE``, else ``~/.cache/sigplug``.

Environment variables: ``FORCE_CUDA=1`` compiles mmcv's operators for CUDA
(default: CPU only), for the GPUs of ``TORCH_CUDA_ARCH_LIST``, else for those
of this machine; ``MAX_JOBS`` limits the compiler processes;
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
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from join_mmcv import join_sources

SUPPORTED = ('3.10', '3.11', '3.12', '3.13')
OWN = '{}.{}'.format(*sys.version_info[:2])
ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / 'requirements'
COLUMN = os.environ.get('COLUMN', '')
VENV = ROOT / ('.venv-' + COLUMN if COLUMN else '.venv')
PYTHON, LOG = VENV / 'bin/python', VENV / 'setup.log'
STATE = VENV / 'setup-env.json'
# A change in one of these brings the environment up to date.
INPUTS = ('requirements/**/*.txt', 'setup.py', 'sigplug/version.py',
          'tools/misc/setup_env.py', 'tools/misc/join_mmcv.py')
# The line of packages that goes by onedl-mmcv and so on.
ONEDL = COLUMN == 'onedl'
MMCV = 'onedl-mmcv' if ONEDL else 'mmcv'
CHECK = """
import sigplug, torch
import mmdet.models, mmdet3d.models
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
    ('Python\\.h', f'sudo apt install python{OWN}-dev'),
    ('ensurepip', f'sudo apt install python{OWN}-venv'),
    ('CUDA_HOME|detected CUDA version', 'install the CUDA toolkit of '
     "torch's CUDA version, or compile for the CPU: make env FORCE_CUDA=0"),
    ('Connect|[Tt]imeout|name resolution|Proxy|SSL|No matching distribution',
     'check the network, the proxy, and the package index (pip config list)'),
    ('', 'read the log'),
)


class SetupError(Exception):
    """A sentence for the user."""


def run(what, *command, **variables):
    """Run a command; its output goes to the log and is returned."""
    start = time.time()
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, text=True, errors='replace',
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env=dict(os.environ, **variables))
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open('a') as log:
        print(f'=== {what}: {time.time() - start:.0f} s', done.stdout,
              sep='\n', file=log)
    if done.returncode:
        remedy = next(remedy for pattern, remedy in REMEDIES
                      if re.search(pattern, done.stdout))
        lines = '\n  | '.join(['', *done.stdout.splitlines()[-10:]])
        raise SetupError(f'{what} failed (exit code {done.returncode}), see '
                         f'{LOG.relative_to(ROOT)}:{lines}\n{remedy}')
    return done.stdout


def check_python(version=OWN):
    """Refuse a Python for which the pinned stack has no packages."""
    if version not in SUPPORTED:
        raise SetupError(f'{sys.executable} is Python {version}, but the '
                         f'stack needs {SUPPORTED[0]} to {SUPPORTED[-1]}: '
                         'make env PYTHON=python3.12')


def check_compiler():
    """Refuse to start without a compiler."""
    compiler = os.environ.get('CXX') or 'c++'
    if not shutil.which(compiler.split()[0]):
        raise SetupError(f'{compiler} not found, but mmcv is compiled: sudo '
                         'apt install build-essential')


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


def pip(what, *arguments):
    """Install packages in the pinned versions."""
    constraints = VENV / 'constraints.txt'
    constraints.write_text(read_constraints())
    print(f'env: {what}', flush=True)
    # Most of it is never imported: Python compiles what is, when it is.
    run(what, PYTHON, '-m', 'pip', 'install', '--no-compile', '-c',
        constraints, *arguments)


def pip_lists(what, *names):
    """Install lists of requirements."""
    pip(what, *(f'-r{REQUIREMENTS}/{name}.txt' for name in names))


def install_devkit():
    """Install nuscenes-devkit, and lift a bound in what it asks for.

    It asks for numpy below 2, but runs with later ones.
    """
    pip('nuScenes devkit', '--no-deps', 'nuscenes-devkit')
    for path in VENV.glob('lib/*/site-packages/nuscenes_devkit*/METADATA'):
        path.write_text(re.sub(r'(?m)^(Requires-Dist: numpy)<.*', r'\1',
                               path.read_text()))


def install_stack(cuda):
    """Install all that needs torch but mmcv and sigplug."""
    install_devkit()
    names = ['onedl' if ONEDL else 'mminstall', 'runtime', 'optional', 'tests']
    if not cuda:
        # Beside a GPU it would take the place of mmcv's CUDA operators.
        names.append('spconv')
    lists = ''.join((REQUIREMENTS / f'{name}.txt').read_text()
                    for name in names)
    stack = VENV / 'stack.txt'
    stack.write_text(re.sub(rf'(?m)^{MMCV}\b.*\n', '', lists))
    pip('OpenMMLab stack', '-r', stack)
    if ONEDL:
        # Which its metadata allows, and SIGPLUG_MMDET3D_BESIDE_ONEDL.
        pip('mmdet3d', 'mmdet3d')
    if cuda:
        run('removal of spconv', PYTHON, '-m', 'pip', 'uninstall', '-y',
            'spconv')


def mmcv_sources(folder, version):
    """Download mmcv's sources to a folder, and return theirs."""
    try:
        # pip unpacks them there to read the metadata, and leaves them there.
        run('sources of mmcv', PYTHON, '-m', 'pip', 'download', '--no-clean',
            '--no-deps', '--no-build-isolation', '--no-binary', MMCV, '-d',
            folder, f'{MMCV}=={version}', TMPDIR=str(folder))
    except SetupError:
        # Since Python 3.13 locals() does not see what exec() defines, and
        # setup.py fails.
        if not list(folder.glob('pip-*/*/setup.py')):
            raise
    setup, = folder.glob('pip-*/*/setup.py')
    # torch adds the standard that it needs itself, which since 2.15 is C++20.
    setup.write_text(setup.read_text().replace(
        "['-std=c++17']", '[]').replace(
        "locals()['__version__']", repr(version)))
    return setup.parent


def cuda_variables():
    """Return where the CUDA compiler and libraries are.

    Since CUDA 13 torch's own packages are laid out as a toolkit. They have
    the headers and libraries that a small toolkit lacks; the compiler is
    installed beside them where there is none.
    """
    home = next(VENV.glob('lib/*/site-packages/nvidia/cu1?'), None)
    if home is None:
        return {}
    variables = dict(CPATH=f'{home}/include:{home}/include/cccl',
                     LIBRARY_PATH=f'{home}/lib')
    if not os.environ.get('CUDA_HOME') and not shutil.which('nvcc'):
        version = run('version of CUDA', PYTHON, '-c',
                      'import torch; print(torch.version.cuda)').split()[-1]
        pip('CUDA compiler', *(f'nvidia-{name}=={version}.*' for name in (
            'cuda-nvcc', 'cuda-cccl', 'cuda-crt', 'nvvm')))
        variables.update(CUDA_HOME=str(home),
                         PATH=f'{home}/bin:{os.environ["PATH"]}')
    # The names that torch and the linker look for.
    cudart = 'libcudart.so'
    for name, target in (('lib64', 'lib'), (
            f'lib/{cudart}', f'{cudart}.{home.name[2:]}')):
        if not (home / name).exists():
            (home / name).symlink_to(target)
    return variables


def mmcv_wheel(cuda):
    """Return mmcv's wheel from the cache, compiled if it is not there."""
    torch = run('import of torch', PYTHON, '-c',
                'import torch; print(torch.__version__)').split()[-1]
    version = re.search(rf'(?m)^{MMCV}==(\S+)', read_constraints())[1]
    cache = os.environ.get('SIGPLUG_CACHE') or (
        (os.environ.get('XDG_CACHE_HOME') or '~/.cache') + '/sigplug')
    folder = Path(cache).expanduser().resolve() / (
        f'{MMCV}-{version}-torch-{torch}-python-{OWN}-'
        + ('cuda' if cuda else 'cpu'))
    for wheel in folder.glob('*.whl'):
        return wheel
    print('env: compiling mmcv; this takes a minute or two, once', flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    # mmcv's largest files take nearly 2 GiB each.
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    jobs = max(1, min(os.cpu_count() or 1, memory // 2**31))
    variables = dict(MMCV_WITH_OPS='1', FORCE_CUDA=str(int(cuda)),
                     MAX_JOBS=os.environ.get('MAX_JOBS') or str(jobs),
                     CFLAGS=os.environ.get('CFLAGS', '') + ' -g0 -O2')
    if cuda:
        variables.update(cuda_variables())
    else:
        # mmcv compiles for a GPU as soon as torch sees one.
        variables.update(CUDA_VISIBLE_DEVICES='', HIP_VISIBLE_DEVICES='')
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        plain = mmcv_sources(Path(partial), version)
        joined = Path(partial, 'joined')
        shutil.copytree(plain, joined)
        join_sources(joined / 'mmcv/ops/csrc/pytorch')
        # pip's own cache does not know about torch.
        command = (PYTHON, '-m', 'pip', 'wheel', '-v', '--no-cache-dir',
                   '--no-deps', '--no-build-isolation', '-w', partial)
        try:
            run('compilation of mmcv', *command, joined, **variables)
        except SetupError:
            print('env: once more, each file alone, which takes 5 to 15 '
                  'minutes', flush=True)
            run('compilation of mmcv', *command, plain, **variables)
        wheel, = Path(partial).glob('*.whl')
        return wheel.replace(folder / wheel.name)


def check_stack(wheel):
    """Import the stack and call one of mmcv's operators."""
    try:
        run('import of OpenCV', PYTHON, '-c', 'import cv2')
    except SetupError:
        # opencv-python needs libGL, which a machine without a screen may
        # lack; the headless build of the same version does not.
        pip('headless OpenCV', '--force-reinstall', '--no-deps',
            'opencv-python-headless')
    try:
        run('check of the stack', PYTHON, '-c', CHECK)
    except SetupError as error:
        raise SetupError(f'{error}\nIf mmcv is the reason, also remove '
                         f'{wheel}') from error


def install():
    """Build what is not built yet."""
    state = json.loads(STATE.read_text()) if STATE.is_file() else {}
    before = state.get('wanted', {})
    paths = sorted(path for glob in INPUTS for path in ROOT.glob(glob))
    # Without the variables, operators and documentation stay what they are.
    wanted = dict(
        place=str(VENV), python=OWN,
        cuda={'0': False, '1': True}.get(os.environ.get('FORCE_CUDA'),
                                         before.get('cuda', False)),
        docs=os.environ.get('DOCS') == '1' or before.get('docs', False),
        inputs=hashlib.sha256(
            b''.join(path.read_bytes() for path in paths)).hexdigest())
    # A pip that was stopped may leave half a package, which the next one
    # takes for whole.
    spoilt = not PYTHON.exists() or state.get('busy') or any(
        before.get(name) != wanted[name] for name in ('place', 'python'))
    if not spoilt and before == wanted:
        return
    if spoilt:
        if VENV.exists() and not state and not LOG.exists():
            raise SetupError(f'{VENV} was not made by this script: rename it '
                             'or remove it')
        check_compiler()
        # The Python that runs this may be the one in the environment.
        run('virtual environment', os.path.realpath(sys.executable), '-m',
            'venv', '--clear', VENV)
    STATE.write_text(json.dumps(dict(wanted=wanted, busy=True)))
    pip_lists('build tools', 'build')
    pip('torch', 'torch', 'numpy')
    with ThreadPoolExecutor() as pool:
        # The compilation stays in this thread, which Ctrl-C stops: one that
        # fails is tried in another way. For CUDA it needs pip itself.
        stack = pool.submit(install_stack, wanted['cuda'])
        if wanted['cuda']:
            stack.result()
        wheel = mmcv_wheel(wanted['cuda'])
        stack.result()
    pip('mmcv', '--force-reinstall', '--no-deps', wheel)
    pip('sigplug', '--no-deps', '--no-build-isolation', '-e', ROOT)
    # Python would warn of their escape sequences at the first import.
    run('byte code', PYTHON, '-W', 'ignore', '-m', 'compileall', '-q', '-j0',
        *VENV.glob('lib/*/site-packages/mm*/'))
    check_stack(wheel)
    if wanted['docs']:
        pip_lists('documentation', 'docs')
    STATE.write_text(json.dumps(dict(wanted=wanted, busy=False)))


def main():
    # Packages of other installations must not mix in.
    os.environ.update(PYTHONPATH='', PYTHONHOME='',
                      # torch looks for ninja on the PATH.
                      PATH=f'{VENV}/bin:{os.environ.get("PATH", "")}')
    try:
        check_python()
        read_constraints()
        # Be the only set-up in this repository.
        fcntl.flock(os.open(ROOT, os.O_RDONLY), fcntl.LOCK_EX)
        install()
    except (SetupError, OSError) as error:
        return f'env: {error}'
    except KeyboardInterrupt:
        print('\nenv: stopped', file=sys.stderr)
        return 130
    print(f'env: {VENV.name} is complete', flush=True)
    return 0


if __name__ == '__main__':
    if len(sys.argv) > 1:
        sys.exit('env: takes no arguments but environment variables, see the '
                 'top of this file')
    sys.exit(main())
