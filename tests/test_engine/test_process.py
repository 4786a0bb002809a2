"""How a tool ends, and which process of several speaks."""
import os
import signal
import time
from functools import partial

import pytest

from sigplug.engine import process
from sigplug.errors import UserError


def test_run_tool_prints_a_known_error(capsys):

    def tool():
        raise UserError('no data at x')

    assert process.run_tool(tool) == 2
    captured = capsys.readouterr()
    assert captured.err == 'error: no data at x\n' and not captured.out


def test_run_tool_lets_unknown_errors_pass():

    def tool():
        raise ValueError('a bug')

    with pytest.raises(ValueError, match='a bug'):
        process.run_tool(tool)
    assert process.run_tool(lambda: None) == 0


def test_run_tool_says_that_the_disk_is_full(capsys):
    """/dev/full is a disk without room."""

    def tool(path):
        with open(path, 'w') as file:
            file.write('text')

    assert process.run_tool(lambda: tool('/dev/full')) == 2
    printed = capsys.readouterr().err
    assert printed.startswith('error: ') and printed.count('\n') == 1
    assert 'No space left on device' in printed and '--resume' in printed
    with pytest.raises(IsADirectoryError):
        process.run_tool(lambda: tool('/dev'))


@pytest.mark.parametrize('number, code', [
    (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_run_tool_ends_in_order_when_it_is_stopped(capsys, number, code,
                                                   request):
    before = signal.getsignal(signal.SIGTERM)
    # A shell starts what runs in its background with Ctrl-C ignored.
    request.addfinalizer(partial(
        signal.signal, signal.SIGINT,
        signal.signal(signal.SIGINT, signal.default_int_handler)))
    closed = []

    def tool():
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            closed.append(True)

    assert process.run_tool(tool) == code and closed
    printed = capsys.readouterr().err
    assert f'Stopped by {number.name}' in printed and '--resume' in printed
    assert signal.getsignal(signal.SIGTERM) == before


def test_workers_end_at_sigterm(monkeypatch):
    """A worker that was forked does not go on with the tool."""
    code = []

    def tool():
        worker = os.fork()
        if not worker:
            time.sleep(60)
            os._exit(1)
        time.sleep(0.2)
        os.kill(worker, signal.SIGTERM)
        code.append(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))

    assert process.run_tool(tool) == 0 and code == [143]


@pytest.mark.parametrize('launcher, name', [
    ('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'),
    ('mpi', 'OMPI_COMM_WORLD_RANK')])
def test_only_the_first_rank_prints(monkeypatch, capsys, request, launcher,
                                    name):
    request.addfinalizer(partial(process.use_launcher, 'none'))
    process.use_launcher(launcher)
    monkeypatch.setenv(name, '1')
    process.print_once('text')
    assert capsys.readouterr().out == ''
    monkeypatch.setenv(name, '0')
    process.print_once('text')
    assert capsys.readouterr().out == 'text\n'


def test_runs_of_their_own_under_srun_all_print(monkeypatch, capsys):
    monkeypatch.setenv('SLURM_PROCID', '1')
    process.print_once('text')
    assert capsys.readouterr().out == 'text\n'
