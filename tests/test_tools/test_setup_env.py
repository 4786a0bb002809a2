import ast
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'tools' / 'misc' / 'setup_env.py'
PYTHON = '{}.{}'.format(*sys.version_info[:2])
FACTS = dict(
    torch='2.13.0+cpu', python='cpython-311-x86_64-linux-gnu',
    platform='linux-x86_64', libc='glibc-2.36', gpus=['9.0'])

needs_make = pytest.mark.skipif(not shutil.which('make'), reason='no make')
needs_compiler = pytest.mark.skipif(
    not shutil.which('c++'), reason='no C++ compiler')


@pytest.fixture(scope='module')
def setup_env():
    spec = importlib.util.spec_from_file_location('setup_env', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cache(setup_env, tmp_path):
    return setup_env.WheelCache(tmp_path / 'cache')


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'
    path.write_bytes(os.urandom(5000))
    return path


@pytest.fixture
def repo(tmp_path):
    """A repository with only what the script reads."""
    root = tmp_path / 'repo'
    for name in ('setup.py', 'sigplug/version.py', 'tools/misc/setup_env.py',
                 'Makefile'):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    shutil.copytree(ROOT / 'requirements', root / 'requirements')
    return root


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def make_complete(setup_env, root):
    """Fake the result of a finished set-up."""
    venv = root / '.venv'
    write_script(venv / 'bin' / 'python', '#!/bin/sh\n')
    site = venv / 'lib' / f'python{PYTHON}' / 'site-packages'
    (site / 'numpy-1.26.4.dist-info').mkdir(parents=True)
    state = dict(
        place=str(venv), python=PYTHON, cuda=False, complete=True, busy=None,
        inputs=setup_env.hash_inputs(root), done=['build tools'], mmcv=None,
        installed=['numpy-1.26.4.dist-info'])
    (venv / setup_env.STATE_FILE).write_text(json.dumps(state))
    return venv, state


def clean_environ(**changes):
    environ = {k: v for k, v in os.environ.items()
               if k not in ('FORCE_CUDA', 'MAKEFLAGS', 'MAKELEVEL', 'PYTHON')}
    return dict(environ, **changes)


# -- Python, compiler, disk --------------------------------------------------


@pytest.mark.parametrize('kwargs', [
    dict(info=(3, 9, 18)), dict(info=(3, 13, 0)), dict(info=(2, 7, 18)),
    dict(implementation='pypy'), dict(is_64bit=False)
])
def test_wrong_python_is_named_with_remedy(setup_env, kwargs):
    with pytest.raises(setup_env.SetupError) as info:
        setup_env.check_python(**kwargs)
    text = str(info.value)
    assert 'Wrong Python' in text and '3.10 to 3.12' in text
    assert 'make env PYTHON=python3.11' in text
    if 'info' in kwargs:
        assert '{}.{}'.format(*kwargs['info']) in text


@pytest.mark.parametrize('minor', [10, 11, 12])
def test_supported_python(setup_env, minor):
    setup_env.check_python((3, minor, 1), 'cpython', True)


def test_old_python_can_parse_the_script():
    """It must get as far as the message about the version."""
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


def test_script_needs_standard_library_only():
    names = {
        alias.name.partition('.')[0]
        for node in ast.walk(ast.parse(SCRIPT.read_text()))
        if isinstance(node, ast.Import) for alias in node.names
    } | {
        node.module.partition('.')[0]
        for node in ast.walk(ast.parse(SCRIPT.read_text()))
        if isinstance(node, ast.ImportFrom)
    }
    assert names <= sys.stdlib_module_names


@needs_make
def test_make_without_python(repo):
    done = subprocess.run(
        ['make', 'env', 'PYTHON=no-such-python'], cwd=repo, text=True,
        capture_output=True, env=clean_environ())
    assert done.returncode
    assert 'no no-such-python: install Python 3.10' in done.stderr
    assert not (repo / '.venv').exists()


@needs_make
def test_make_passes_python_and_keeps_the_old_one(repo, tmp_path):
    """Without PYTHON=, an environment of another Python is kept."""
    log = tmp_path / 'log'
    fake = f'#!/bin/sh\n[ "$1" = -c ] || echo "$0 $@" >> {log}\n'
    write_script(tmp_path / 'bin' / 'python3.11', fake)
    write_script(tmp_path / 'bin' / 'other', fake)
    path = f'{tmp_path / "bin"}{os.pathsep}{os.environ["PATH"]}'
    for arguments in (['env'], ['env', 'PYTHON=other']):
        subprocess.run(['make', *arguments], cwd=repo, check=True,
                       env=clean_environ(PATH=path))
    first, second = log.read_text().splitlines()
    assert first.endswith('python3.11 tools/misc/setup_env.py --keep-python')
    assert second.endswith('other tools/misc/setup_env.py')


def test_missing_ensurepip(setup_env):
    with pytest.raises(setup_env.SetupError, match=f'python{PYTHON}-venv'):
        setup_env.check_venv_module(
            lambda name: None if name == 'ensurepip' else object())
    setup_env.check_venv_module()


def test_no_compiler(setup_env, tmp_path):
    with pytest.raises(setup_env.SetupError) as info:
        setup_env.check_compiler({'PATH': str(tmp_path)})
    assert 'c++ is not on the PATH' in str(info.value)
    assert 'apt install build-essential' in str(info.value)


def test_broken_compiler(setup_env, tmp_path):
    fake = write_script(tmp_path / 'c++',
                        '#!/bin/sh\necho "error: -std=c++17?"; exit 1\n')
    with pytest.raises(setup_env.SetupError, match='cannot compile') as info:
        setup_env.check_compiler({
            'PATH': os.environ['PATH'], 'CXX': str(fake),
            'LDCXXSHARED': str(fake)})
    assert '-std=c++17?' in str(info.value)


def test_no_python_headers(setup_env, tmp_path, monkeypatch):
    compiler = write_script(tmp_path / 'c++', '#!/bin/sh\n')
    monkeypatch.setattr(setup_env.sysconfig, 'get_path',
                        lambda *_: str(tmp_path / 'include'))
    with pytest.raises(setup_env.SetupError, match=f'python{PYTHON}-dev'):
        setup_env.check_compiler({
            'PATH': str(tmp_path), 'LDCXXSHARED': str(compiler)})


@needs_compiler
def test_real_compiler_passes(setup_env):
    include = setup_env.sysconfig.get_path('include', 'posix_prefix')
    if not Path(include, 'Python.h').exists():
        pytest.skip('no Python headers')
    setup_env.check_compiler(dict(os.environ))


def test_disk(setup_env, tmp_path, monkeypatch, capsys):
    free = shutil.disk_usage(tmp_path)._replace
    monkeypatch.setattr(setup_env.shutil, 'disk_usage',
                        lambda _: free(free=2 * setup_env.GIB))
    with pytest.raises(setup_env.SetupError, match=r'2\.0 GiB free'):
        setup_env.check_disk(tmp_path)
    monkeypatch.setattr(setup_env.shutil, 'disk_usage',
                        lambda _: free(free=7 * setup_env.GIB))
    setup_env.check_disk(tmp_path)
    assert 'CUDA' in capsys.readouterr().out


def test_count_jobs(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env.os, 'sched_getaffinity',
                        lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(setup_env, 'find_memory',
                        lambda: [64 * 2**30, 9 * 2**30])
    assert setup_env.count_jobs({}) == 4
    assert setup_env.count_jobs({'MAX_JOBS': '7'}) == 7
    monkeypatch.setattr(setup_env, 'find_memory', lambda: [2**30])
    assert setup_env.count_jobs({}) == 1
    monkeypatch.setattr(setup_env, 'find_memory', list)
    assert setup_env.count_jobs({}) == 16


# -- Commands that fail ------------------------------------------------------


def run_and_fail(setup_env, tmp_path, command, **environ):
    log = tmp_path / 'step.log'
    with pytest.raises(setup_env.SetupError) as info:
        setup_env.run('the step', command, log, clean_environ(**environ))
    return info.value, log


def test_network_unreachable(setup_env, tmp_path):
    command = [sys.executable, '-m', 'pip', '--isolated', 'download',
               '--retries', '1', '--index-url', 'http://127.0.0.1:9/',
               '--no-deps', 'sigplug']
    error, _ = run_and_fail(setup_env, tmp_path, command)
    assert error.remedy == setup_env.NETWORK_REMEDY
    assert 'the step failed' in str(error) and 'step.log' in str(error)


def test_version_not_in_index(setup_env, tmp_path):
    command = [sys.executable, '-m', 'pip', '--isolated', 'download',
               '--no-index', '--find-links', tmp_path, 'torch==2.13.0']
    error, _ = run_and_fail(setup_env, tmp_path, command)
    assert 'does not have this version' in error.remedy
    assert 'torch==2.13.0' in error.details


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_disk_full(setup_env, tmp_path):
    code = "print('x', file=open('/dev/full', 'w'), flush=True)"
    error, _ = run_and_fail(setup_env, tmp_path, [sys.executable, '-c', code])
    assert error.remedy == setup_env.DISK_REMEDY


@needs_compiler
def test_compiler_without_headers(setup_env, tmp_path):
    source = tmp_path / 'a.cpp'
    source.write_text('#include <Python.h>\n')
    # As a first path, an empty folder: the compiler's own do not have it.
    error, _ = run_and_fail(setup_env, tmp_path,
                            ['c++', '-I', tmp_path, '-c', source])
    assert error.remedy == setup_env.HEADERS_REMEDY


def test_killed_for_memory(setup_env, tmp_path):
    code = 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)'
    error, _ = run_and_fail(setup_env, tmp_path, [sys.executable, '-c', code])
    assert error.remedy == setup_env.MEMORY_REMEDY


@pytest.mark.parametrize('line, remedy', [
    ('c++: fatal error: Killed signal terminated program cc1plus',
     'MAX_JOBS=1'),
    ('OSError: CUDA_HOME environment variable is not set.', 'FORCE_CUDA=0'),
    ("error: unable to execute 'g++': No such file", 'build-essential'),
    ('RuntimeError: Error compiling objects for extension', 'CXX='),
    ('ERROR: something nobody thought of', 'remove .venv'),
])
def test_remedies(setup_env, line, remedy):
    # A network error that a retry overcame does not hide the cause.
    log = f"WARNING: Retrying after 'NewConnectionError'\n{line}\n"
    if 'nobody' in line:
        log = line
    assert remedy in setup_env.find_remedy(log, 1)


def test_log_and_relevant_lines(setup_env, tmp_path):
    code = ("import sys; print('noise\\n' * 50); print('error: the cause');"
            "print('noise\\n' * 50); sys.exit(3)")
    error, log = run_and_fail(setup_env, tmp_path,
                              [sys.executable, '-c', code])
    assert 'exit status 3' in str(error)
    assert error.details == 'error: the cause'
    assert log.read_text().count('noise') >= 100


def test_interrupt_ends_grandchildren(setup_env, tmp_path):
    pid = tmp_path / 'pid'

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        setup_env.run(
            'sleep',
            ['sh', '-c', f'sleep 60 & echo $! > {pid}; wait'],
            tmp_path / 'log', dict(os.environ), interrupt)
    deadline = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(int(pid.read_text()), 0)
            time.sleep(0.05)


def test_ninja_progress(setup_env):
    assert setup_env.ninja_progress('') == ''
    log = '  [1/77] c++ a\n  [23/77] c++ b\nerror [9/9]\n'
    assert setup_env.ninja_progress(log) == ', file 23 of 77'


def test_environ_keeps_pip_configuration(setup_env, tmp_path, monkeypatch):
    for name in ('PYTHONPATH', 'PIP_TARGET'):
        monkeypatch.setenv(name, '/foreign')
    for name in ('PIP_INDEX_URL', 'PIP_FIND_LINKS', 'PIP_CERT'):
        monkeypatch.setenv(name, 'mine')
    environ = setup_env.make_environ(tmp_path)
    assert '/foreign' not in environ.values()
    assert environ['PIP_INDEX_URL'] == environ['PIP_CERT'] == 'mine'
    assert environ['PIP_FIND_LINKS'] == 'mine'
    assert environ['PATH'].startswith(f'{tmp_path}/bin{os.pathsep}')


# -- Key and cache -----------------------------------------------------------


def test_key_holds_what_the_wheel_depends_on(setup_env):
    def key(mmcv='2.1.0', cuda=False, environ=None, **facts):
        return setup_env.make_key(dict(FACTS, **facts), mmcv, cuda,
                                  environ or {})

    keys = [
        key(), key(mmcv='2.2.0'), key(torch='2.13.0'), key(torch='2.12.0+cpu'),
        key(python='cpython-312-x86_64-linux-gnu'),
        key(platform='linux-aarch64'), key(libc='glibc-2.31'), key(cuda=True),
        key(cuda=True, gpus=['8.0']), key(environ={'CXX': 'clang++'}),
        key(cuda=True, environ={'TORCH_CUDA_ARCH_LIST': '8.0'})
    ]
    assert len({json.dumps(k, sort_keys=True) for k in keys}) == len(keys)
    # GPUs do not matter to a wheel for the CPU, nor do other variables.
    assert key(gpus=[]) == key(environ={'HOME': '/x', 'CUDA_HOME': '/y'})
    assert key(gpus=[]) == key()


def test_find_cache(setup_env, tmp_path, monkeypatch):
    find = setup_env.find_cache
    monkeypatch.setenv('HOME', str(tmp_path))
    xdg = {'XDG_CACHE_HOME': str(tmp_path / 'xdg')}
    assert find(dict(xdg, SIGPLUG_CACHE='~/own')) == tmp_path / 'own'
    assert find(xdg) == tmp_path / 'xdg' / 'sigplug'
    assert find({}) == tmp_path / '.cache' / 'sigplug'
    assert find({'XDG_CACHE_HOME': 'rel'}) == tmp_path / '.cache' / 'sigplug'


def make_key(setup_env, **facts):
    return setup_env.make_key(dict(FACTS, **facts), '2.1.0', False, {})


def test_cache_returns_what_was_stored(setup_env, cache, wheel, tmp_path):
    key = make_key(setup_env)
    assert cache.fetch(key, tmp_path / 'out') is None
    assert not cache.may_have('2.1.0', FACTS['python'])
    cache.store(key, wheel)
    copy = cache.fetch(key, tmp_path / 'out')
    assert copy == tmp_path / 'out' / wheel.name
    assert copy.read_bytes() == wheel.read_bytes()
    assert cache.may_have('2.1.0', FACTS['python'])
    assert not cache.may_have('2.1.0', 'cpython-312-x86_64-linux-gnu')
    assert cache.fetch(make_key(setup_env, torch='2.13.0'), tmp_path) is None
    cache.discard(key)
    assert cache.fetch(key, tmp_path / 'out') is None


def truncate(entry, wheel):
    (entry / wheel.name).write_bytes(wheel.read_bytes()[:-1])


def replace(entry, wheel):
    (entry / wheel.name).write_bytes(os.urandom(5000))


def remove_wheel(entry, wheel):
    (entry / wheel.name).unlink()


def cut_record(entry, wheel):
    text = (entry / 'entry.json').read_text()
    (entry / 'entry.json').write_text(text[:-20])


def point_outside(entry, wheel):
    record = json.loads((entry / 'entry.json').read_text())
    record['wheel'] = f'../../{wheel.name}'
    (entry / 'entry.json').write_text(json.dumps(record))


def take_key_of_other_torch(entry, wheel):
    record = json.loads((entry / 'entry.json').read_text())
    record['key']['torch'] = '2.12.0+cpu'
    (entry / 'entry.json').write_text(json.dumps(record))


@pytest.mark.parametrize('damage', [
    truncate, replace, remove_wheel, cut_record, point_outside,
    take_key_of_other_torch
])
def test_cache_rejects(setup_env, cache, wheel, tmp_path, damage):
    key = make_key(setup_env)
    cache.store(key, wheel)
    entry, = cache.folder.iterdir()
    damage(entry, wheel)
    assert cache.fetch(key, tmp_path / 'out') is None
    assert not list((tmp_path / 'out').glob('*'))
    # Compiled again, it is used again.
    cache.store(key, wheel)
    assert cache.fetch(key, tmp_path / 'out')


def test_store_that_fails_leaves_no_wheel(setup_env, cache, wheel, tmp_path,
                                          monkeypatch):
    def fail(*_):
        raise OSError(28, 'No space left on device')

    key = make_key(setup_env)
    with monkeypatch.context() as patch:
        patch.setattr(setup_env.shutil, 'copyfile', fail)
        with pytest.raises(OSError):
            cache.store(key, wheel)
    assert cache.fetch(key, tmp_path / 'out') is None
    assert not list(cache.folder.rglob('*.tmp'))


def test_concurrent_stores_never_mix(setup_env, cache, tmp_path):
    """A reader gets a whole wheel of one writer; without the lock, or none."""
    key, stop = make_key(setup_env), threading.Event()
    name = 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'
    contents = [bytes([i]) * 300_000 for i in range(2)]
    for i, content in enumerate(contents):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / name).write_bytes(content)

    def write(wheel):
        while not stop.is_set():
            with cache.lock(key):
                cache.store(key, wheel)

    cache.store(key, tmp_path / '0' / name)
    threads = [threading.Thread(target=write, args=(tmp_path / i / name, ))
               for i in '01']
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            copy = cache.fetch(key, tmp_path / 'out')
            assert copy is None or copy.read_bytes() in contents
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    with cache.lock(key):
        assert cache.fetch(key, tmp_path / 'out').read_bytes() in contents


