"""How a tool ends, and which process of several prints."""
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from sigplug.cli import process
from sigplug.errors import UserError


@pytest.fixture
def command_line(monkeypatch, tmp_path):
    """Set what was typed, in a folder that has the tool and Python."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.executable', str(tmp_path / 'python'))
    (tmp_path / 'last_checkpoint').touch()
    for name in ('MAKELEVEL', process.RESUME):
        monkeypatch.delenv(name, raising=False)

    def set_command_line(*words):
        monkeypatch.setattr('sys.argv', [
            str(tmp_path / 'tools/train.py'), *words])

    set_command_line('c.py', '--amp')
    return set_command_line


@pytest.mark.parametrize('given, resumed', [
    (['c.py'], ['c.py']),
    (['c.py', '--resume'], ['c.py']),
    (['c.py', '--resume', 'a.pth', '--amp'], ['c.py', '--amp']),
    (['--resume', '--amp', 'c.py'], ['--amp', 'c.py']),
    (['--resume=a.pth', 'my c.py'], ["'my c.py'"]),
    (['c.py', '--cfg-options', 'a=1'], ['c.py', '--cfg-options', 'a=1']),
])
def test_command_that_continues(command_line, given, resumed):
    command_line(*given)
    assert process.resume_command() == ' '.join(
        ['python tools/train.py', *resumed, '--resume'])


def test_command_that_continues_under_make(command_line, monkeypatch, capsys):
    assert process.resume_command('quickstart').startswith('python')
    monkeypatch.setenv('MAKELEVEL', '1')
    command = "make quickstart ARGS='c.py --amp --resume'"
    assert process.resume_command('quickstart') == command
    command_line()
    assert process.resume_command('x') == 'make x ARGS=--resume'
    # As a stage of another tool.
    monkeypatch.setenv(process.RESUME, command)

    def training():
        process.advise_resume('.', True)
        raise KeyboardInterrupt

    process.run_tool(training)
    printed = capsys.readouterr().err
    assert printed.endswith(f'Continue it with\n    {command}\n')


@pytest.mark.parametrize('resumed, written, advised', [
    (False, None, False), (False, 'before', False), (False, 'now', True),
    (True, 'before', True), (True, None, False)])
def test_advice_needs_a_checkpoint(capsys, command_line, resumed, written,
                                   advised):
    """Of this training, or of the one that it continues."""
    record = Path('last_checkpoint')
    record.unlink()
    if written == 'before':
        record.touch()
        os.utime(record, (1000, 1000))

    def training():
        process.advise_resume('.', resumed)
        if written == 'now':
            record.touch()
        raise KeyboardInterrupt

    assert process.run_tool(training) == 130
    assert ('--resume' in capsys.readouterr().err) == advised


def test_nobody_reads_what_is_printed():
    """As behind `| head`."""
    read, write = os.pipe()
    os.close(read)
    child = os.fork()
    if not child:
        os.dup2(write, 1)
        sys.stdout = open(1, 'w', closefd=False)
        code = process.run_tool(lambda: print('line\n' * 100000))
        # As at the end of Python.
        sys.stdout.flush()
        os._exit(code)
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 141


def test_run_tool_prints_a_known_error(capsys):

    def tool():
        raise UserError('no data at x')

    assert process.run_tool(tool) == 2
    captured = capsys.readouterr()
    assert captured.err == 'error: no data at x\n' and not captured.out


def test_run_tool_says_that_the_disk_is_full(capsys, command_line):
    """/dev/full is a disk without room."""

    def tool(path):
        with open(path, 'w') as file:
            file.write('text')

    def full():
        process.advise_resume('.', True)
        tool('/dev/full')

    assert process.run_tool(full) == 2
    printed = capsys.readouterr().err
    assert printed.startswith('error: ') and printed.count('\n') == 2
    assert 'No space left on device' in printed and '--resume' in printed
    with pytest.raises(IsADirectoryError):
        process.run_tool(lambda: tool('/dev'))


@pytest.mark.parametrize('number, code', [
    (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_run_tool_ends_in_order_when_it_is_stopped(
        capsys, number, code, request, command_line):
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
        process.advise_resume('.', True)
        tool()

    assert process.run_tool(training) == code
    assert capsys.readouterr().err == (
        f'Stopped by {number.name}. Continue it with\n'
        '    python tools/train.py c.py --amp --resume\n')
    def formatting():
        try:
            tool()
        except:  # noqa: E722
            raise SyntaxError('Failed to format the config')  # noqa: B904

    assert process.run_tool(formatting) == code
    assert capsys.readouterr().err == f'Stopped by {number.name}.\n'
    with pytest.raises(SyntaxError):
        process.run_tool(lambda: eval('('))
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
