"""What the benchmark tools share: options, the clock and the memory."""
import argparse
import gc
import math
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_flatten

from sigplug.engine.machine import describe_machine, list_versions
from sigplug.ops import available_backends

# Cores that other processes may use.
BUSY = 0.5
# The profiler of torch reports each start on stderr.
os.environ.setdefault('KINETO_LOG_LEVEL', '99')
PASSES = ('forward', 'backward', 'both')
# A repetition of a fast form holds several calls, so that it is not the
# resolution of the clock that is measured.
MIN_SECONDS, MAX_CALLS = 0.01, 1000
# Far beyond any cache.
COPY_BYTES = 2**28


def add_common_arguments(parser: argparse.ArgumentParser,
                         repeat: int) -> None:
    """The options of every benchmark."""
    parser.add_argument(
        '--threads', type=int, default=2, metavar='N',
        help='threads of torch on the CPU (default: %(default)s)')
    parser.add_argument(
        '--repeat', type=int, metavar='N',
        help=f'repetitions of each measurement (default: {repeat}, 5 with '
        '--quick)')
    parser.add_argument(
        '--quick', action='store_true',
        help='fewer cases and repetitions, for a first look')
    parser.add_argument(
        '--device', default='cpu',
        help='cpu, cuda or cuda:N (default: %(default)s)')
    parser.add_argument(
        '--out-dir', '--out', type=Path, dest='out', metavar='DIR',
        default=Path('work_dirs/bench'),
        help='folder of the results (default: %(default)s)')
    parser.add_argument(
        '--page', action='store_true',
        help='also rewrite docs/performance.md and its pictures from the '
        'results in --out')


def check_common_arguments(parser: argparse.ArgumentParser,
                           args: argparse.Namespace, repeat: int) -> None:
    """Fill in and check what :func:`add_common_arguments` added."""
    if args.repeat is None:
        args.repeat = 5 if args.quick else repeat
    for name in ('threads', 'repeat'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, got '
                         f'{getattr(args, name)}')
    if args.out.exists() and not args.out.is_dir():
        parser.error(f'--out-dir {args.out} must be a folder, but is a '
                     'file')
    try:
        args.device = torch.device(args.device)
    except RuntimeError:
        parser.error(f'--device must be cpu, cuda or cuda:N, got '
                     f'{args.device!r}')
    if args.device.type == 'cuda':
        if not torch.cuda.is_available():
            parser.error(f'--device {args.device}: torch finds no GPU here, '
                         'use --device cpu')
        # That whose work is waited for, and whose memory is counted.
        torch.cuda.set_device(args.device.index or 0)


# Forms and their inputs --------------------------------------------------


@dataclass(frozen=True)
class Form:
    """One way to compute a case.

    Args:
        name (str): What it is called in the tables.
        call (Callable, optional): Takes the arguments of the case; None if
            its package is not installed.
        answer (str): Forms with the same answer are compared with each
            other; any other than ``''`` is that of another function, which
            stands there for scale.
        leaves (tuple, optional): What to differentiate by, in place of the
            arguments of the case; in their order.
        package (str): What pip installs where the form is missing.
    """

    name: str
    call: Callable[..., Any] | None
    answer: str = ''
    leaves: tuple[Tensor, ...] | None = None
    package: str = ''


@dataclass(frozen=True)
class Work:
    """A case with its inputs.

    Args:
        forms (list[Form]): The first is the stock one.
        args (tuple): Arguments of every form; those that require a gradient
            get one.
        moved (tuple[int, int]): Bytes that forward and backward cannot
            avoid to move: inputs read, outputs written.
        tolerance (float): Largest difference of two equal answers, relative
            to the largest value.
    """

    forms: list[Form]
    args: tuple
    moved: tuple[int, int] = (0, 0)
    tolerance: float = 1e-4

    def leaves(self, form: Form) -> tuple[Tensor, ...]:
        """What a form is differentiated by; nothing for a forward case."""
        if form.leaves is not None:
            return form.leaves
        return tuple(arg for arg in self.args
                     if isinstance(arg, Tensor) and arg.requires_grad)


@dataclass
class Result:
    """What was measured of one form."""

    name: str
    same_function: bool
    status: str = 'ok'
    first_call_s: float = math.nan
    extra_bytes: int = 0
    calls: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)


def bytes_of(*tensors: Tensor) -> int:
    """Size of tensors in bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)


# Measuring ---------------------------------------------------------------


class Stepper:
    """Runs forms of a case, forward and backward.

    Args:
        work (Work): The case.
        device (torch.device): Where its inputs are.
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        self.work = work
        self.sync = (
            torch.cuda.synchronize if device.type == 'cuda' else lambda: None)
        self.gradients: dict[str, Tensor] = {}

    def answer(self, form: Form) -> list[Tensor]:
        """The result and the gradients of one call, flattened."""
        out = form.call(*self.work.args)
        values = [t.detach() for t in tree_flatten(out)[0]]
        leaves = self.work.leaves(form)
        if leaves:
            # Of one sign, so that the sum for p does not cancel.
            seeded = torch.Generator(out.device).manual_seed(0)
            self.gradients[form.name] = torch.rand(
                out.shape, generator=seeded, device=out.device).to(out.dtype)
            values += torch.autograd.grad(out, leaves,
                                          self.gradients[form.name])
        self.sync()
        return values

    def time(self, form: Form, calls: int) -> tuple[float, float]:
        """Seconds of a forward and of a backward, the mean of some calls."""
        leaves = self.work.leaves(form)
        gradient = self.gradients.get(form.name)
        forward = backward = 0.0
        for _ in range(calls):
            self.sync()
            start = perf_counter()
            out = form.call(*self.work.args)
            self.sync()
            middle = perf_counter()
            if leaves:
                grads = torch.autograd.grad(out, leaves, gradient)
                # The memory is given back inside the measurement, as between
                # two steps of a training.
                del grads
            del out
            self.sync()
            forward += middle - start
            backward += perf_counter() - middle
        return forward / calls, backward / calls