def test_lock_excludes(setup_env, tmp_path, capsys):
    order = []

    def second():
        with setup_env.locked(tmp_path, 'test'):
            order.append('second')

    thread = threading.Thread(target=second)
    with setup_env.locked(tmp_path, 'test'):
        thread.start()
        time.sleep(0.3)
        order.append('first')
    thread.join(timeout=10)
    assert order == ['first', 'second']


# -- What is up to date ------------------------------------------------------


def remove_package(venv, state):
    next(venv.glob('lib/*/site-packages/*')).rmdir()


def upgrade_package(venv, state):
    site = next(venv.glob('lib/*/site-packages'))
    (site / 'numpy-1.26.4.dist-info').rename(site / 'numpy-2.0.0.dist-info')


def remove_python(venv, state):
    (venv / 'bin' / 'python').unlink()
    (venv / 'bin' / 'python').symlink_to('/nowhere/python')


def mark_incomplete(venv, state):
    state['complete'] = False


def mark_moved(venv, state):
    state['place'] = '/elsewhere/.venv'


def change_constraints(venv, state):
    path = venv.parent / 'requirements' / 'constraints.txt'
    path.write_text(path.read_text().replace('numpy==1.26.4', 'numpy==1.26.3'))


def change_script(venv, state):
    with (venv.parent / 'tools/misc/setup_env.py').open('a') as file:
        file.write('# changed\n')


