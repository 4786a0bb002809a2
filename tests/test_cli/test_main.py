"""The command line, and what the doctor says."""
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sigplug import __main__
from sigplug.cli import doctor
from sigplug.cli.machine import Package
from sigplug.files import TOOLS
from sigplug.ops import backends
from sigplug.ops.cpu_kernels import library


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the command line here; return the exit code and the output."""

    def run(*args):
        monkeypatch.setattr('sys.argv', ['sigplug', *map(str, args)])
        monkeypatch.setattr('sys.path', [*sys.path])
        try:
            code = __main__.main()
        except SystemExit as end:
            code = end.code
        printed = capfd.readouterr()
        return code, printed.out + printed.err

    return run


def test_commands_are_listed(run):
    for args in ((), ('--help', )):
        code, printed = run(*args)
        assert code == 0
        assert all(f'\n  {name} ' in printed for name in __main__.COMMANDS)
    assert run('migrat')[0] == 2


@pytest.mark.parametrize('command, arguments', [
    ('predict', 'folder cloud'), ('migrate', '--pillar'),
    ('export', 'config checkpoint'), ('bench', '--quick')])
def test_commands_are_doors_to_the_tools(run, command, arguments):
    tool = __main__.COMMANDS[command][1]
    assert not tool or (TOOLS / tool).is_file()
    code, printed = run(command, '--help')
    assert code == 0 and arguments in printed


def test_exit_code_of_a_tool(run, tmp_path):
    code, printed = run('migrate', tmp_path / 'no.py', '--out', 'x.py')
    assert code == 2 and 'no.py' in printed and 'does not exist' in printed


# -- doctor -----------------------------------------------------------------
@pytest.fixture
def healthy(monkeypatch, tmp_path):
    """A machine whose versions fit and that has never compiled."""
    monkeypatch.setenv('SIGPLUG_CACHE', str(tmp_path))
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    monkeypatch.setattr(library, 'find_compiler', lambda: ['some-compiler'])
    monkeypatch.setattr(doctor, 'list_packages', lambda: [
        Package('torch', 'torch', '2.13.0', '>=2.1.0', True)])


def test_doctor_does_not_compile(run, healthy, monkeypatch, tmp_path):
    """It says when that will be."""
    monkeypatch.setattr(library, '_compile', None)
    code, printed = run('doctor')
    assert code == 0 and '0 problems' in printed
    for text in ('mmdet3d       1.', '(>=2.1.0)', str(tmp_path),
                 'cpp, once some-compiler has compiled the kernels',
                 'sigplug doctor --compile', 'compiled for CUDA: '):
        assert text in printed, printed


def test_doctor_on_a_machine_without_a_compiler(run, healthy, monkeypatch):
    def find_compiler():
        raise backends.BackendError('no C++ compiler was found')

    monkeypatch.setattr(library, 'find_compiler', find_compiler)
    code, printed = run('doctor')
    assert code == 0
    assert 'eager, which is slower: no C++ compiler was found' in printed


def test_doctor_finds_problems(run, healthy, monkeypatch):
    monkeypatch.setattr(doctor, 'list_packages', lambda: [
        Package('mmcv', 'mmcv', '2.2.0', '>=2.0.0,<2.2.0', False)])
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    monkeypatch.setenv(backends.VARIABLE, 'cudnn')
    code, printed = run('doctor')
    assert code == 1 and '3 problems' in printed
    assert 'PROBLEM       mmcv 2.2.0 is installed, but sigplug is' in printed
    assert 'mmcv has to be compiled for torch' in printed
    assert 'must be one of auto, eager' in printed


def test_doctor_of_a_gpu_that_mmcv_cannot_use(run, healthy, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 1)
    monkeypatch.setattr('torch.cuda.get_device_name', lambda i: 'Some GPU')
    monkeypatch.setitem(sys.modules, 'mmcv.ops', SimpleNamespace(
        get_compiling_cuda_version=lambda: 'not available'))
    monkeypatch.setattr(backends, '_load', lambda name: SimpleNamespace(
        problem='Triton cannot launch'))
    code, printed = run('doctor')
    assert code == 1 and 'Some GPU' in printed
    assert 'the GPU cannot be used: compile mmcv' in printed
    assert 'eager, which is slower: Triton cannot launch' in printed


@pytest.mark.parametrize('missing, code', [
    (['mmengine', 'mmcv', 'mmdet', 'mmdet3d'], 0), (['torch', 'mmengine'], 1)])
def test_doctor_with_less(missing, code, tmp_path):
    program = (f'import sys; sys.modules.update(dict.fromkeys({missing})); '
               'import sigplug.__main__; sys.exit(sigplug.__main__.main())')
    done = subprocess.run(
        [sys.executable, '-c', program, 'doctor'], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
    assert done.returncode == code, done.stdout
    assert 'missing; for ' in done.stdout
    assert ('install it: https://pytorch.org' in done.stdout) == bool(code)
