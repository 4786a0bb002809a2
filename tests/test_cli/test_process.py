"""How a tool ends, and which process of several prints."""
import argparse
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from sigplug.cli import process

COMMAND = 'python tools/train.py c.py --amp --resume'


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


@pytest.mark.parametrize('given', [
    '', 'c.py', 'c.py --resume', 'c.py --resume a.pth --amp'])
def test_command_that_continues(command_line, given):
    command_line(*given.split())
    assert process.resume_command('quickstart') == ' '.join([
        'python tools/train.py', *given.removesuffix(' --resume').split(),
        '--resume'])
    parser = argparse.ArgumentParser()
    parser.add_argument('--resume', nargs='?', const='last')
    assert parser.parse_known_args(
        [*given.split(), '--resume'])[0].resume == 'last'


def test_command_that_continues_under_make(command_line, monkeypatch):
    monkeypatch.setenv('MAKELEVEL', '1')
    assert process.resume_command('x') == (
        "make x ARGS='c.py --amp --resume'")


def stop(number=signal.SIGINT):
    os.kill(os.getpid(), number)
    time.sleep(10)


@pytest.fixture(autouse=True)
def ctrl_c(request):
    """A shell starts what runs in its background with Ctrl-C ignored."""
    request.addfinalizer(partial(
        signal.signal, signal.SIGINT,
        signal.signal(signal.SIGINT, signal.default_int_handler)))


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
        stop()

    assert process.run_tool(training) == 130
    advice = f' Continue it with\n    {COMMAND}' if advised else ''
    assert capsys.readouterr().err == f'Stopped by SIGINT.{advice}\n'
    # That of one does not stay for the next.
    assert process.run_tool(stop) == 130
    assert capsys.readouterr().err == 'Stopped by SIGINT.\n'


def test_advice_of_the_tool_that_started_this_one(capsys, command_line,
                                                  monkeypatch):
    monkeypatch.setenv(process.RESUME, 'make x')

    def training():
        process.advise_resume('.', True)
        stop()

    process.run_tool(training)
    assert capsys.readouterr().err.endswith('Continue it with\n    make x\n')


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


def test_full_disk(capsys, command_line):
    """/dev/full is a disk without room."""

    def full(path):
        process.advise_resume('.', True)
        Path(path).write_text('text')

    assert process.run_tool(lambda: full('/dev/full')) == 2
    printed = capsys.readouterr().err
    assert printed.startswith('error: ') and printed.count('\n') == 2
    assert 'No space left on device' in printed and COMMAND in printed
    with pytest.raises(IsADirectoryError):
        process.run_tool(lambda: full('/dev'))


@pytest.mark.parametrize('number, code', [
    (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_tool_ends_in_order(capsys, number, code):
    before = signal.getsignal(signal.SIGTERM)
    closed = []

    def tool():
        try:
            stop(number)
        finally:
            closed.append(True)

    def formatting():
        try:
            tool()
        except:  # noqa: E722
            raise SyntaxError('Failed to format the config')  # noqa: B904

    for main in (tool, formatting):
        assert process.run_tool(main) == code and closed.pop()
        assert capsys.readouterr().err == f'Stopped by {number.name}.\n'
    with pytest.raises(SyntaxError):
        process.run_tool(lambda: eval('('))
    assert signal.getsignal(signal.SIGTERM) == before


def test_workers_end_at_sigterm():
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