@pytest.mark.parametrize('change', [
    None, remove_package, upgrade_package, remove_python, mark_incomplete,
    mark_moved, change_constraints, change_script
])
def test_is_current(setup_env, repo, change):
    venv, state = make_complete(setup_env, repo)
    if change:
        change(venv, state)
    assert setup_env.is_current(
        state, venv, setup_env.hash_inputs(repo), PYTHON,
        None) == (change is None)


def test_is_current_compares_what_is_asked_for(setup_env, repo):
    venv, state = make_complete(setup_env, repo)
    inputs = state['inputs']

    def check(python=PYTHON, cuda=None, state=state):
        return setup_env.is_current(state, venv, inputs, python, cuda)

    assert check() and check(python=None) and check(cuda=False)
    assert not check(python='3.9') and not check(cuda=True)
    assert not check(state=None) and not check(state={})


def test_up_to_date_is_quick_and_changes_nothing(setup_env, repo):
    make_complete(setup_env, repo)
    before = {p: p.stat().st_mtime_ns for p in repo.rglob('*')}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, 'tools/misc/setup_env.py'], cwd=repo, text=True,
        capture_output=True, env=clean_environ())
    elapsed = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'env: .venv is up to date\n'
    assert {p: p.stat().st_mtime_ns for p in repo.rglob('*')} == before
    assert elapsed < 1


