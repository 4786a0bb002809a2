"""Tools in processes of their own: what they print, how they end."""
import os
import signal
import subprocess
import sys
import time

import pytest

from sigplug.engine.stages import hide_unusable_gpus, run_stage

# In the place of mmcv, with or without a GPU.
FAKE_MMCV = """
import torch
torch.cuda.is_available = lambda: {gpu}
def get_compiling_cuda_version():
    return '{cuda}'
"""


def fake_mmcv(folder, source):
    (folder / 'mmcv').mkdir()
    (folder / 'mmcv/__init__.py').touch()
    (folder / 'mmcv/ops.py').write_text(source)


def hide_gpus(folder, monkeypatch, source):
    fake_mmcv(folder, source)
    monkeypatch.setenv('PYTHONPATH', str(folder))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '1')
    hide_unusable_gpus()
    return os.environ['CUDA_VISIBLE_DEVICES']


@pytest.mark.parametrize('cuda, gpu, hidden', [
    ('not available', True, True),
    ('not available', False, False),
    ('12.4', True, False),
])
def test_gpu_that_mmcv_cannot_use_is_hidden(tmp_path, monkeypatch, capsys,
                                            cuda, gpu, hidden):
    visible = hide_gpus(
        tmp_path, monkeypatch, FAKE_MMCV.format(cuda=cuda, gpu=gpu))
    printed = capsys.readouterr().out
    assert visible == ('' if hidden else '1')
    assert printed.count('\n') == hidden
    assert ('compiled without CUDA' in printed) == hidden


def test_broken_mmcv_is_left_to_the_training(tmp_path, monkeypatch, capfd):
    assert hide_gpus(
        tmp_path, monkeypatch, "raise ImportError('undefined symbol')") == '1'
    assert capfd.readouterr() == ('', '')


def write_stage(folder, source):
    (folder / 'stage.py').write_text(source)
    return folder / 'stage.py'


def test_output_goes_to_the_log(tmp_path, capfd):
    stage = write_stage(tmp_path, 'import sys\nprint("out", sys.argv[1:])\n'
                        'print("err", file=sys.stderr)\n')
    usage = run_stage('x', stage, 1, 'two', log=tmp_path / 'x.log')
    assert capfd.readouterr() == ('', '')
    lines = (tmp_path / 'x.log').read_text().splitlines()
    assert sorted(lines) == ['err', "out ['1', 'two']"]
    assert 0 <= usage['seconds'] < 60 and usage['peak_memory_mib'] > 1


def test_output_goes_to_the_terminal_without_a_log(tmp_path, capfd):
    stage = write_stage(tmp_path, 'print("hello")')
    run_stage('x', stage)
    printed = capfd.readouterr().out
    assert printed.startswith('\n=== x: ') and printed.endswith('\nhello\n')


def test_failure_shows_the_end_of_the_log_and_the_command(
        tmp_path, capfd, monkeypatch):
    monkeypatch.setenv('SIGPLUG_DATA_ROOT', 'some where/')
    stage = write_stage(
        tmp_path, 'import sys\n[print(i) for i in range(100)]\nsys.exit(9)')
    with pytest.raises(SystemExit) as ended:
        run_stage('x', stage, '--a', 'b c', log=tmp_path / 'x.log')
    assert ended.value.code == 9
    printed = capfd.readouterr().err
    assert '\n99\n' in printed and '\n50\n' not in printed
    assert "the stage 'x' failed with exit code 9" in printed
    assert "SIGPLUG_DATA_ROOT='some where/' " in printed
    assert "stage.py --a 'b c'" in printed


# Takes its time to end, and leaves a file that says by which signal.
SLOW_TO_END = """
import signal, sys, time
def stop(number, frame):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    time.sleep(0.5)
    open(f"ended by {signal.Signals(number).name}", "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
open("ready", "w").close()
time.sleep(60)
"""


def start_slow_stage(folder, before='pass'):
    """The process that runs it, as the first of a group like a shell's."""
    write_stage(folder, SLOW_TO_END)
    code = ('import signal; from sigplug.engine import stages; '
            # The shell has its background jobs ignore Ctrl-C.
            'signal.signal(signal.SIGINT, signal.default_int_handler); '
            f'{before}; stages.run_stage("x", "stage.py")')
    process = subprocess.Popen(
        [sys.executable, '-c', code], cwd=folder, start_new_session=True)
    while not (folder / 'ready').exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


def wait_for(file):
    deadline = time.time() + 30
    while not file.exists():
        assert time.time() < deadline, f'no {file.name}'
        time.sleep(0.02)


@pytest.mark.parametrize('signals', [1, 2])
def test_sigterm_ends_the_stage_as_well(tmp_path, signals):
    """The tool waits for its end.

    A second signal, in the midst of that, does not hang it.
    """
    process = start_slow_stage(tmp_path, 'stages.SECONDS_TO_END = 60')
    for _ in range(signals):
        process.terminate()
        time.sleep(0.1)
    assert process.wait(30) == 143
    if signals == 1:
        assert (tmp_path / 'ended by SIGTERM').exists()


def test_stage_ends_by_itself_after_ctrl_c(tmp_path):
    """It has the signal of the terminal, and gets no other one."""
    process = start_slow_stage(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == -signal.SIGINT
    assert (tmp_path / 'ended by SIGINT').exists()


def test_sigint_to_the_tool_alone_ends_the_stage_as_well(tmp_path):
    process = start_slow_stage(tmp_path, 'stages.SECONDS_TO_END = 0.1')
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == -signal.SIGINT
    assert (tmp_path / 'ended by SIGTERM').exists()


@pytest.mark.skipif(sys.platform != 'linux', reason='has no death signal')
def test_stage_does_not_outlive_a_killed_tool(tmp_path):
    process = start_slow_stage(tmp_path)
    process.kill()
    process.wait(30)
    wait_for(tmp_path / 'ended by SIGTERM')
