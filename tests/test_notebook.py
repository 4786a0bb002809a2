"""The notebook runs from top to bottom, and was committed as it ran."""
import json
import os
import subprocess
import sys

import matplotlib.image
import pytest
from conftest import REPOSITORY

NOTEBOOK = REPOSITORY / 'examples/centerpoint.ipynb'


def test_outputs_are_those_of_one_run():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())['cells']
             if cell['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in cells] == list(
        range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell['outputs']]
    assert not [o for o in outputs if o['output_type'] == 'error']
    assert sum('image/png' in o.get('data', ()) for o in outputs) == 2
    # Nothing of the machine that it ran on.
    assert str(REPOSITORY) not in NOTEBOOK.read_text()


@pytest.mark.slow
def test_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'IPython', '--colors=NoColor', NOTEBOOK],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=dict(os.environ, NOTEBOOK_OUT=str(tmp_path),
                            PYTHONPATH=str(REPOSITORY), MPLBACKEND='Agg'))
    assert done.returncode == 0 and 'Traceback' not in done.stdout, done.stdout
    assert 'exit code 0' in done.stdout
    for name in ('curve', 'predictions'):
        assert matplotlib.image.imread(tmp_path / f'{name}.png').std() > 0.05
