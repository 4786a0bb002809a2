"""The set-up of the environment, with a fake Python and pip."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import load_tool

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = 'tools/misc/setup_env.py'
WHEEL = 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'
CSRC = 'mmcv/ops/csrc/pytorch'
# Records its calls; `-m venv` copies it, `pip download` unpacks sources and
# `pip wheel` makes a wheel.
FAKE_PYTHON = f"""#!/bin/sh
here=$(dirname "$0")
echo $* >> "$here/calls"
case "$*" in
  *'-m venv'*) for venv; do :; done
    rm -rf "$venv"; mkdir -p "$venv/bin"; cp "$0" "$venv/bin/python" ;;
  *' download '*) sources="$TMPDIR/pip-download-1/mmcv_2"
    mkdir -p "$sources/{CSRC}/cpu"
    echo "return locals()['__version__']" > "$sources/setup.py"
    touch "$sources/{CSRC}/nms.cpp" "$sources/{CSRC}/cpu/nms.cpp" ;;
  *' wheel '*) env > "$here/environ"
    while [ "$1" != -w ]; do shift; done
    echo compiled > "$2/{WHEEL}" ;;
  *torch.__version__*) echo 2.13.0+cpu ;;
esac
"""


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A repository with only what the script reads."""
    monkeypatch.setenv('SIGPLUG_CACHE', str(tmp_path / 'cache'))
    for name in ('COLUMN', 'FORCE_CUDA', 'MAX_JOBS', 'DOCS'):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / 'repo'
    for name in ('setup.py', 'sigplug/version.py', SCRIPT,
                 'tools/misc/join_mmcv.py'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / 'requirements', root / 'requirements')
    return root


@pytest.fixture
def tool(repo, tmp_path, monkeypatch):
    """The script of ``repo``, run by a fake Python."""
    tool = load_tool(repo / SCRIPT)
    write_script(tmp_path / 'base/python', FAKE_PYTHON)
    monkeypatch.setattr(tool.sys, 'executable', str(tmp_path / 'base/python'))
    monkeypatch.setattr(tool, 'check_compiler', lambda: None)
    return tool


def calls(tool):
    return tool.PYTHON.with_name('calls').read_text()


def count_venvs(tmp_path):
    return (tmp_path / 'base/calls').read_text().count('-m venv')


def test_builds_once(tool, repo, tmp_path, monkeypatch):
    monkeypatch.setenv('MAX_JOBS', '3')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    tool.install()
    text = calls(tool)
    steps = [text.index(part) for part in (
        'build.txt', ' torch numpy', ' wheel ', WHEEL, f'-e {repo}',
        'mmdet3d.models')]
    assert steps == sorted(steps)
    # At the same time as mmcv is compiled, the rest.
    assert steps[1] < text.index('stack.txt') < steps[3]
    stack = (tool.VENV / 'stack.txt').read_text().splitlines()
    assert {'mmdet>=3.0.0,<3.4.0', 'matplotlib', 'pytest'} < {*stack}
    assert not [line for line in stack if line.startswith('mmcv')]
    wheel, = (line for line in text.splitlines() if ' wheel ' in line)
    # pip's own cache of wheels does not know torch.
    assert '--no-cache-dir' in wheel and wheel.endswith('/joined')
    environ = tool.PYTHON.with_name('environ').read_text().splitlines()
    assert {'FORCE_CUDA=0', 'CUDA_VISIBLE_DEVICES=', 'MAX_JOBS=3',
            'MMCV_WITH_OPS=1'} <= set(environ)
    # Again: nothing to do. After a change: all, but nothing to compile.
    tool.install()
    assert calls(tool) == text and 'docs.txt' not in text
    (repo / 'setup.py').write_text('# changed')
    tool.install()
    assert calls(tool).count('build.txt') == 2
    assert calls(tool).count(' wheel ') == 1
    # In the place of a wheel for the CPU, one for CUDA.
    for name in ('FORCE_CUDA', 'DOCS'):
        monkeypatch.setenv(name, '1')
    tool.install()
    text = calls(tool)
    assert text.count(' wheel ') == 2 and 'docs.txt' in text
    assert len(list((tmp_path / 'cache').glob(f'*/{WHEEL}'))) == 2
    # Without the variables, they stay what they are.
    for name in ('FORCE_CUDA', 'DOCS'):
        monkeypatch.delenv(name)
    tool.install()
    assert calls(tool) == text
    assert count_venvs(tmp_path) == 1


def test_each_file_alone_where_the_joined_ones_fail(tool, tmp_path):
    write_script(tmp_path / 'base/python', FAKE_PYTHON.replace(
        "*' wheel '*)", """*/joined) echo 'error: redefinition'; exit 1 ;;
  *' wheel '*) for sources; do :; done
    cat "$sources/setup.py" > "$here/setup.py"
    ls "$sources/mmcv/ops/csrc/pytorch" > "$here/files"
    """))
    tool.install()
    written = tool.PYTHON.parent
    assert (written / 'files').read_text().split() == ['cpu', 'nms.cpp']
    # Python 3.13 would not find that name.
    assert (written / 'setup.py').read_text() == "return '2.1.0'\n"


