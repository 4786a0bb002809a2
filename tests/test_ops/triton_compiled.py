"""Compiles what the CUDA functions launch; run by ``test_triton_compiled.py``.

The functions get tensors without data, so that nothing can wait for a value,
and their launches only compile.
"""
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from sigplug.ops._windows import plan_windows
from sigplug.ops.cuda_kernels import FORMS, _launch, power_mean
from sigplug.ops.gaussian_focal_loss import FocalOptions
from sigplug.ops.power_mean import Dims, Segments

ARCH = int(os.environ['SIGPLUG_TEST_ARCH'])
CUOBJDUMP = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
POWERS = (3.0, 'shared', 'one per set')
COMPILED = {}
KEPT = []


class NoDevice:
    """What the compiler asks a driver for."""

    def get_current_target(self):
        return GPUTarget('cuda', ARCH, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.fixture(autouse=True)
def compile_only(monkeypatch):
    run = JITFunction.run

    def compile_for_device(self, *args, grid, warmup, **kwargs):
        assert grid[0] > 0
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        name = f'{self.module}.{self.__name__}'
        COMPILED[kernel.hash] = name, kernel.asm['cubin']
        kernel.source = self
        return kernel

    def check(self, grid):
        """A kept kernel is the one that Triton finds."""
        def launch(*args):
            assert len(grid) == 3
            assert self is compile_for_device(
                self.source, *args, grid=grid, warmup=True,
                num_warps=self.metadata.num_warps, **_launch.OPTIONS)
            KEPT.append(self)
        return launch

    triton.runtime.driver.set_active(NoDevice())
    monkeypatch.setattr(JITFunction, 'run', compile_for_device)
    monkeypatch.setattr(CompiledKernel, '__getitem__', check)


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device='meta')


# The number 1 and those beyond int32 are compiled apart.
@pytest.mark.parametrize('alpha, gamma, clip, rows, cells', [
    (2.0, 4.0, None, 2, 2**31), (2.0, 4.0, 1e-4, 1, 1),
    (1.5, 0.0, None, 3, 100), (2.0, 2.5, 1e-4, 3, 100),
    # Whole numbers are compiled as floats.
    (2, 4, 1e-4, 3, 100), (2.0, 4.0, 1e-4, 3, 100)])
def test_gaussian_focal_loss(alpha, gamma, clip, rows, cells):
    logits, target = empty(rows, cells, dtype=torch.bfloat16), empty(
        rows, cells)
    options = FocalOptions(alpha, gamma, clip=clip)
    form = FORMS['gaussian_focal_loss']
    for slopes, divisor in ((None, None), (empty(rows, cells), 3.0),
                            (None, empty())):
        for by_cell in (True, False):
            loss = form.forward(logits, target, options, by_cell,
                                None if by_cell else divisor, slopes)
            assert loss.shape == (logits.shape if by_cell else ())


@pytest.mark.parametrize('size', [(1, 1), (128, 128), (2**16, 2**16)])
def test_gaussian_heatmap(size):
    numbers = empty(5, 4, dtype=torch.int64).unbind(1)
    FORMS['gaussian_heatmap'].forward(
        empty(5, 2, dtype=torch.int64), numbers[0], numbers[1], 1, size)


@pytest.mark.parametrize('dtype', [torch.int64, torch.int32])
def test_kept_kernels(dtype):
    """Numbers and addresses that Triton compiles apart are kept apart."""
    before = len(KEPT)
    table = torch.zeros(49, dtype=dtype)
    for _ in range(2):
        for start in (0, 1):
            numbers = table[start:start + 48].view(3, 16)
            for size in ((1, 1), (16, 16), (17, 16), (16, 1), (2**16, 2**16),
                         (2**31, 1), (2**31 + 1, 1)):
                FORMS['gaussian_heatmap'].forward(
                    empty(16, 2, dtype=dtype), *numbers[:2], 1, size)
    assert (len(KEPT) - before >= 7) == _launch.KEEPS_COMPILED


def pool(x, sets, result_shape, powers=POWERS, eps=1e-6):
    for p in powers:
        if isinstance(p, str):
            p = empty(*(result_shape if p == 'one per set' else ()))
        y = power_mean.forward(x, p, sets, eps)
        assert y.shape == result_shape and y.dtype == torch.float32
        for wants_p in {False, isinstance(p, torch.Tensor)}:
            grad_x, grad_p = power_mean.backward(
                y, x, p, sets, eps, y, True, wants_p)
            assert grad_x.shape == x.shape and grad_x.dtype == x.dtype
            assert not wants_p or grad_p.shape == p.shape


def test_dims():
    x = empty(8, 64, 32, 32, dtype=torch.float16)
    mask = empty(8, 64, 32, 32, dtype=torch.bool)
    pool(x, Dims((2, 3)), (8, 64, 1, 1))
    pool(x, Dims((2, 3), mask), (8, 64, 1, 1), ('shared', ), None)
    pool(x, Dims((1, )), (8, 1, 32, 32), ('shared', ))


def test_in_chunks():
    pool(empty(10**6), Dims((0, )), (1, ), ('shared', ))
    pool(empty(2, 2**31), Dims((1, )), (2, 1), (3.0, ))


def test_segments():
    pool(empty(5000, 64), Segments(900, empty(5000, dtype=torch.int64)),
         (900, 64), (3.0, empty(64)))
    pool(empty(2**25, 64), Segments(4, empty(2**25, dtype=torch.int64)),
         (4, 64), ('shared', ))


@pytest.mark.parametrize('size, step, padding', [
    (2, 2, 0), (3, 1, 1), (4, 1, 2)])
def test_windows(size, step, padding):
    form = FORMS['gem_pool']
    # Those that overlap take seconds for each power.
    for shape, p in (((8, 64, 32, 32), 3.0 if size == 2 else empty()),
                     ((2**15, 2**16, 4, 4), empty(1, 2**16, 1, 1))):
        x = empty(*shape, dtype=torch.bfloat16)
        windows = plan_windows(size, step, padding, x.shape)
        y, by_p = form.forward(x, p, windows, 1e-6, True)
        form.backward(y, x, p, windows, 1e-6, y, by_p, True, True)


def test_no_registers_spill(tmp_path):
    """The last test: of all that was compiled before it."""
    assert len({name for name, _ in COMPILED.values()}) == 7
    for name, cubin in COMPILED.values():
        path = tmp_path / 'kernel.cubin'
        path.write_bytes(cubin)
        usage = subprocess.run(
            [CUOBJDUMP, '--dump-resource-usage', path], check=True,
            stdout=subprocess.PIPE, text=True).stdout
        stack, local = re.search(r'STACK:(\d+).*LOCAL:(\d+)', usage).groups()
        # A pointer may wait there for the end of the loop: with Triton 3.9,
        # in a loss whose powers are not whole.
        assert int(stack) <= 8 and int(local) == 0, f'{name}: {usage}'
