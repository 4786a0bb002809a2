"""The CUDA kernels, compiled without a GPU.

A file of its own, for another process to take meanwhile.
"""
import pytest

from .test_triton import run


# Where only the numbers differ, one architecture tells.
@pytest.mark.parametrize('arch, options', [
    pytest.param(80, ('-k', 'not segments'), marks=pytest.mark.slow),
    (90, ())])
def test_compiles_without_a_gpu(arch, options, tmp_path):
    """From scratch, as another cache may hold what no longer compiles."""
    run('triton_compiled.py', *options, TRITON_INTERPRET='0',
        SIGPLUG_TEST_ARCH=str(arch), TRITON_CACHE_DIR=str(tmp_path))
