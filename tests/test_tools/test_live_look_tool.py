"""TensorBoard as the tool starts it."""
import json
import os
import subprocess
import sys
import time
from urllib.request import urlopen

import numpy as np
import pytest
from conftest import tool_command
from tensorboard.program import TensorBoard
from torch.utils.tensorboard import SummaryWriter

TOOL = 'analysis_tools/live_look.py'


@pytest.fixture
def server(tmp_path):
    """Its address, with a plug-in around that cannot be imported."""
    with SummaryWriter(str(tmp_path / 'work/run')) as writer:
        writer.add_scalar('loss', 0.5, 7)
        for step in range(12):
            writer.add_image('view', np.full((3, 4, 4), step, np.uint8), step)
    plugin = tmp_path / 'path/broken-1.0.dist-info'
    plugin.mkdir(parents=True)
    (plugin / 'METADATA').write_text('Name: broken\nVersion: 1.0\n')
    (plugin / 'entry_points.txt').write_text(
        '[tensorboard_plugins]\nbroken = no_such_module:Plugin\n')
    log = tmp_path / 'log'
    with log.open('w') as file:
        process = subprocess.Popen(
            tool_command(TOOL, tmp_path / 'work', '--port', 0,
                         '--host', '127.0.0.1', '--path_prefix', '/live'),
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
    assert server.endswith('/live/')
    with urlopen(f'{server}data/plugin/scalars/tags') as answer:
        assert 'loss' in json.load(answer)['run']
    with urlopen(f'{server}data/plugin/scalars/scalars?tag=loss&run=run'
                 ) as answer:
        (_, step, value), = json.load(answer)
    assert (step, value) == (7, 0.5)
    # All of them, where TensorBoard by itself shows ten.
    with urlopen(f'{server}data/plugin/images/images?tag=view&run=run&sample=0'
                 ) as answer:
        assert [image['step'] for image in json.load(answer)] == [*range(12)]


def test_ends_as_tensorboard_does(tmp_path, monkeypatch, run_here):
    monkeypatch.setattr(TensorBoard, 'main', lambda self: 3)
    assert run_here(TOOL, 'work', cwd=tmp_path)[0] == 3
