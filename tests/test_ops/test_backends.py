"""Which code computes an operation, and what happens where it is missing."""
import importlib
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from sigplug import ops
from sigplug.ops import backends
from sigplug.ops.backends import BackendError, Form, select
from sigplug.ops.cpu_kernels import library
from sigplug.ops.gaussian_focal_loss import PLAIN

needs_cpp = pytest.mark.skipif(
    'cpp' not in ops.available_backends(), reason='needs a C++ compiler')

X = torch.rand(2, 3, 4, 5)
CALLS = {
    'focal loss': lambda x, **k: ops.gaussian_focal_loss_with_logits(
        x, x, **k),
    'generalized_mean': ops.generalized_mean,
    'gem_pool': ops.gem_pool,
    'segments': lambda x, **k: ops.segment_generalized_mean(
        x, torch.tensor([1, 0]), 2, **k),
}


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)


@needs_cpp
@pytest.mark.parametrize('name', CALLS)
def test_names(name):
    """Both give the same; unknown names raise in each operation."""
    got = CALLS[name](X, backend='cpp')
    torch.testing.assert_close(got, CALLS[name](X, backend='eager'))
    with pytest.raises(ValueError, match="backend .*'auto'.*'cuda'"):
        CALLS[name](X, backend='cuda')
    with pytest.raises(BackendError, match='triton.*Available: auto, eager'):
        CALLS[name](X, backend='triton')
    with pytest.raises(BackendError, match='does not compute float64'):
        CALLS[name](X.double(), backend='cpp')


@needs_cpp
def test_auto_and_the_environment(monkeypatch):
    cpp = select(PLAIN, 'cpp', X)
    assert cpp is not PLAIN and cpp.operation == PLAIN.operation
    assert select(PLAIN, 'auto', X) is cpp
    assert select(PLAIN, 'auto', X.double()) is PLAIN
    assert select(PLAIN, 'eager', X) is PLAIN
    # An operation without a kernel.
    assert select(other := Form('clip_sigmoid', abs), 'cpp', X) is other
    monkeypatch.setenv(backends.VARIABLE, 'eager')
    assert select(PLAIN, 'auto', X) is PLAIN
    # The argument is the stronger word.
    assert select(PLAIN, 'cpp', X) is cpp
    monkeypatch.setenv(backends.VARIABLE, 'triton')
    with pytest.raises(BackendError, match="backend='triton'"):
        select(PLAIN, 'auto', X)
    monkeypatch.setenv(backends.VARIABLE, 'fast')
    with pytest.raises(ValueError, match="SIGPLUG_BACKEND.*'fast'"):
        select(PLAIN, 'auto', X)


@needs_cpp
def test_who_looks_inside_gets_the_eager_form():
    class Mine(torch.Tensor):
        pass

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    seen = []

    def probe(x):
        seen.append(select(PLAIN, 'cpp', x))
        return x * 1

    torch.func.vmap(probe)(X)
    torch.func.grad(lambda x: probe(x).sum())(X)
    torch.func.jvp(probe, (X, ), (X, ))
    torch.jit.trace(probe, (X, ), check_trace=False)
    probe(X.as_subclass(Mine))
    with Watch():
        probe(X)
    torch.func.functionalize(probe)(X)
    with torch.autograd.forward_ad.dual_level():
        probe(torch.autograd.forward_ad.make_dual(X, X))
    # Their memory holds the numbers with the other sign.
    probe(torch._neg_view(X))
    assert seen == [PLAIN] * len(seen) and len(seen) == 9


@pytest.mark.parametrize('backend', ['auto', 'eager'])
def test_tensors_on_several_devices(backend):
    """An error; a kernel would read what is no memory of its own."""
    other = torch.ones(X.shape, device='meta')
    for call in (
            partial(ops.gaussian_focal_loss_with_logits, X, other),
            partial(ops.generalized_mean, X, mask=other.bool()),
            partial(ops.generalized_mean, X, torch.ones((), device='meta'))):
        with pytest.raises(ValueError, match='on cpu .* on meta'):
            call(backend=backend)


@pytest.fixture
def threads_after():
    """The number of threads is that of before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@needs_cpp
@pytest.mark.usefixtures('threads_after')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_the_number_of_threads(dtype):
    x = torch.randn(3, 17, 90, 91)
    t = torch.rand(x.shape)**4
    p = torch.linspace(1.0, 9.0, 17)
    index = torch.randint(0, 500, (len(x.view(-1, 91)), ))

    for function in (
            partial(ops.gaussian_focal_loss_with_logits, target=t),
            partial(ops.generalized_mean, p=p),
            partial(ops.generalized_mean, dim=1),
            lambda x, backend: ops.segment_generalized_mean(
                x.reshape(-1, 91), index, 500, backend=backend)):
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaf = x.to(dtype).requires_grad_()
            y = function(leaf, backend='cpp')
            grad, = torch.autograd.grad(y.float().square().sum(), leaf)
            results.append((y, grad))
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other))


def test_triton_that_cannot_launch(monkeypatch):
    """It wants a C compiler, which it looks for at its first launch."""
    pytest.importorskip('triton', minversion='3.0')
    from sigplug.ops import cuda_kernels

    def fail(*args, **kwargs):
        raise RuntimeError('Failed to find C compiler.')

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch, 'zeros', fail)
    with pytest.raises(OSError, match='Failed to find C compiler'):
        cuda_kernels.prepare()


def test_triton_that_is_too_old(monkeypatch):
    triton = pytest.importorskip('triton')
    monkeypatch.setattr(triton, '__version__', '2.3.1')
    monkeypatch.delitem(sys.modules, 'sigplug.ops.cuda_kernels', False)
    with pytest.raises(ImportError, match='need Triton 3.* here is 2.3.1'):
        importlib.import_module('sigplug.ops.cuda_kernels')


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, '-W', 'always', '-c', textwrap.dedent(code)],
        capture_output=True, text=True, timeout=300,
        env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
        | environment)
    assert done.returncode == 0, done.stderr
    return done


USE_TWICE = """
    import torch
    from sigplug.ops import available_backends, generalized_mean
    x = torch.rand(2, 3, 4, 4)
    print(generalized_mean(x).shape, generalized_mean(x, 2.0).shape)
    print(available_backends())
