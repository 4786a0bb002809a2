"""Fixtures that several test files use."""
import importlib.util
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

# yapf writes a cache at its first import, which two processes of pytest must
# not do at once.
import yapf  # noqa: F401
from hypothesis import HealthCheck, settings
from mmengine.utils import digit_version

from sigplug.engine.checkpoint import load_safely
from sigplug.files import lock

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = REPOSITORY / 'tools'
# As for an analysis tool that is run.
sys.path.append(str(TOOLS / 'analysis_tools'))
QUICKSTART = REPOSITORY / (
    'configs/centerpoint/'
    'centerpoint_pillar04_second_secfpn_gem_1xb2-onecycle-5e_nus-mini-3d.py')

# The quickstart in epochs of two iterations, without validation. The worker of
# the data loader starts anew in each epoch, so that the augmentation does not
# depend on the epochs before it.
SMALL_CONFIG = f"""
_base_ = ['{QUICKSTART}']
train_cfg = dict(max_epochs=3, val_begin=100)
train_dataloader = dict(
    batch_size=1, num_workers=1, persistent_workers=False,
    dataset=dict(indices=2))
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=-1))
# In six iterations a model has to find something within the ranges of the
# classes: the nuScenes devkit does not evaluate nothing.
optim_wrapper = dict(optimizer=dict(lr=1e-3))
"""

# `make test` draws the same few examples each time, so that only a change can
# make it fail; `make fuzz` draws new ones, and keeps those that fail in
# .hypothesis.
COMMON = dict(
    deadline=None, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    'test', max_examples=30, derandomize=True, **COMMON)
settings.register_profile(
    'fuzz', max_examples=int(os.environ.get('EXAMPLES', 1000)), **COMMON)
settings.load_profile('test')


# Beside OneDL's forks mmdet3d can be imported by sigplug alone.
SWITCH = 'SIGPLUG_MMDET3D_BESIDE_ONEDL'
mmdet3d_comes_first = pytest.mark.skipif(
    os.environ.get(SWITCH) == '1', reason='imports mmdet3d before sigplug, '
    "which it refuses beside OneDL's forks")

# What old versions of torch cannot do, as they say it themselves.
NOT_IN_OLD_TORCH = {
    'AutocastCPU only support|needs torch 2.3 or later|GradScaler':
        'no float16 autocast on the CPU',
    "torch.export' has no attribute|unexpected keyword argument 'strict'":
        'torch.export in its infancy',
    r'_dynamo\.exc|torch\._dynamo': 'torch.compile in its infancy',
    "unexpected keyword argument 'dynamo'": 'no such exporter to ONNX',
    'Bad node spec for node.*ReduceMax': 'its exporter has opset 17 for GeM',
    'returned a result with an exception set':
        'its exporter to ONNX warns about every check of a shape',
    'not yet implemented the batching rule': 'no vmap of scatter_reduce',
    '"avg_pool2d" not implemented': 'no float16 pooling on the CPU',
}
OLD_TORCH = digit_version(torch.__version__) < digit_version('2.4')