@contextmanager
def no_garbage_collection():
    """Keep Python's collector out of a measurement."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def measure(work: Work,
            repeat: int,
            device: torch.device,
            tick: Callable[[], Any] = lambda: None) -> list[Result]:
    """Check the forms of a case against each other and time them in turn.

    Args:
        work (Work): The case.
        repeat (int): Number of repetitions.
        device (torch.device): Where the case runs.
        tick (Callable): Called after each repetition.

    Returns:
        list[Result]: One for each form; a form whose answer is wrong has no
        seconds.
    """
    stepper = Stepper(work, device)
    results, expected, running = [], {}, []
    for form in work.forms:
        result = Result(form.name, form.answer == '')
        results.append(result)
        if form.call is None:
            result.status = f'not installed: pip install {form.package}'
            continue
        start = perf_counter()
        try:
            answer = stepper.answer(form)
        # A peer or a compiler may fail in any way; the others still count.
        except Exception as error:
            reason = (str(error).strip() or '-').splitlines()[0]
            result.status = f'failed: {type(error).__name__}: {reason}'
            continue
        result.first_call_s = perf_counter() - start
        difference = compare(expected.setdefault(form.answer, answer), answer)
        if difference > work.tolerance:
            result.status = (f'wrong answer: differs by {difference:.1e}, '
                             f'more than {work.tolerance:g}')
            continue
        running.append((form, result))
    # Not while the first answers take up caches and memory.
    expected.clear()
    for form, result in running:
        result.calls = count_calls(stepper, form)
        result.extra_bytes = extra_memory(
            lambda form=form: stepper.time(form, 1), device)
        has_backward = bool(work.leaves(form))
        result.seconds = {
            name: []
            for name in (PASSES if has_backward else PASSES[:1])
        }
    with no_garbage_collection():
        for _ in range(repeat):
            # In turn, so that a change of the machine's pace meets them all.
            for form, result in running:
                times = stepper.time(form, result.calls)
                for name, value in zip(PASSES, (*times, sum(times))):
                    if name in result.seconds:
                        result.seconds[name].append(value)
            tick()
    return results


def compare(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest expected value."""
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return math.inf
    worst = 0.0
    for x, y in zip(expected, actual):
        if not x.numel():
            continue
        x, y = x.double(), y.double()
        scale = x.abs().max().item() or 1.0
        difference = ((x - y).abs().max() / scale).item()
        if math.isnan(difference):
            return math.inf
        worst = max(worst, difference)
    return worst


def count_calls(stepper: Stepper, form: Form) -> int:
    """Calls of one repetition."""
    seconds = sum(stepper.time(form, 1))
    return max(1, min(MAX_CALLS, round(MIN_SECONDS / max(seconds, 1e-9))))


def extra_memory(step: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that torch holds at once in a step, beyond before it.

    On the CPU this is the running sum over the profiler's records of each
    allocation and release: what torch itself allocates, exactly, and without
    what the process or the C library keep for themselves.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [event for event in record.profiler.kineto_results.events()
              if event.name() == '[memory]']
    # Older versions count microseconds.
    events.sort(key=lambda event: getattr(event, 'start_ns',
                                          getattr(event, 'start_us', None))())
    held = most = 0
    for event in events:
        held += event.nbytes()
        most = max(most, held)
    return most


def copy_bandwidth(device: torch.device, repeat: int) -> float:
    """Bytes per second that a large copy reads and writes together."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    work = Work([Form('copy', torch.empty_like(source).copy_)], (source, ))
    copy, = measure(work, repeat, device)
    return 2 * COPY_BYTES / statistics.median(copy.seconds['forward'])


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) == 1:
        return (values[0], ) * 3
    low, middle, high = statistics.quantiles(values, method='inclusive')
    return low, middle, high


# Records -----------------------------------------------------------------


def command_line() -> str:
    """The command that runs, as it is typed in the repository."""
    tool = Path(sys.argv[0]).name
    return shlex.join(
        ['python', f'tools/analysis_tools/{tool}', *sys.argv[1:]])


def describe(args: argparse.Namespace, *packages: str) -> dict[str, Any]:
    """Machine, versions and settings of a run, before it begins."""
    # Threads that wait for each other lose a time slice each time.
    load = busy_cores()
    if load > BUSY:
        print(f'warning: other processes keep {load:.1f} cores busy, which '
              'distorts every figure: stop them first', file=sys.stderr)
    machine = describe_machine()
    if args.device.type == 'cuda':
        machine['gpu'] = torch.cuda.get_device_name(args.device)
    return dict(
        command=command_line(),
        device=args.device.type,
        threads=args.threads,
        repeat=args.repeat,
        backends=available_backends()[2:],
        load=load,
        machine=machine,
        versions=list_versions(*packages))


def busy_cores(seconds: float = 1.0) -> float:
    """Cores that are in use while this process sleeps; NaN off Linux."""
    first = read_busy_seconds()
    sleep(seconds)
    return (read_busy_seconds() - first) / seconds


def read_busy_seconds() -> float:
    """Processor time of all processes since the machine was started."""
    try:
        with open('/proc/stat') as file:
            user, nice, system, _, _, *interrupts = map(
                int, file.readline().split()[1:8])
    except OSError:
        return math.nan
    return (user + nice + system + sum(interrupts)) / os.sysconf('SC_CLK_TCK')
