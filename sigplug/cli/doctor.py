"""Say what sigplug would use on this machine, and what is missing and why."""
import argparse
import os
import platform
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import (
    PackageNotFoundError,
    packages_distributions,
    version,
)
from importlib.util import find_spec

from sigplug.version import __version__

from .machine import describe_machine, find_misfits, list_packages

# By the names that are imported, with what they are for.
PACKAGES = {
    'torch': 'everything but sigplug.deploy',
    'mmengine': 'parts that a config names, training',
    'mmcv': 'heads, encoders and training',
    'mmdet': 'heads, encoders and training',
    'mmdet3d': 'heads, encoders and training',
    'spconv': 'sparse convolutions on a CPU, or faster ones',
}


def show(name: str, text: object) -> None:
    """Print a line of the report."""
    print(f'  {name:14s}{text}', flush=True)


def main() -> int:
    """Print the report.

    Returns:
        int: The exit code: 1 if something is missing, does not fit or fails
        that what is installed needs.
    """
    parser = argparse.ArgumentParser(prog='sigplug doctor',
                                     description=__doc__)
    parser.add_argument(
        '--compile', action='store_true',
        help='compile the CPU kernels if that has not been done')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    machine = describe_machine()
    print(f'sigplug {__version__}, Python {platform.python_version()}, '
          f'{machine["system"]}, {machine["cores"]} cores of {machine["cpu"]}')
    parts = [('packages', report_packages())]
    if find_spec('torch'):
        parts += [('GPU and operators', report_devices()),
                  ('kernels', report_kernels(args.compile))]
    count = 0
    for title, problems in parts:
        print(title, flush=True)
        for problem in problems:
            show('PROBLEM', problem)
            count += 1
    print(f'{count} problems' if count != 1 else '1 problem')
    return bool(count)


def report_packages() -> Iterator[str]:
    """Compare versions with those sigplug is made for; yield problems."""
    packages = list_packages()
    if not packages:
        show('sigplug', 'is not installed, or packaging: the ranges of '
             'versions are unknown')
    ranges = {package.module: package.bounds for package in packages}
    distributions = packages_distributions()
    for name, use in PACKAGES.items():
        if not find_spec(name):
            show(name, f'missing; for {use}')
            if name == 'torch':
                yield 'install it: https://pytorch.org'
            continue
        try:
            # Such as mmcv-lite, or spconv-cu120.
            found = version(distributions.get(name, [name])[0])
        except PackageNotFoundError:
            found = 'of unknown version'
        show(name, f'{found} ({ranges.get(name, "any")})')
    yield from find_misfits(packages)


def report_devices() -> Iterator[str]:
    """Look for GPUs and operators that can use them; yield problems."""
    import torch
    found = torch.cuda.is_available()
    show(
        'CUDA', ', '.join(torch.cuda.get_device_name(i) for i in range(
            torch.cuda.device_count())) if found else
        'no GPU: this torch is built without CUDA' if not torch.version.cuda
        else f'no GPU found by torch, which is built for CUDA '
        f'{torch.version.cuda}')
    for name in ('mmcv.ops', 'mmdet3d'):
        if not find_spec(name.partition('.')[0]):
            continue
        try:
            module = import_module(name)
        # mmdet3d asserts the versions of the others.
        except (ImportError, AssertionError, OSError) as error:
            show(name, 'cannot be imported')
            yield (f'{error}. mmcv has to be compiled for torch '
                   f'{torch.__version__}: make env')
            continue
        if name == 'mmdet3d':
            show(name, 'imported')
            continue
        cuda = module.get_compiling_cuda_version()
        show(name, f'compiled for CUDA: {cuda}')
        if found and cuda == 'not available':
            yield 'the GPU cannot be used: compile mmcv with FORCE_CUDA=1'


def report_kernels(may_compile: bool) -> Iterator[str]:
    """Say which backend computes where, and why not another."""
    import torch

    from sigplug.ops import backends
    from sigplug.ops.cpu_kernels import library
    chosen = os.environ.get(backends.VARIABLE)
    if chosen:
        show(backends.VARIABLE, chosen)
        if chosen not in backends.NAMES:
            yield f'must be one of {", ".join(backends.NAMES)}'
    try:
        show('cache', library.cache_folder())
    except RuntimeError as error:
        show('cache', f'none ({error}): set SIGPLUG_CACHE to a folder')
    slower = 'eager, which is slower: '
    if library.find_library() is None and not may_compile:
        try:
            show('CPU', f'cpp, once {library.find_compiler()[0]} has compiled '
                 'the kernels: at the first call, or now by `sigplug doctor '
                 '--compile`')
        except backends.BackendError as error:
            show('CPU', f'{slower}{error}')
    elif problem := backends._load('cpp').problem:
        show('CPU', f'{slower}{problem}')
    else:
        show('CPU', f'cpp, {library.load()._name}')
    if not torch.cuda.is_available():
        show('CUDA', 'no GPU')
    elif problem := backends._load('triton').problem:
        show('CUDA', f'{slower}{problem}')
    else:
        show('CUDA', 'triton')
