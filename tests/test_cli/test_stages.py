"""Tools in processes of their own: what they print, how they end."""
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from sigplug.cli.stages import hide_unusable_gpus, run_stage


@pytest.mark.parametrize('operators, hidden', [
    (SimpleNamespace(get_compiling_cuda_version=lambda: 'not available'),
     True),
    (SimpleNamespace(get_compiling_cuda_version=lambda: '12.4'), False),
    # They cannot be imported, which is left to the training.
    (None, False),
])
def test_gpu_that_mmcv_cannot_use_is_hidden(monkeypatch, capsys, operators,
                                            hidden):
    monkeypatch.setitem(sys.modules, 'mmcv.ops', operators)
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '1')
    hide_unusable_gpus()
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ('' if hidden else '1')
    assert ('compiled without CUDA' in capsys.readouterr().out) == hidden


@pytest.fixture
def stage(tmp_path):
    return tmp_path / 'stage.py'


@pytest.mark.parametrize('logged', [True, False])
def test_output_goes_to_the_log_or_the_terminal(tmp_path, capfd, logged,
                                                stage):
    stage.write_text('import sys\nprint("out", sys.argv[1:])\n')
    log = tmp_path / 'x.log'
    seconds = run_stage('x', stage, 1, 'two', log=log if logged else None)
    printed = capfd.readouterr().out
    text = "out ['1', 'two']\n"
    if logged:
        assert printed == '' and log.read_text() == text
    else:
        assert printed.startswith('\n=== x: ') and printed.endswith(text)
    assert 0 <= seconds < 60


def test_failure_shows_the_end_of_the_log_and_the_command(
        tmp_path, capfd, monkeypatch, stage):
    monkeypatch.setenv('SIGPLUG_DATA_ROOT', 'some where/')
    stage.write_text(
        'import sys\n[print(i) for i in range(100)]\nsys.exit(9)')
    with pytest.raises(SystemExit) as ended:
        run_stage('x', stage, '--a', 'b c', log=tmp_path / 'x.log')
    assert ended.value.code == 9
    printed = capfd.readouterr().err
    assert '\n99\n' in printed and '\n50\n' not in printed
    assert "the stage 'x' failed with exit code 9" in printed
    assert "SIGPLUG_DATA_ROOT='some where/' " in printed
    assert "stage.py --a 'b c'" in printed


SLOW = """
import signal, sys, time
def stop(*_):
    open("ended", "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, stop)
open("ready", "w").close()
time.sleep(60)
"""
TOOL = """
import sys
from sigplug.cli import process, stages
sys.exit(process.run_tool(lambda: stages.run_stage("x", "stage.py")))
"""


def test_stage_ends_with_the_tool(tmp_path, stage):
    """The tool waits for its end."""
    stage.write_text(SLOW)
    process = subprocess.Popen([sys.executable, '-c', TOOL], cwd=tmp_path)
    while not (tmp_path / 'ready').exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(30) == 143
    assert (tmp_path / 'ended').exists()