if OLD_TORCH:
    torch_nextafter = torch.nextafter

    def nextafter(x: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Old torch has none for float16."""
        if x.dtype == torch.float16:
            return torch.from_numpy(
                np.asarray(np.nextafter(x.numpy(), end.numpy())))
        return torch_nextafter(x, end)

    torch.nextafter = nextafter


def skip_what_old_torch_has_not():
    """Skip what torch before 2.4 has not learnt yet."""
    try:
        return (yield)
    except Exception as error:
        if OLD_TORCH:
            text = f'{type(error).__module__}.{type(error).__name__}: {error}'
            for pattern, what in NOT_IN_OLD_TORCH.items():
                if re.search(pattern, text, re.DOTALL):
                    pytest.skip(f'torch {torch.__version__}: {what}')
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    # No further property once the time of `make fuzz` is up.
    if time.time() > float(os.environ.get('FUZZ_UNTIL', math.inf)):
        pytest.skip('the time is up')
    return (yield from skip_what_old_torch_has_not())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from skip_what_old_torch_has_not())


@pytest.fixture(autouse=True, scope='module')
def one_thread() -> None:
    """On small tensors a second thread only costs, most so when busy.

    It also rounds otherwise, and a tool that ran in this process may have set
    it.
    """
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Each test starts from the same random numbers."""
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def synthetic_nuscenes(tmp_path_factory) -> Path:
    """A data set by the real generator: ten scenes of three key frames.

    The processes of pytest-xdist share it.
    """
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent
    root = folder / 'synthetic_nuscenes'
    with lock(folder / '.lock', lambda: None):
        if not root.exists():
            subprocess.run(tool_command(
                'dataset_converters/create_synthetic_nuscenes.py', '--out',
                root, '--seed', 0, '--samples-per-scene', 3), check=True)
    return root


@pytest.fixture
def damageable(tmp_path, synthetic_nuscenes) -> Path:
    """The data set for one test alone, made of links to its files.

    A file is damaged by :func:`replace`, which leaves the shared one as it
    is; the info files are copies.
    """
    root = tmp_path / 'data'
    shutil.copytree(synthetic_nuscenes, root, copy_function=os.symlink)
    for path in root.glob('*.pkl'):
        replace(path, path.read_bytes())
    return root


def replace(path: Path, content: bytes) -> None:
    """Give a file of ``damageable`` other content."""
    path.unlink()
    path.write_bytes(content)


@pytest.fixture(scope='module')
def folder(tmp_path_factory, synthetic_nuscenes) -> Iterator[Path]:
    """A working directory outside the repository, with ``small.py`` in it.

    The configs find the data set through the environment.
    """
    folder = tmp_path_factory.mktemp('run')
    (folder / 'small.py').write_text(SMALL_CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SIGPLUG_DATA_ROOT', f'{synthetic_nuscenes}/')
        # With so small batches, threads that share busy cores only wait.
        patch.setenv('OMP_NUM_THREADS', '1')
        yield folder


@pytest.fixture(scope='session')
def run_tool() -> Callable[..., str]:
    """A function that runs a tool and returns what it printed."""

    def run(tool: str, *args, cwd: Path, expect: int = 0) -> str:
        return run_python(TOOLS / tool, *args, cwd=cwd, expect=expect)

    return run


def run_python(*args, cwd: Path, expect: int = 0, **variables: str) -> str:
    """Run Python in a process of its own, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, args)], cwd=cwd, text=True,
        env=dict(os.environ, **variables),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == expect, done.stdout
    return done.stdout


def tool_command(tool: str, *args) -> list[str]:
    """The command line of a Python tool."""
    return [sys.executable, str(TOOLS / tool), *map(str, args)]


def page_snippet(page: str, title: str) -> dict:
    """The names that the first snippet below a heading of docs/ defines."""
    code = re.search(rf'(?ms)^##+ {title}\n.*?^```python\n(.*?)^```',
                     (REPOSITORY / 'docs' / page).read_text())[1]
    space: dict = {}
    exec(code, space)
    return space


def load_tool(path: str | Path) -> ModuleType:
    """A tool, or another script, as a module."""
    path = TOOLS / path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # As for a script, whose folder comes first.
        patch.syspath_prepend(str(path.parent))
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_here(capfd, monkeypatch) -> Callable[..., tuple]:
    """A function that runs a tool in this process, which is quicker.

    It takes the tool as a name or as a module, and returns the exit code and
    what was printed.
    """

    def run(tool: str | ModuleType, *args, cwd: Path | None = None) -> tuple:
        if cwd:
            monkeypatch.chdir(cwd)
        monkeypatch.setattr('sys.argv', ['tool', *map(str, args)])
        # mmengine's log handlers hold the streams of the tests before.
        monkeypatch.setattr('logging.raiseExceptions', False)
        if isinstance(tool, str):
            tool = load_tool(tool)
        try:
            code = tool.process.run_tool(tool.main)
        except SystemExit as end:
            code = end.code
        return code, capfd.readouterr()

    return run


@pytest.fixture
def succeed(run_here) -> Callable[..., str]:
    """A function that runs a tool in this process and returns its output."""

    def succeed(*args, **kwargs) -> str:
        code, printed = run_here(*args, **kwargs)
        assert code == 0, printed.err
        return printed.out

    return succeed


@pytest.fixture
def fail(run_here) -> Callable[..., str]:
    """A function that runs a tool whose end is one message, and returns it."""

    def fail(*args, **kwargs) -> str:
        code, printed = run_here(*args, **kwargs)
        assert code == 2 and 'Traceback' not in printed.err
        assert printed.err.count('error: ') == 1
        return printed.err[printed.err.index('error: '):]

    return fail


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What the loaded modules of sigplug log, each text with its level."""
    lines = []

    def print_log(text, logger=None, level=logging.INFO):
        lines.append(f'{logging.getLevelName(level)}: {text}')

    for name, module in list(sys.modules.items()):
        if name.startswith('sigplug.') and hasattr(module, 'print_log'):
            monkeypatch.setattr(module, 'print_log', print_log)
    return lines


class Call:
    """Calls a function where it is unpickled by who trusts it."""

    def __init__(self, function: Callable, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def differences(a: dict, b: dict, prefix: str = '') -> set[str]:
    """Dotted keys whose values differ between two config dicts."""
    keys = set()
    for key in set(a) | set(b):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            keys |= differences(left, right, f'{prefix}{key}.')
        elif left != right:
            keys.add(f'{prefix}{key}')
    return keys


def assert_same_training(work_dir: Path, uninterrupted: Path) -> None:
    """The last checkpoints of two trainings of SMALL_CONFIG are equal."""
    found, expected = (load_safely(folder / 'epoch_3.pth')
                       for folder in (work_dir, uninterrupted))
    for key in ('epoch', 'iter', 'seed'):
        assert found['meta'][key] == expected['meta'][key]
    assert (found['meta']['epoch'], found['meta']['iter']) == (3, 6)
    assert found['param_schedulers'] == expected['param_schedulers']
    optimizer, wanted = found['optimizer'], expected['optimizer']
    assert optimizer['param_groups'] == wanted['param_groups']
    assert {state['step'].item() for state in optimizer['state'].values()
            } == {6}
    torch.testing.assert_close(
        [optimizer['state'], found['state_dict']],
        [wanted['state'], expected['state_dict']], rtol=0, atol=0)
    # The rate at each iteration and the loss are in the log as well.
    for name in ('train/lr', 'train/loss'):
        values, wanted = (
            checkpoint['message_hub']['log_scalars'][name].data[0]
            for checkpoint in (found, expected))
        assert len(set(values)) > 1 and len(values) == 6
        np.testing.assert_array_equal(values, wanted)
