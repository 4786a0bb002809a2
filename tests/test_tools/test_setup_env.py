import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from conftest import load_tool

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = 'tools/misc/setup_env.py'
PYTHON = '{}.{}'.format(*sys.version_info[:2])
FACTS = dict(
    torch='2.13.0+cpu', python='cpython-311-x86_64-linux-gnu',
    platform='linux-x86_64', libc='glibc-2.36', cuda=[])
WHEEL = 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'

needs_make = pytest.mark.skipif(not shutil.which('make'), reason='no make')
needs_compiler = pytest.mark.skipif(
    not shutil.which('c++')
    or not Path(sysconfig.get_path('include'), 'Python.h').exists(),
    reason='no C++ compiler or no Python headers')


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A repository with only what the script reads."""
    monkeypatch.delenv('COLUMN', raising=False)
    root = tmp_path / 'repo'
    for name in ('setup.py', 'sigplug/version.py', SCRIPT, 'Makefile'):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    shutil.copytree(ROOT / 'requirements', root / 'requirements')
    return root


@pytest.fixture
def setup_env(repo, tmp_path, monkeypatch):
    """The script of ``repo``, whose ``.venv`` holds no more than its logs."""
    monkeypatch.setenv('SIGPLUG_CACHE', str(tmp_path / 'cache'))
    (repo / '.venv').mkdir()
    module = load_tool(repo / SCRIPT)
    for name in (*module.BUILD_VARIABLES, 'FORCE_CUDA', 'MAX_JOBS'):
        monkeypatch.delenv(name, raising=False)
    return module


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n{text}')
    path.chmod(0o755)


def make_complete(setup_env, **changes):
    """Fake the result of a finished set-up."""
    write_script(setup_env.PYTHON, '')
    site = setup_env.VENV / 'lib' / f'python{PYTHON}' / 'site-packages'
    (site / 'numpy-1.26.4.dist-info').mkdir(parents=True)
    setup = setup_env.Setup()
    setup.save(**{**setup.wanted, 'busy': None, 'done': ['torch'],
                  'installed': setup_env.list_installed(), **changes})


def start(repo):
    return subprocess.Popen(
        [sys.executable, SCRIPT], cwd=repo, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def shell(command, folder):
    subprocess.run(command, shell=True, check=True, cwd=folder)


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- Python and compiler -----------------------------------------------------


def test_wrong_python_is_named_with_remedy(setup_env):
    for version in ('3.10', '3.11', '3.12'):
        setup_env.check_python(version)
    for version in ('2.7', '3.9', '3.13'):
        with pytest.raises(setup_env.SetupError) as info:
            setup_env.check_python(version)
        for text in ('Wrong Python', version, '3.10 to 3.12',
                     'make env PYTHON=python3.11'):
            assert text in str(info.value)


def test_old_python_gets_as_far_as_the_message():
    """About its version: it can parse the script and import its modules."""
    tree = ast.parse((ROOT / SCRIPT).read_text(), feature_version=(3, 6))
    for node in ast.walk(tree):
        # No `list[str]` or `Path | None`.
        for field in ('annotation', 'returns'):
            assert not isinstance(getattr(node, field, None),
                                  (ast.Subscript, ast.BinOp))
        if isinstance(node, ast.Import):
            assert {n.name for n in node.names} <= sys.stdlib_module_names
        if isinstance(node, ast.ImportFrom):
            assert node.module in sys.stdlib_module_names


@needs_make
def test_make_without_python(repo):
    done = subprocess.run(['make', 'env', 'PYTHON=no-such-python'], cwd=repo,
                          text=True, capture_output=True)
    assert done.returncode
    assert 'no no-such-python: install Python 3.10' in done.stderr
    assert not (repo / '.venv').exists()


@needs_make
def test_make_keeps_the_python_of_our_environment(repo, tmp_path, monkeypatch):
    fake = '[ "$1" = -c ] || echo "$0 $@"\n'
    write_script(tmp_path / 'bin' / 'python3.11', fake)
    write_script(tmp_path / 'bin' / 'other', fake)
    write_script(repo / '.venv' / 'bin' / 'python', fake)
    monkeypatch.delenv('PYTHON', raising=False)
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')

    def choose(*arguments):
        return Path(subprocess.check_output(
            ['make', '-s', 'env', *arguments], cwd=repo,
            text=True).split()[0]).name

    assert choose() == 'python3.11'  # the environment is not ours
    (repo / '.venv' / 'setup-env.json').touch()
    assert choose() == 'python'
    assert choose('PYTHON=other') == 'other'
    (repo / '.venv' / 'bin' / 'python').unlink()
    assert choose() == 'python3.11'


@pytest.mark.parametrize('compiler, problem', [
    ('no-such-compiler', 'not found'),
    ('echo "error: unknown option -std=c++17" probe.cpp; exit 1;', 'unknown'),
])
def test_no_compiler(setup_env, monkeypatch, compiler, problem):
    monkeypatch.setenv('CXX', compiler)
    with pytest.raises(setup_env.SetupError, match=problem) as info:
        setup_env.check_compiler('C++ compiler')
    assert 'apt install build-essential' in str(info.value)


@needs_compiler
def test_compiler(setup_env, tmp_path, monkeypatch):
    setup_env.check_compiler('C++ compiler')
    monkeypatch.setattr(setup_env.sysconfig, 'get_path', lambda *_: tmp_path)
    with pytest.raises(setup_env.SetupError, match=f'python{PYTHON}-dev'):
        setup_env.check_compiler('C++ compiler')


# -- Commands that fail ------------------------------------------------------


def fail(setup_env, *command):
    with pytest.raises(setup_env.SetupError, match='the step failed') as info:
        setup_env.run('the step', [sys.executable, *command])
    assert '.venv/setup-logs/the-step.log' in str(info.value)
    return str(info.value)


def test_network_unreachable(setup_env):
    text = fail(setup_env, '-m', 'pip', '--isolated', 'download', '--retries',
                '1', '--index-url', 'http://127.0.0.1:9/', 'no-such-package')
    assert 'Check the network' in text and 'no-such-package' in text


@pytest.mark.parametrize('line, remedy', [
    ('c++: fatal error: Killed signal terminated program cc1plus',
     'MAX_JOBS=1'),
    ('because ensurepip is not available.', f'python{PYTHON}-venv'),
    ('OSError: CUDA_HOME environment variable is not set.', 'FORCE_CUDA=0'),
    ("error: unable to execute 'g++': No such file", 'build-essential'),
    # A network error that a retry overcame does not hide the cause.
    ('NewConnectionError\nError compiling objects for extension', 'CXX='),
    ("[Errno 13] Permission denied: '/cache'", 'SIGPLUG_CACHE'),
    ('No matching distribution found for torch==2.13.0', 'index'),
    ('ERROR: something nobody thought of', 'remove .venv'),
])
def test_remedies(setup_env, line, remedy):
    assert remedy in str(setup_env.SetupError(line))


def test_failing_step(setup_env):
    code = ("import sys; print('noise\\n' * 50); print('error: the cause');"
            "print('noise\\n' * 50); sys.exit(3)")
    text = fail(setup_env, '-c', code)
    assert 'exit status 3' in text and '| error: the cause' in text
    assert 'noise' not in text
    log = setup_env.VENV / 'setup-logs' / 'the-step.log'
    assert log.read_text().count('noise') == 100
    code = "raise OSError(28, 'No space left on device')"
    assert 'free some space' in fail(setup_env, '-c', code)
    code = 'import os; os.kill(os.getpid(), 9)'
    assert 'MAX_JOBS=1' in fail(setup_env, '-c', code)


def test_interrupt_ends_grandchildren(setup_env, tmp_path, monkeypatch):
    """After the sign of life that a long command gives."""
    pid, said = tmp_path / 'pid', []

    def interrupt(text):
        said.append(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(setup_env, 'QUIET_PERIOD', 0.5)
    monkeypatch.setattr(setup_env, 'say', interrupt)
    with pytest.raises(KeyboardInterrupt):
        setup_env.run('sleep', [
            'sh', '-c', f'sleep 60 & echo $! > {pid}; echo "[1/9] c++"; '
            'echo "[2/9] c++"; wait'])
    assert said[0].startswith('sleep ... 0 min') and '[2/9]' in said[0]
    wait_until(lambda: not Path('/proc', pid.read_text().strip()).exists())


# -- Key and cache -----------------------------------------------------------


def test_key_holds_what_the_wheel_depends_on(setup_env, monkeypatch):
    def key(for_cuda=False, mmcv='2.1.0', environ=None, **facts):
        with monkeypatch.context() as patch:
            patch.setattr(setup_env, 'MMCV_VERSION', mmcv)
            for name, value in (environ or {}).items():
                patch.setenv(name, value)
            return setup_env.find_entry(
                setup_env.make_key(dict(FACTS, **facts), for_cuda))

    keys = [
        key(), key(mmcv='2.2.0'), key(torch='2.13.0'), key(torch='2.12.0+cpu'),
        key(python='cpython-312-x86_64-linux-gnu'),
        key(platform='linux-aarch64'), key(libc='glibc-2.31'), key(True),
        key(True, cuda=['8.0']), key(environ={'CXX': 'clang++'}),
        key(True, environ={'TORCH_CUDA_ARCH_LIST': '8.0'})
    ]
    assert len(set(keys)) == len(keys)
    # GPUs do not matter to a wheel for the CPU, nor do other variables.
    assert key(cuda=['8.0']) == key(environ={'CUDA_HOME': '/y'}) == key()
    # Wheels that were stored earlier are still found.
    assert key().name == 'c92f0ad3cede42e1'


def test_find_cache(setup_env, monkeypatch):
    monkeypatch.setenv('HOME', '/me')
    monkeypatch.setenv('XDG_CACHE_HOME', '/xdg')
    monkeypatch.setenv('SIGPLUG_CACHE', '~/own')
    assert setup_env.find_cache() == Path('/me/own/mmcv')
    monkeypatch.delenv('SIGPLUG_CACHE')
    assert setup_env.find_cache() == Path('/xdg/sigplug/mmcv')
    monkeypatch.delenv('XDG_CACHE_HOME')
    assert setup_env.find_cache() == Path('/me/.cache/sigplug/mmcv')


def store(setup_env, content='compiled\n'):
    """Put a wheel into the cache, as if it had been compiled."""
    key = setup_env.make_key(FACTS, False)
    wheel = setup_env.find_entry(key) / WHEEL
    wheel.parent.mkdir(parents=True, exist_ok=True)
    wheel.write_text(content)
    setup_env.write_json(wheel.with_name('entry.json'),
                         setup_env.make_record(key, wheel))
    return key, wheel


@pytest.mark.parametrize('damage', [
    'truncate -s -1 *.whl', 'rm *.whl', 'rm entry.json', 'sed -i s/c/C/ *.whl',
    'truncate -s -20 entry.json', 'sed -i s/2.13.0/2.12.0/ entry.json'
])
def test_damaged_or_foreign_wheel_is_not_used(setup_env, damage):
    key, wheel = store(setup_env)
    assert setup_env.find_wheel(key) == wheel
    shell(damage, wheel.parent)
    assert setup_env.find_wheel(key) is None
    store(setup_env)
    assert setup_env.find_wheel(key) == wheel


# -- What is up to date ------------------------------------------------------


@pytest.mark.parametrize('change', [
    'rmdir .venv/lib/*/site-packages/numpy*',
    'mkdir $(echo .venv/lib/*/site-packages)/numpy-2.0.0.dist-info',
    'ln -sf /nowhere/python .venv/bin/python',
    'sed -i s/numpy==1.26.4/numpy==1.26.3/ requirements/constraints.txt',
    'echo "# changed" >> tools/misc/setup_env.py',
])
def test_a_change_is_noticed(setup_env, repo, monkeypatch, change):
    make_complete(setup_env)
    # Reaching for it means that there is something to do.
    monkeypatch.delattr(setup_env.Setup, 'begin')
    setup_env.Setup().install()
    shell(change, repo)
    with pytest.raises(AttributeError, match='begin'):
        setup_env.Setup().install()


@pytest.mark.parametrize('has', [False, True])
def test_operators_stay_what_they_are_without_flag(setup_env, monkeypatch,
                                                   has):
    make_complete(setup_env, cuda=has)
    for flag, wanted in ('', has), ('0', False), ('1', True):
        monkeypatch.setenv('FORCE_CUDA', flag)
        setup = setup_env.Setup()
        assert setup.wanted['cuda'] == wanted
        assert setup.is_as_wanted == (has == wanted)


def test_up_to_date_is_quick_and_changes_nothing(setup_env, repo):
    make_complete(setup_env)
    before = {p: p.stat().st_mtime_ns for p in repo.rglob('*')}
    begin = os.times().children_user
    process = start(repo)
    assert process.communicate() == ('env: .venv is up to date\n', '')
    assert os.times().children_user - begin < 1
    assert {p: p.stat().st_mtime_ns for p in repo.rglob('*')} == before


def test_second_set_up_waits(setup_env, repo):
    make_complete(setup_env)
    setup_env.wait_for_others()
    process = start(repo)
    assert 'waiting for another' in process.stdout.readline()
    assert process.poll() is None
    process.terminate()
    assert process.wait(10) == 130
    assert 'stopped' in process.communicate()[1]


@pytest.mark.parametrize('changes, reason', [
    ({}, ''), (dict(busy='torch'), 'stopped in: torch'),
    (dict(place='/other/.venv'), 'made as /other/.venv'),
    (dict(python='3.9'), 'with Python 3.9')
])
def test_what_cannot_be_built_upon(setup_env, changes, reason):
    make_complete(setup_env, **changes)
    why = setup_env.Setup().why_afresh()
    assert reason in why and bool(reason) == bool(why)
    setup_env.PYTHON.unlink()
    assert setup_env.Setup().why_afresh()
    for damaged in ('', '[]', '5', '{"place": 1', '\0'):
        setup_env.STATE_FILE.write_text(damaged)
        assert 'not made by this script' in setup_env.Setup().why_afresh()


# -- Steps -------------------------------------------------------------------


@pytest.mark.parametrize('ours', [True, False])
def test_venv_is_made_anew(setup_env, repo, tmp_path, monkeypatch, ours):
    """In the place of a spoilt one of ours; one of others is kept."""
    if ours:
        make_complete(setup_env, busy='torch')
    (setup_env.VENV / 'mine.txt').write_text('mine')
    monkeypatch.setattr(setup_env, 'BASE_PYTHON', tmp_path / 'python')
    write_script(tmp_path / 'python', '[ "$*" = "-m venv $3" ]; mkdir $3/bin;'
                 'cp "$0" $3/bin/python')
    setup_env.Setup().begin()
    kept = [path.read_text() for path in repo.glob('.venv.*/mine.txt')]
    assert kept == ([] if ours else ['mine'])
    assert not (setup_env.VENV / 'mine.txt').exists()
    setup = setup_env.Setup()
    assert setup.why_afresh() == '' and setup.is_as_wanted
    assert setup.state['done'] == [] and setup.state['installed'] is None


def test_documentation_is_installed_once(setup_env, monkeypatch):
    """``make env`` takes what ``make docs`` has installed for its own."""
    make_complete(setup_env)
    calls = []

    def pip(self, label, *arguments):
        calls.append(arguments)
        for site in setup_env.VENV.glob('lib/*/site-packages'):
            (site / 'sphinx-9.0.4.dist-info').mkdir()

    monkeypatch.setattr(setup_env.Setup, 'pip', pip)
    monkeypatch.delattr(setup_env.Setup, 'begin')
    setup_env.Setup().install()
    assert not calls
    monkeypatch.setattr(setup_env, 'DOCS', True)
    for _ in range(2):
        setup_env.Setup().install()
    assert calls == [(f'-r{setup_env.ROOT}/requirements/docs.txt', )]
    monkeypatch.setattr(setup_env, 'DOCS', False)
    setup_env.Setup().install()


@pytest.mark.parametrize('changes, kept', [
    (dict(installed=None), True),
    (dict(installed=None, inputs='old'), False),
    (dict(), False),  # complete, yet not as it was: something was altered
])
def test_interrupted_set_up_goes_on(setup_env, changes, kept):
    make_complete(setup_env, **changes)
    setup_env.Setup().begin()
    setup = setup_env.Setup()
    assert setup.state['done'] == (['torch'] if kept else [])
    assert setup.is_as_wanted and setup.state['installed'] is None


# Records its calls; `pip wheel` makes a wheel, and the operators work once a
# compiled wheel is installed.
FAKE_PYTHON = f"""
here=$(dirname "$0")
echo $* >> "$here/calls"
case "$*" in
  *' wheel '*)
    env > "$here/environ"
    while [ "$1" != -w ]; do shift; done
    echo compiled > "$2/{WHEEL}" ;;
  *' install '*.whl)
    for wheel; do :; done
    cp "$wheel" "$here/installed" ;;
  *get_device_capability*) echo '{json.dumps(FACTS)}' ;;
  *nms*) grep compiled "$here/installed" || {{ echo ImportError; exit 1; }} ;;
