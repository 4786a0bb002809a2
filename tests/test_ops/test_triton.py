"""The CUDA kernels, interpreted and on a GPU.

Whether Triton interprets is settled when its kernels are imported, and which
device it compiles for is a setting of the process: each has its own.
"""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('triton', minversion='3.0')

FOLDER = Path(__file__).parent


def run(inner_file: str, *options: str, **environment: str) -> None:
    """Run the tests of a file that pytest does not collect by itself."""
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider',
         FOLDER / inner_file, *options],
        env={**os.environ, 'OMP_NUM_THREADS': '1', **environment},
        cwd=FOLDER.parent.parent, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=900)
    assert done.returncode == 0 and ' passed' in done.stdout, done.stdout


def test_interpreted():
    run('triton_results.py', TRITON_INTERPRET='1')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu():
    run('triton_results.py', TRITON_INTERPRET='0')
