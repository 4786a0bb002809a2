"""The CUDA kernels: interpreted, compiled without a GPU, and on one.

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


# Where only the numbers differ, one architecture tells.
@pytest.mark.parametrize('arch, options', [
    pytest.param(80, ('-k', 'not segments'), marks=pytest.mark.slow),
    (90, ())])
def test_compiles_without_a_gpu(arch, options, tmp_path):
    """From scratch, as another cache may hold what no longer compiles."""
    run('triton_compiled.py', *options, TRITON_INTERPRET='0',
        SIGPLUG_TEST_ARCH=str(arch), TRITON_CACHE_DIR=str(tmp_path))
