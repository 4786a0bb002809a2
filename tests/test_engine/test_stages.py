"""Tools in processes of their own: what they print, how they end."""
import os
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


@pytest.mark.parametrize('signals', [1, 2])
def test_sigterm_ends_the_stage_as_well(tmp_path, signals):
    """The stage takes its time to end; the tool waits for that.

    A second signal, in the midst of that, does not hang it.
    """
    (tmp_path / 'stage.py').write_text(
        'import signal, sys, time\n'
        'def stop(*_):\n'
        '    time.sleep(0.5)\n'
        '    open("ended", "w").close()\n'
        '    sys.exit()\n'
        'signal.signal(signal.SIGTERM, stop)\n'
        'open("ready", "w").close()\n'
        'time.sleep(60)\n')
    code = ('from sigplug.engine.stages import run_stage; '
            'run_stage("x", "stage.py")')
    process = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path)
    while not (tmp_path / 'ready').exists():
        assert process.poll() is None
        time.sleep(0.02)
    for _ in range(signals):
        process.terminate()
        time.sleep(0.1)
    assert process.wait(30) == 143
    if signals == 1:
        assert (tmp_path / 'ended').exists()
