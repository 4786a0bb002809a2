"""Which code computes an operation, and what happens where it is missing."""
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from sigplug import ops
from sigplug.ops import backends
from sigplug.ops.backends import BackendError, available_backends, select
from sigplug.ops.cpu_kernels import library

needs_cpp = pytest.mark.skipif(
    'cpp' not in available_backends(), reason='needs a C++ compiler')

X = torch.rand(2, 3, 4, 5)
INDEX = torch.tensor([1, 0])
CALLS = {
    'clip_sigmoid': lambda x, **k: ops.clip_sigmoid(x, **k),
    'gaussian_focal_loss_with_logits':
        lambda x, **k: ops.gaussian_focal_loss_with_logits(x, x, **k),
    'generalized_mean': lambda x, **k: ops.generalized_mean(x, **k),
    'gem_pool': lambda x, **k: ops.gem_pool(x, 3.0, 2, **k),
    'segment_generalized_mean': lambda x, **k: ops.segment_generalized_mean(
        x, INDEX, 2, **k),
}


@pytest.fixture(scope='module', autouse=True)
def backend():
    """Once is enough here, in place of once for each backend."""


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
    with pytest.raises(BackendError, match='float32.*not float64'):
        CALLS[name](X.double(), backend='cpp')


@needs_cpp
def test_heatmap_names():
    args = (torch.tensor([[3, 2]]), torch.tensor([1]), torch.tensor([0]), 1,
            (5, 6))
    got = ops.gaussian_heatmap(*args, backend='cpp')
    torch.testing.assert_close(
        got, ops.gaussian_heatmap(*args, backend='eager'))
    with pytest.raises(BackendError, match='triton'):
        ops.gaussian_heatmap(*args, backend='triton')


@needs_cpp
def test_auto_and_the_environment(monkeypatch):
    cpp = select('cpp', X)
    assert select('auto', X) is cpp
    assert select('auto', X.double()) is None
    assert select('eager', X) is None
    monkeypatch.setenv(backends.VARIABLE, 'eager')
    assert select('auto', X) is None
    # The argument is the stronger word.
    assert select('cpp', X) is cpp
    monkeypatch.setenv(backends.VARIABLE, 'triton')
    with pytest.raises(BackendError, match="backend='triton'"):
        select('auto', X)
    monkeypatch.setenv(backends.VARIABLE, 'fast')
    with pytest.raises(ValueError, match="SIGPLUG_BACKEND.*'fast'"):
        select('auto', X)


@needs_cpp
def test_who_looks_inside_gets_the_eager_form():
    class Mine(torch.Tensor):
        pass

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    seen = []

    def probe(x):
        seen.append(select('cpp', x))
        return x * 1

    torch.func.vmap(probe)(X)
    torch.func.grad(lambda x: probe(x).sum())(X)
    torch.func.jvp(probe, (X, ), (X, ))
    torch.jit.trace(probe, (X, ), check_trace=False)
    probe(X.as_subclass(Mine))
    with Watch():
        probe(X)
    # Also of tensors that are no argument of the function.
    torch.func.vmap(lambda y: y * probe(X).sum())(X)
    torch.func.grad(lambda y: y * probe(X).sum())(X[0, 0, 0, 0])
    # Their memory holds the numbers with the other sign.
    probe(torch._neg_view(X))
    assert seen == [None] * 9


@needs_cpp
@pytest.mark.parametrize('name', CALLS)
def test_inside_a_transform_of_something_else(name):
    got = torch.func.vmap(lambda y: y * CALLS[name](X).sum())(torch.ones(2))
    torch.testing.assert_close(got, CALLS[name](X).sum().expand(2))


@needs_cpp
@pytest.mark.parametrize('name', CALLS)
def test_default_device_and_dtype(name):
    """They say nothing about tensors that are already there."""
    def compute():
        leaf = X.clone().requires_grad_()
        y = CALLS[name](leaf, backend='cpp')
        return y.detach(), *torch.autograd.grad(y.sum(), leaf)

    expected = compute()
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device('meta'):
            got = compute()
    finally:
        torch.set_default_dtype(before)
    assert all(map(torch.equal, expected, got))


@needs_cpp
def test_heatmap_with_a_default_dtype():
    args = (torch.tensor([[3, 2]]), torch.tensor([1]), torch.tensor([0]), 1,
            (5, 6))
    expected = ops.gaussian_heatmap(*args, backend='eager')
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device('meta'):
            got = ops.gaussian_heatmap(*args, backend='cpp')
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize('backend', ['auto', 'eager'])
def test_tensors_on_several_devices(backend):
    """An error; a kernel would read what is no memory of its own."""
    other = torch.ones(X.shape, device='meta')
    options = dict(backend=backend)
    with pytest.raises(ValueError, match='on cpu .* on meta'):
        ops.gaussian_focal_loss_with_logits(X, other, **options)
    with pytest.raises(ValueError, match='on cpu .* on meta'):
        ops.generalized_mean(X, 3.0, mask=other.bool(), **options)
    with pytest.raises(ValueError, match='on cpu .* on meta'):
        ops.generalized_mean(X, torch.ones((), device='meta'), **options)


def test_triton_that_cannot_launch(monkeypatch):
    """It wants a C compiler, which it looks for at its first launch."""
    kernels = pytest.importorskip('sigplug.ops.cuda_kernels')

    def fail(*args, **kwargs):
        raise RuntimeError('Failed to find C compiler.')

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch, 'ones', fail)
    monkeypatch.setattr(kernels.triton, '__version__', '3.0.0')
    with pytest.raises(OSError, match='Failed to find C compiler'):
        kernels.prepare()
    monkeypatch.setattr(kernels.triton, '__version__', '2.3.1')
    with pytest.raises(OSError, match='need Triton 3.* here is 2.3.1'):
        kernels.prepare()


