"""TensorBoard as the tool starts it."""
import json
import os
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest
from conftest import tool_command
from torch.utils.tensorboard import SummaryWriter

TOOL = 'analysis_tools/live_look.py'


@pytest.fixture
def server(tmp_path):
    """Its address, with a plug-in around that cannot be imported."""
    with SummaryWriter(str(tmp_path / 'work/run')) as writer:
        writer.add_scalar('loss', 0.5, 7)
    plugin = tmp_path / 'path/broken-1.0.dist-info'
    plugin.mkdir(parents=True)
    (plugin / 'METADATA').write_text('Name: broken\nVersion: 1.0\n')
    (plugin / 'entry_points.txt').write_text(
        '[tensorboard_plugins]\nbroken = no_such_module:Plugin\n')
    log = tmp_path / 'log'
    with log.open('w') as file:
        process = subprocess.Popen(
            tool_command(TOOL, tmp_path / 'work', '--port', 0,
                         '--host', '127.0.0.1'),
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(
                [str(tmp_path / 'path'), *sys.path])),
            stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.time() + 60
        while ' at http' not in log.read_text():
            assert process.poll() is None and time.time() < deadline, (
                log.read_text())
            time.sleep(0.1)
        yield log.read_text().rpartition(' at ')[2].split()[0]
    finally:
        # Ctrl-C is ignored by what a shell has put into the background.
        process.terminate()
        process.wait(30)


def test_serves_the_work_dir(server):
    with urlopen(f'{server}data/plugin/scalars/tags') as answer:
        assert 'loss' in json.load(answer)['run']
    with urlopen(f'{server}data/plugin/scalars/scalars?tag=loss&run=run'
                 ) as answer:
        (_, step, value), = json.load(answer)
    assert (step, value) == (7, 0.5)


def test_help_says_whose_options_are_passed_on(tmp_path, run_tool):
    assert '--port' in run_tool(TOOL, '--help', cwd=tmp_path)


def test_work_dir_comes_first(tmp_path, run_tool):
    printed = run_tool('analysis_tools/live_look.py', '--port', '6007',
                       'work', cwd=tmp_path, expect=2)
    assert 'the work dir comes first' in printed