esac
"""


@pytest.fixture
def fake(setup_env, monkeypatch):
    """A set-up that has yet to do its steps, with a fake Python and pip."""
    make_complete(setup_env, installed=None, done=[])
    write_script(setup_env.PYTHON, FAKE_PYTHON)
    monkeypatch.setattr(setup_env, 'check_compiler', lambda label: None)
    return setup_env


def read_calls(setup_env):
    return setup_env.PYTHON.with_name('calls').read_text()


@pytest.mark.parametrize('flag, devices', [('0', ''), ('1', '0')])
def test_mmcv_is_compiled(fake, repo, monkeypatch, flag, devices):
    for name, value in dict(CFLAGS='-Dx', MAX_JOBS='3', FORCE_CUDA=flag,
                            CUDA_VISIBLE_DEVICES='0').items():
        monkeypatch.setenv(name, value)
    fake.Setup().install()
    environ = fake.PYTHON.with_name('environ').read_text().splitlines()
    assert {f'FORCE_CUDA={flag}', f'CUDA_VISIBLE_DEVICES={devices}',
            'MMCV_WITH_OPS=1', 'CFLAGS=-Dx -g0 -O2', 'CXXFLAGS=-g0 -O2',
            'MAX_JOBS=3'} <= set(environ)
    # pip's own cache of wheels does not know torch.
    calls = read_calls(fake)
    call, = (call for call in calls.splitlines() if ' wheel ' in call)
    assert '--no-cache-dir' in call and '--no-binary mmcv' in call
    steps = [calls.index(part) for part in (
        'build.txt', ' torch numpy', ' wheel ', WHEEL, 'mminstall.txt', 'nms',
        f'-e {repo}', 'mmdet3d.models')]
    assert steps == sorted(steps)
    # Once more: nothing to do. All anew: nothing to compile.
    fake.Setup().install()
    assert read_calls(fake) == calls
    fake.Setup().save(inputs='old')
    fake.Setup().install()
    assert read_calls(fake).count(WHEEL) == 2
    assert read_calls(fake).count(' wheel ') == 1


def test_cached_wheel_that_fails_is_replaced(fake, capsys):
    key, wheel = store(fake, 'broken')
    fake.Setup().install()
    assert 'discarded' in capsys.readouterr().out
    assert fake.find_wheel(key).read_text() == 'compiled\n'


def test_compiled_wheel_that_fails_is_reported(fake):
    write_script(fake.PYTHON, FAKE_PYTHON.replace('echo compiled', 'echo bad'))
    with pytest.raises(fake.SetupError, match='check of mmcv failed') as info:
        fake.Setup().install()
    assert '| ImportError' in str(info.value)
    assert read_calls(fake).count(' wheel ') == 1
    assert fake.find_wheel(fake.make_key(FACTS, False)) is None


def test_opencv_without_libgl(fake):
    write_script(fake.PYTHON, FAKE_PYTHON + (
        '[ "$2" != "import cv2" ] || { echo ImportError: libGL.so.1; exit 1; }'
    ))
    fake.Setup().install()
    assert 'opencv-python-headless' in read_calls(fake)


@pytest.mark.parametrize('output, spoilt', [
    ('ERROR: No matching distribution found for torch', False),
    ('Installing collected packages: torch', True),
])
def test_failed_pip(fake, output, spoilt):
    write_script(fake.PYTHON, f'echo "{output}"\nexit 1\n')
    with pytest.raises(fake.SetupError, match='build tools failed'):
        fake.Setup().install()
    state = fake.read_json(fake.STATE_FILE)
    assert state['busy'] == ('build tools' if spoilt else None)


def test_stopped_pip_leaves_its_mark(fake, repo):
    """Also were it killed: the mark is made before."""
    store(fake)
    write_script(fake.PYTHON, 'echo $$ > "$0.pid"\nexec sleep 60\n')
    pid = fake.PYTHON.with_name('python.pid')
    process = start(repo)
    wait_until(lambda: pid.exists() and pid.read_text())
    process.terminate()
    assert process.wait(20) == 130
    assert not Path('/proc', pid.read_text().strip()).exists()
    assert 'stopped in: build tools' in fake.Setup().why_afresh()


def test_pins_of_a_column_take_the_place_of_the_usual_ones(
        setup_env, monkeypatch):
    usual = setup_env.read_constraints()
    assert usual == setup_env.CONSTRAINTS.read_text()
    monkeypatch.setattr(setup_env, 'COLUMN', 'torch2.1')
    pins = [line for line in setup_env.read_constraints().splitlines()
            if '==' in line]
    assert [pin for pin in pins if pin.startswith('torch==')] == [
        'torch==2.1.2']
    assert {pin.partition('==')[0] for pin in pins} == {
        line.partition('==')[0] for line in usual.splitlines()
        if '==' in line}


def test_unknown_column(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env, 'COLUMN', 'torch0')
    with pytest.raises(setup_env.SetupError,
                       match='COLUMN=torch0 is none of .*torch2.1(.|\n)*'
                       'requirements/columns'):
        setup_env.Setup()
    assert not setup_env.STATE_FILE.exists()
