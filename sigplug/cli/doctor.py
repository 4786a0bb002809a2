"""Say what sigplug would use on this machine, and what is missing and why."""
import argparse
import os
import platform
import warnings
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


class Report:
    """Lines that are printed at once, and the number of problems."""

    problems = 0

    def line(self, name: str, text: str, problem: object = '') -> None:
        """Print a line, and the problem with it, if any."""
        print(f'  {name:14s}{text}', flush=True)
        if problem:
            self.problem(problem)

    def problem(self, text: object) -> None:
        """Print and count a problem."""
        self.problems += 1
        print(f'  {"PROBLEM":14s}{text}', flush=True)


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
    report = Report()
    machine = describe_machine()
    print(f'sigplug {__version__}, Python {platform.python_version()}, '
          f'{machine["system"]}, {machine["cores"]} cores of {machine["cpu"]}')
    print('packages')
    report_packages(report)
    if find_spec('torch'):
        print('GPU and operators', flush=True)
        report_devices(report)
        print('kernels')
        report_kernels(report, args.compile)
    print(f'{report.problems} problems' if report.problems != 1 else
          '1 problem')
    return bool(report.problems)


def report_packages(report: Report) -> None:
    """Compare what is installed with the versions sigplug is made for."""
    packages = list_packages()
    if not packages:
        report.line('sigplug', 'is not installed, or packaging: the ranges '
                    'of versions are unknown')
    ranges = {package.module: package.bounds for package in packages}
    distributions = packages_distributions()
    for name, use in PACKAGES.items():
        if not find_spec(name):
            report.line(name, f'missing; for {use}',
                        'install it: https://pytorch.org'
                        if name == 'torch' else '')
            continue
        try:
            # Such as mmcv-lite, or spconv-cu120.
            found = version(distributions.get(name, [name])[0])
        except PackageNotFoundError:
            found = 'of unknown version'
        report.line(name, f'{found} ({ranges.get(name, "any")})')
    for problem in find_misfits(packages):
        report.problem(problem)


def report_devices(report: Report) -> None:
    """Look for GPUs and for operators that can use them."""
    import torch
    found = torch.cuda.is_available()
    report.line(
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
            report.line(name, 'cannot be imported', f'{error}. mmcv has to be '
                        f'compiled for torch {torch.__version__}: make env')
            continue
        text = 'imported'
        problem = ''
        if name == 'mmcv.ops':
            cuda = module.get_compiling_cuda_version()
            text = f'compiled for CUDA: {cuda}'
            if found and cuda == 'not available':
                problem = ('the GPU cannot be used: compile mmcv with '
                           'FORCE_CUDA=1')
        report.line(name, text, problem)


def report_kernels(report: Report, may_compile: bool) -> None:
    """Say which backend computes on each device, and why not another."""
    import torch

    from sigplug.ops import backends
    from sigplug.ops.cpu_kernels import library
    chosen = os.environ.get(backends.VARIABLE)
    if chosen:
        report.line(backends.VARIABLE, chosen, '' if chosen in backends.NAMES
                    else f'must be one of {", ".join(backends.NAMES)}')
    try:
        folder = library.cache_folder()
        report.line('cache', f'{folder}')
    except RuntimeError as error:
        report.line('cache', f'none ({error}): set SIGPLUG_CACHE to a folder')
    found = library.find_library()
    problem = ''
    if found is None and not may_compile:
        try:
            compiler = library.find_compiler()
            report.line('CPU', f'cpp, once {compiler[0]} has compiled the '
                        'kernels: at the first call, or now by '
                        '`sigplug doctor --compile`')
        except backends.BackendError as error:
            problem = str(error)
    else:
        problem = backends._load('cpp').problem
        if not problem:
            report.line('CPU', f'cpp, {library.load()._name}')
    if problem:
        report.line('CPU', f'eager, which is slower: {problem}')
    if torch.cuda.is_available():
        problem = backends._load('triton').problem
        report.line('CUDA', f'eager, which is slower: {problem}' if problem
                    else 'triton')
    else:
        report.line('CUDA', 'no GPU')
