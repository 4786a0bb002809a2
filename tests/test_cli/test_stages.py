"""Tools in processes of their own: what they print, how they end."""
import os
import subprocess
import sys
import time

import pytest
from conftest import QUICKSTART
from mmengine.config import Config

from sigplug.cli.stages import (
    check_data_root,
    hide_unusable_gpus,
    run_stage,
)
from sigplug.errors import UserError

# It poses as mmcv's operators.
FAKE_MMCV = "def get_compiling_cuda_version(): return '{}'"


@pytest.mark.parametrize('source, hidden', [
    (FAKE_MMCV.format('not available'), True),
    (FAKE_MMCV.format('12.4'), False),
    # Left to the training.
    ("raise ImportError('undefined symbol')", False),
])
def test_gpu_that_mmcv_cannot_use_is_hidden(tmp_path, monkeypatch, capfd,
                                            source, hidden):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').touch()
    (tmp_path / 'mmcv/ops.py').write_text(source)
    (tmp_path / 'torch.py').write_text(
        'class cuda: is_available = lambda: True')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '1')
    hide_unusable_gpus()
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ('' if hidden else '1')
    printed = capfd.readouterr()
    assert ('compiled without CUDA' in printed.out) == hidden
    assert not printed.err


def write_stage(folder, source):
    (folder / 'stage.py').write_text(source)
    return folder / 'stage.py'


@pytest.mark.parametrize('logged', [True, False])
def test_output_goes_to_the_log_or_the_terminal(tmp_path, capfd, logged):
    stage = write_stage(tmp_path, 'import sys\nprint("out", sys.argv[1:])\n')
    log = tmp_path / 'x.log'
    usage = run_stage('x', stage, 1, 'two', log=log if logged else None)
    printed = capfd.readouterr().out
    text = "out ['1', 'two']\n"
    if logged:
        assert printed == '' and log.read_text() == text
    else:
        assert printed.startswith('\n=== x: ') and printed.endswith(text)
    assert 0 <= usage['seconds'] < 60 and usage['peak_memory_mib'] > 1


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


def test_stage_ends_with_the_tool(tmp_path):
    """The tool waits for its end."""
    write_stage(tmp_path, SLOW)
    process = subprocess.Popen([sys.executable, '-c', TOOL], cwd=tmp_path)
    while not (tmp_path / 'ready').exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(30) == 143
    assert (tmp_path / 'ended').exists()


@pytest.mark.parametrize('root', ['data/mine', './data/mine/'])
def test_data_root_by_any_spelling(monkeypatch, root):
    monkeypatch.setenv('SIGPLUG_DATA_ROOT', 'data/mine/')
    cfg = Config.fromfile(QUICKSTART)
    check_data_root(cfg, root)
    cfg.val_dataloader.dataset.data_root = 'elsewhere'
    with pytest.raises(UserError, match="val_dataloader.dataset.data_root"
                       " = 'elsewhere' in place of '.*data/mine"):
        check_data_root(cfg, root)