@pytest.mark.parametrize('text', ['', '[]', '{"complete": true', '\0'])
def test_damaged_state_counts_as_none(setup_env, tmp_path, text):
    (tmp_path / 'state.json').write_text(text)
    assert setup_env.read_json(tmp_path / 'state.json') is None


# -- Steps -------------------------------------------------------------------


@pytest.fixture
def setup(setup_env, repo, tmp_path, monkeypatch):
    monkeypatch.setenv('SIGPLUG_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(setup_env, 'ROOT', repo)
    return setup_env.Setup(repo, cuda=False)


def test_foreign_venv_is_moved_aside(setup_env, setup, monkeypatch):
    """And a real one is made in its place."""
    monkeypatch.setattr(setup, 'check_build', lambda: None)
    (setup.venv / 'lib').mkdir(parents=True)
    (setup.venv / 'mine.txt').write_text('mine')
    setup.prepare('inputs')
    aside, = setup.root.glob('.venv.*')
    assert (aside / 'mine.txt').read_text() == 'mine'
    assert not (setup.venv / 'mine.txt').exists()
    assert subprocess.run([setup.python, '-m', 'pip', '--version'],
                          capture_output=True).returncode == 0
    state = setup_env.read_json(setup.venv / setup_env.STATE_FILE)
    assert state['busy'] is None and state['done'] == []
    assert not state['complete']


def test_half_made_venv_is_not_trusted(setup_env, setup):
    venv, state = make_complete(setup_env, setup.root)
    assert setup.why_afresh(state) == ''
    assert 'not made by' in setup.why_afresh(None)
    assert 'not made by' in setup.why_afresh({'complete': True})
    assert 'stopped in: torch' in setup.why_afresh(dict(state, busy='torch'))
    assert 'moved' in setup.why_afresh(dict(state, place='/other/.venv'))
    assert 'Python 3.9' in setup.why_afresh(dict(state, python='3.9'))
    (venv / 'bin' / 'python').write_text('#!/bin/sh\nexit 1\n')
    assert 'does not run' in setup.why_afresh(state)


def test_own_venv_is_removed(setup_env, setup):
    venv, state = make_complete(setup_env, setup.root)
    setup.clear(state, 'a test')
    assert not venv.exists() and not list(setup.root.glob('.venv*'))


@pytest.mark.parametrize('changes, kept', [
    (dict(complete=False), True),
    (dict(complete=False, inputs='old'), False),
    (dict(complete=False, cuda=True), False),
    (dict(), False),  # complete, yet not current: something was altered
])
def test_prepare_takes_up_an_interrupted_set_up(setup_env, setup, changes,
                                                kept):
    venv, state = make_complete(setup_env, setup.root)
    state = dict(state, **changes)
    setup_env.write_json(venv / setup_env.STATE_FILE, state)
    setup.prepare(setup_env.hash_inputs(setup.root))
    assert setup.state['done'] == (state['done'] if kept else [])
    assert setup.state['cuda'] is False
    assert not setup_env.read_json(venv / setup_env.STATE_FILE)['complete']


FAKE_PYTHON = """#!/bin/sh
# Stands for .venv/bin/python: records its calls; `pip wheel` makes a wheel,
# code runs well once a compiled wheel is installed.
here=$(dirname "$0")
echo "$@" >> "$here/calls"
case "$3" in
  wheel)
    env > "$here/environ"
    while [ "$1" != -w ]; do shift; done
    echo compiled > "$2/mmcv-2.1.0-cp311-cp311-linux_x86_64.whl" ;;
  install)
    for wheel; do :; done
    cp "$wheel" "$here/installed" 2>/dev/null
    echo Installing collected packages ;;
  *)
    [ "$1" = -c ] && grep -q compiled "$here/installed" ;;
esac
"""


@pytest.fixture
def fake(setup_env, setup, monkeypatch):
    """A set-up whose environment has a fake Python and pip."""
    _, setup.state = make_complete(setup_env, setup.root)
    setup.state.update(complete=False, done=[])
    write_script(setup.python, FAKE_PYTHON)
    monkeypatch.setattr(setup_env, 'check_compiler', lambda environ: None)
    monkeypatch.setattr(setup, 'read_facts', lambda: dict(FACTS, gpus=[]))
    return setup


def read_calls(setup):
    return (setup.python.parent / 'calls').read_text()


def test_mmcv_is_compiled_for_the_cpu(fake, monkeypatch):
    for name, value in dict(CFLAGS='-Dx', CUDA_VISIBLE_DEVICES='0',
                            FORCE_MLU='1', MAX_JOBS='3').items():
        monkeypatch.setitem(fake.environ, name, value)
    monkeypatch.delitem(fake.environ, 'FORCE_MLU')
    fake.install_mmcv()
    environ = dict(
        line.partition('=')[::2] for line in
        (fake.python.parent / 'environ').read_text().splitlines())
    assert environ['MMCV_WITH_OPS'] == '1' and environ['FORCE_CUDA'] == '0'
    assert environ['CUDA_VISIBLE_DEVICES'] == ''
    assert environ['CFLAGS'] == '-Dx -g0 -O2'
    assert environ['CXXFLAGS'] == '-g0 -O2'
    assert environ['MAX_JOBS'] == '3'
    # pip's own cache of wheels does not know torch.
    call, = (c for c in read_calls(fake).splitlines() if ' wheel ' in c)
    for option in ('--no-cache-dir', '--no-build-isolation',
                   '--no-binary mmcv', '--no-deps', 'mmcv==2.1.0'):
        assert option in call
    fake.check_mmcv()


def test_cached_wheel_saves_the_compilation(fake):
    fake.install_mmcv()
    (fake.python.parent / 'calls').unlink()
    fake.state['mmcv'] = None
    fake.install_mmcv()
    assert ' wheel ' not in read_calls(fake)
    assert fake.state['mmcv']['cached']


def test_installed_mmcv_of_the_same_key_stays(fake):
    fake.install_mmcv()
    site = next(fake.venv.glob('lib/*/site-packages'))
    (site / 'mmcv-2.1.0.dist-info').mkdir()
    (fake.python.parent / 'calls').unlink()
    fake.install_mmcv()
    assert not (fake.python.parent / 'calls').exists()
    # Another torch: the key is another.
    fake.read_facts = lambda: dict(FACTS, torch='2.14.0', gpus=[])
    fake.install_mmcv()
    assert ' wheel ' in read_calls(fake)


def test_cached_wheel_that_fails_is_replaced(setup_env, fake, tmp_path,
                                             capsys):
    bad = tmp_path / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'
    bad.write_text('broken')
    key = make_key(setup_env, gpus=[])
    fake.cache.store(key, bad)
    fake.install_mmcv()
    assert fake.state['mmcv']['cached']
    fake.check_mmcv()
    assert 'discarded' in capsys.readouterr().out
    copy = fake.cache.fetch(key, tmp_path / 'out')
    assert copy.read_text() == 'compiled\n'
    assert not fake.state['mmcv']['cached']


def test_compiled_wheel_that_fails_is_reported(setup_env, fake, tmp_path):
    write_script(fake.python, FAKE_PYTHON.replace(
        'grep -q compiled', '{ echo ImportError: _ext; false; } && test'))
    fake.install_mmcv()
    with pytest.raises(setup_env.SetupError, match='do not work') as info:
        fake.check_mmcv()
    assert 'ImportError: _ext' in str(info.value)
    assert fake.cache.fetch(make_key(setup_env), tmp_path / 'out') is None


def test_unwritable_cache_is_no_obstacle(setup_env, fake, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    fake.cache = setup_env.WheelCache(tmp_path / 'file' / 'cache')
    fake.install_mmcv()
    assert 'is not kept' in capsys.readouterr().out
    fake.check_mmcv()


@pytest.mark.parametrize('output, spoilt', [
    ('ERROR: No matching distribution found for torch', False),
    ('Installing collected packages: torch', True),
])
def test_failed_pip(setup_env, fake, output, spoilt):
    write_script(fake.python, f'#!/bin/sh\necho "{output}"\nexit 1\n')
    with pytest.raises(setup_env.SetupError, match='torch failed'):
        fake.install_torch()
    state = setup_env.read_json(fake.venv / setup_env.STATE_FILE)
    assert (state['busy'] == 'torch') == spoilt


def test_killed_pip_leaves_its_mark(setup_env, setup):
    """SIGKILL in the middle of an installation: no chance to clean up."""
    venv, state = make_complete(setup_env, setup.root)
    state.update(complete=False, done=[])
    setup_env.write_json(venv / setup_env.STATE_FILE, state)
    write_script(venv / 'bin' / 'python',
                 '#!/bin/sh\n[ "$1" = -c ] || exec sleep 60\n')
    process = subprocess.Popen(
        [sys.executable, 'tools/misc/setup_env.py'], cwd=setup.root,
        env=clean_environ(), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            state = setup_env.read_json(venv / setup_env.STATE_FILE)
            if state['busy']:
                break
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        kill_sleepers(setup.root)
    assert 'stopped in: build tools' in setup.why_afresh(state)


def kill_sleepers(root):
    """End what a killed set-up left behind, found by its folder."""
    for path in Path('/proc').glob('[0-9]*/cwd'):
        try:
            if path.resolve() == root:
                os.kill(int(path.parent.name), signal.SIGKILL)
        except OSError:
            continue


def test_keep_python_hands_over_to_the_python_of_the_environment(
        setup_env, repo):
    venv, state = make_complete(setup_env, repo)
    setup_env.write_json(venv / setup_env.STATE_FILE,
                         dict(state, python='3.99', inputs='old'))
    write_script(venv / 'bin' / 'python', '#!/bin/sh\necho "$0 $@"\n')
    script = repo / 'tools' / 'misc' / 'setup_env.py'
    done = subprocess.run(
        [sys.executable, str(script), '--keep-python'], check=True,
        # Should it not hand over: without a compiler it gets nowhere.
        capture_output=True, text=True, env=clean_environ(PATH='/nowhere'))
    assert done.stdout == f'{venv}/bin/python {script}\n'


def test_read_pin(setup_env, repo):
    assert setup_env.read_pin(repo, 'mmcv') == '2.1.0'
    with pytest.raises(setup_env.SetupError, match='No version of nothing'):
        setup_env.read_pin(repo, 'nothing')