def test_the_devkit_takes_any_numpy(tool, monkeypatch):
    path = (tool.VENV / 'lib/python3.12/site-packages'
            / 'nuscenes_devkit-1.2.0.dist-info/METADATA')
    path.parent.mkdir(parents=True)
    path.write_text('Requires-Dist: fire\nRequires-Dist: numpy<2.0.0,>=1.22.0'
                    '\nRequires-Dist: numpydoc<2\n')
    monkeypatch.setattr(tool, 'pip', lambda *arguments: None)
    tool.install_devkit()
    assert path.read_text() == (
        'Requires-Dist: fire\nRequires-Dist: numpy\n'
        'Requires-Dist: numpydoc<2\n')


@pytest.mark.parametrize('has_nvcc', [False, True])
def test_cuda_from_the_packages_of_torch(
        tool, tmp_path, monkeypatch, has_nvcc):
    monkeypatch.setenv('FORCE_CUDA', '1')
    monkeypatch.delenv('CUDA_HOME', raising=False)
    monkeypatch.setattr(tool.shutil, 'which', lambda name: has_nvcc or None)
    write_script(tmp_path / 'base/python', FAKE_PYTHON + """
case "$*" in
  *'torch numpy'*) lib="$here/../lib/python3/site-packages/nvidia/cu13/lib"
    mkdir -p "$lib"; touch "$lib/libcudart.so.13" ;;
  *torch.version.cuda*) echo 13.0 ;;
esac
""")
    tool.install()
    home = tool.VENV / 'lib/python3/site-packages/nvidia/cu13'
    assert (home / 'lib64/libcudart.so').exists()
    environ = tool.PYTHON.with_name('environ').read_text().splitlines()
    assert f'LIBRARY_PATH={home}/lib' in environ
    assert (f'CUDA_HOME={home}' in environ) is not has_nvcc
    assert ('nvidia-cuda-nvcc==13.0.*' in calls(tool)) is not has_nvcc
    # The CPU build of spconv would take the place of mmcv's operators.
    assert 'spconv.txt' not in calls(tool)
    assert 'uninstall -y spconv' in calls(tool)


def test_opencv_without_libgl(tool, tmp_path):
    write_script(tmp_path / 'base/python', FAKE_PYTHON + (
        '[ "$2" != "import cv2" ] || { echo libGL.so.1; exit 1; }\n'))
    tool.install()
    assert 'opencv-python-headless' in calls(tool)


@pytest.mark.parametrize('line, remedy', [
    ('c++: fatal error: Killed signal terminated program', 'MAX_JOBS=1'),
    ('fatal error: Python.h: No such file or directory', '-dev'),
    ('No matching distribution found for torch', 'check the network'),
    ('something nobody thought of', 'read the log'),
])
def test_a_failure_is_explained_and_built_anew(tool, tmp_path, line, remedy):
    write_script(tmp_path / 'base/python', FAKE_PYTHON + (
        f'case "$*" in *"torch numpy"*) echo "{line}"; exit 3 ;; esac\n'))
    with pytest.raises(tool.SetupError, match='torch failed.*code 3') as info:
        tool.install()
    for words in ('.venv/setup.log', line, remedy):
        assert words in str(info.value)
    assert line in tool.LOG.read_text()
    # pip was at work: what it left is not to be trusted.
    write_script(tmp_path / 'base/python', FAKE_PYTHON)
    tool.install()
    assert count_venvs(tmp_path) == 2
    tool.install()
    assert count_venvs(tmp_path) == 2


def test_a_foreign_environment_is_left_alone(tool, repo):
    (repo / '.venv/bin').mkdir(parents=True)
    with pytest.raises(tool.SetupError, match='not made by this script'):
        tool.install()
    assert os.listdir(repo / '.venv') == ['bin']


def test_another_place_or_python_is_built_anew(tool, tmp_path):
    tool.install()
    for number, (name, value) in enumerate(
            [('place', '/other/.venv'), ('python', '3.9')], 2):
        state = json.loads(tool.STATE.read_text())
        state['wanted'][name] = value
        tool.STATE.write_text(json.dumps(state))
        tool.install()
        assert count_venvs(tmp_path) == number


def test_pins_of_a_column(tool, monkeypatch):
    usual = tool.read_constraints()
    monkeypatch.setattr(tool, 'COLUMN', 'torch2.1')
    pins = [line.partition('==') for line in
            tool.read_constraints().splitlines() if '==' in line]
    assert [version for name, _, version in pins if name == 'torch'] == [
        '2.1.2']
    assert [version for name, _, version in pins if name == 'numpy'] == [
        '1.26.4']
    assert {name for name, *_ in pins} == {
        line.partition('==')[0] for line in usual.splitlines() if '==' in line}


@pytest.mark.parametrize('variables, words', [
    (dict(COLUMN='torch0'), 'COLUMN=torch0 is none of newest, onedl, torch2'),
    (dict(CXX='no-such-compiler'), 'no-such-compiler not found'),
])
def test_what_is_refused(repo, variables, words):
    done = subprocess.run(
        [sys.executable, SCRIPT], cwd=repo, text=True, capture_output=True,
        env=dict(os.environ, **variables))
    assert done.returncode == 1
    assert f'env: {words}' in done.stderr and 'Traceback' not in done.stderr
    assert not list(repo.glob('.venv*'))


def test_a_wrong_python_is_refused(tool):
    for version in ('3.10', '3.11', '3.12', '3.13'):
        tool.check_python(version)
    for version in ('3.9', '3.14'):
        with pytest.raises(tool.SetupError, match=f'{version}.*3.10 to 3.13'):
            tool.check_python(version)
