"""How a tool ends, and which process of several prints."""
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


def test_run_tool_says_that_the_disk_is_full(capsys):
    """/dev/full is a disk without room."""

    def tool(path):
        with open(path, 'w') as file:
            file.write('text')

    def full():
        process.set_advice('Go on.')
        tool('/dev/full')

    assert process.run_tool(full) == 2
    printed = capsys.readouterr().err
    assert printed.startswith('error: ') and printed.count('\n') == 1
    assert 'No space left on device' in printed and 'Go on.' in printed
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
    # Not every tool is a training.
    assert capsys.readouterr().err == f'Stopped by {number.name}.\n'

    def training():
        process.set_advice(process.CONTINUE)
        tool()

    assert process.run_tool(training) == code
    assert capsys.readouterr().err == (
        f'Stopped by {number.name}. Continue it with --resume.\n')
    # That of one does not stay for the next.
    assert process.run_tool(tool) == code
    assert 'resume' not in capsys.readouterr().err
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


def test_first_process_alone_prints(monkeypatch, capsys):
    for rank in ('1', '0'):
        monkeypatch.setenv('RANK', rank)
        process.print_on_rank_zero(f'by {rank}')
    monkeypatch.delenv('RANK')
    process.print_on_rank_zero('alone')
    assert capsys.readouterr().out == 'by 0\nalone\n'