def run_python(code, **environment):
    code = textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, '-W', 'always', '-c', code], capture_output=True,
        text=True, timeout=300, check=True,
        env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
        | environment)


USE_TWICE = """
    import torch
    from sigplug.ops import available_backends, clip_sigmoid, generalized_mean
    x = torch.rand(2, 3, 4, 4)
    print(generalized_mean(x).shape, generalized_mean(x, 2.0).shape)
    print(clip_sigmoid(x).shape, available_backends())
"""


def test_without_a_compiler(tmp_path):
    """The program goes on, with one message; who insists gets an error."""
    environment = dict(SIGPLUG_CACHE=str(tmp_path), CXX='no-such-compiler')
    done = run_python(USE_TWICE, **environment)
    assert done.stdout.count('torch.Size') == 3
    assert "('auto', 'eager')" in done.stdout
    assert done.stderr.count('RuntimeWarning') == 1
    assert 'no-such-compiler' in done.stderr and 'CXX' in done.stderr
    done = run_python("""
        import torch
        from sigplug.ops import generalized_mean
        try:
            generalized_mean(torch.rand(2, 3, 4, 4), backend='cpp')
        except RuntimeError as error:
            print(error)
    """, **environment)
    assert 'no-such-compiler' in done.stdout
    assert 'Available: auto, eager' in done.stdout


def test_a_compiler_that_fails(tmp_path):
    broken = tmp_path / 'c++'
    broken.write_text('#!/bin/sh\necho "no such header" >&2\nexit 1\n')
    broken.chmod(0o755)
    done = run_python(USE_TWICE, SIGPLUG_CACHE=str(tmp_path / 'cache'),
                      CXX=str(broken))
    assert done.stdout.count('torch.Size') == 3
    assert 'no such header' in done.stderr
    assert done.stderr.count('RuntimeWarning') == 1
    assert not list((tmp_path / 'cache').glob('*.so*'))


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
    environment = os.environ | variables | {
        'PYTHONPATH': os.pathsep.join(sys.path)}
    code = textwrap.dedent(USE_TWICE)
    both = [subprocess.Popen([sys.executable, '-c', code], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             env=environment) for _ in range(2)]
    output = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    built, = cache.glob('*.so')
    messages = ''.join(errors for _, errors in output)
    assert messages.count('compiles its CPU kernels') == 1
    before = built.stat().st_mtime_ns
    done = run_python(USE_TWICE, **variables)
    assert done.stderr == '' and built.stat().st_mtime_ns == before
    assert (tmp_path / 'calls').read_text() == '\n'


@needs_cpp
def test_a_library_that_was_cut_off(tmp_path, monkeypatch):
    """It is built again: to load it would kill the process."""
    whole = Path(library.load()._name)
    cut = tmp_path / whole.name
    cut.write_bytes(whole.read_bytes()[:8192])
    monkeypatch.setenv('SIGPLUG_CACHE', str(tmp_path))
    monkeypatch.setattr(library, '_compile',
                        lambda command, path: shutil.copy(whole, path))
    assert library.load.__wrapped__()._name == str(cut)
    assert cut.read_bytes() == whole.read_bytes()


@needs_cpp
def test_what_the_compiler_says_is_passed_on(tmp_path, monkeypatch,
                                             quick_compiler):
    """And nothing stays of a build that fails; the next one may work."""
    cache = tmp_path / 'cache'
    monkeypatch.setenv('SIGPLUG_CACHE', str(cache))
    fails = tmp_path / 'fails'
    fails.write_text('#!/bin/sh\n'
                     'while [ "$1" != -o ]; do shift || exit 0; done\n'
                     'echo half > "$2"; echo no omp.h here >&2; exit 1\n')
    fails.chmod(0o755)
    monkeypatch.setenv('CXX', str(fails))
    with pytest.raises(BackendError, match='compile the kernels:\nno omp.h'):
        library.load.__wrapped__()
    assert [path.name for path in cache.iterdir()] == ['kernels.lock']
    monkeypatch.setenv('CXX', quick_compiler)
    built = Path(library.load.__wrapped__()._name)
    assert built.parent == cache
    content = Path(library.load()._name).read_bytes()
    assert built.read_bytes().startswith(content)


@needs_cpp
def test_a_cache_that_can_only_be_read(monkeypatch):
    """A library that is there is taken."""
    access = os.access
    monkeypatch.setattr(os, 'access', lambda path, mode: (
        mode != os.W_OK and access(path, mode)))
    monkeypatch.setattr(library, '_compile', None)
    assert library.load.__wrapped__()._name == library.load()._name


@needs_cpp
def test_a_user_without_a_home(monkeypatch):
    def expanduser(self):
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.setattr(Path, 'expanduser', expanduser)
    with library._folder_of('kernels.so') as folder:
        assert os.access(folder, os.W_OK)


@needs_cpp
def test_a_cache_that_cannot_be_written(tmp_path, quick_compiler):
    (tmp_path / 'cache').write_text('a file, no folder')
    done = run_python(USE_TWICE, SIGPLUG_CACHE=str(tmp_path / 'cache'),
                      CXX=quick_compiler)
    assert "'cpp'" in done.stdout
    assert (tmp_path / 'calls').read_text() == '\n'


def test_another_machine_builds_anew(monkeypatch):
    """The name of the library tells compiler, flags and processor."""
    name = library._fingerprint(('c++', '-O3'))
    assert name == library._fingerprint(('c++', '-O3'))
    assert name != library._fingerprint(('c++', '-O2'))
    monkeypatch.setattr(library.platform, 'machine', lambda: 'another')
    assert name != library._fingerprint(('c++', '-O3'))