"""


def test_without_a_compiler(tmp_path):
    """The program goes on, with one message; who insists gets an error."""
    done = run_python(USE_TWICE + """
    try:
        generalized_mean(x, backend='cpp')
    except RuntimeError as error:
        print(error)
    """, SIGPLUG_CACHE=str(tmp_path), CXX='no-such-compiler')
    assert done.stdout.count('torch.Size') == 2
    assert "('auto', 'eager')" in done.stdout
    # At the line of the program.
    assert done.stderr.count('RuntimeWarning') == 1
    assert '<string>:5: RuntimeWarning' in done.stderr
    assert 'no-such-compiler' in done.stderr and 'CXX' in done.stderr
    assert 'no-such-compiler' in done.stdout
    assert 'Available: auto, eager' in done.stdout


@pytest.fixture
def quick_compiler(tmp_path):
    """It notes each call, and its result is the library of this process."""
    script = tmp_path / 'bin' / 'compiler'
    script.parent.mkdir()
    script.write_text(f"""#!/bin/sh
case "$*" in *--version) echo quick; exit;; esac
sleep 2
echo >> {tmp_path}/calls
while [ "$1" != -o ]; do shift; done
exec cp {library.load()._name} "$2"
""")
    script.chmod(0o755)
    return str(script)


@needs_cpp
def test_the_library_is_built_once(tmp_path, quick_compiler):
    """Also by two processes at once, beside what a killed one has left."""
    cache = tmp_path / 'cache'
    cache.mkdir()
    (cache / 'kernels-0.123.tmp').write_text('half a library')
    variables = dict(SIGPLUG_CACHE=str(cache), CXX=quick_compiler)
    # Their imports may take longer than the compiler.
    wait_for_both = f"""
    import os, time, sigplug.ops
    from pathlib import Path
    folder = Path({str(tmp_path)!r})
    (folder / f'ready{{os.getpid()}}').touch()
    while len(list(folder.glob('ready*'))) < 2:
        time.sleep(0.05)
    """
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(run_python, wait_for_both + USE_TWICE, **variables)
                for _ in range(2)]
    messages = ''.join(process.result().stderr for process in both)
    built, = cache.glob('*.so')
    assert messages.count(
        f'compiles its CPU kernels with {quick_compiler} into {cache}, ') == 1
    assert messages.count('once on this machine') == 1
    assert messages.count('waits for its CPU kernels, which another process '
                          f'compiles into {cache}\n') == 1
    before = built.stat().st_mtime_ns
    done = run_python(USE_TWICE, **variables)
    assert done.stderr == '' and built.stat().st_mtime_ns == before
    assert (tmp_path / 'calls').read_text() == '\n'


@needs_cpp
def test_a_library_in_the_cache_needs_neither_compiler_nor_rights(
        monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    monkeypatch.setattr(os, 'access', lambda path, mode: mode != os.W_OK)
    assert library.load.__wrapped__()._name == library.load()._name


@needs_cpp
def test_a_cache_that_cannot_be_written(tmp_path, quick_compiler):
    (tmp_path / 'cache').write_text('a file, no folder')
    done = run_python(USE_TWICE, SIGPLUG_CACHE=str(tmp_path / 'cache'),
                      CXX=quick_compiler)
    assert "'cpp'" in done.stdout
    assert (tmp_path / 'calls').read_text() == '\n'
    assert 'again in every process, as the cache cannot be used' in done.stderr
    assert 'set SIGPLUG_CACHE to' in done.stderr


@needs_cpp
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs os.fork')
def test_a_forked_process_computes_what_torch_would():
    """A child has one thread, and waits for others that it believes in."""
    run_python("""
        import os, time, torch
        from sigplug.ops import generalized_mean
        torch.set_num_threads(2)
        generalized_mean(torch.rand(64, 64, 64), backend='cpp')
        child = os.fork()
        if not child:
            generalized_mean(torch.rand(4, 64, 100), backend='cpp')
            os._exit(0)
        for _ in range(600):
            if os.waitpid(child, os.WNOHANG)[0]:
                break
            time.sleep(0.05)
        else:
            os.kill(child, 9)
            raise SystemExit('the child hangs')
    """)
