"""Time several forms of one computation in turn, on the CPU or a GPU."""
import gc
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_flatten

# The profiler of torch reports each start on stderr.
os.environ.setdefault('KINETO_LOG_LEVEL', '99')
# A repetition of a fast form consists of several calls, so that it is not the
# resolution of the clock that is measured.
MIN_SECONDS, MAX_CALLS = 0.01, 1000


@dataclass(frozen=True)
class Form:
    """One way to compute a case.

    Forms with the same ``answer`` are compared with each other; any other
    than ``''`` is another function, there for scale.
    """

    name: str
    call: Callable[..., Any]
    answer: str = ''


@dataclass(frozen=True)
class Work:
    """Forms and their arguments; the first form is the stock one.

    Answers may differ by ``tolerance``, relative to the largest value.
    """

    forms: list[Form]
    args: tuple
    tolerance: float = 1e-4


class Timer:
    """Run one form, forward and backward."""

    def __init__(self, form: Form, args: tuple, device: torch.device) -> None:
        self.form, self.args, self.device = form, args, device
        self.leaves = tuple(arg for arg in args if isinstance(arg, Tensor)
                            and arg.requires_grad)
        self.gradient: Tensor | None = None
        self.calls = 1

    def backward(self, out: Any) -> tuple[Tensor | None, ...]:
        # Forms that are there for scale have no p.
        return torch.autograd.grad(
            out, self.leaves, self.gradient,
            allow_unused=True) if self.leaves else ()

    def step(self) -> None:
        self.backward(self.form.call(*self.args))

    def answer(self) -> list[Tensor]:
        """Return the result and the gradients of one call, flattened."""
        out = self.form.call(*self.args)
        if self.leaves:
            # All of one sign, so that the sum for p does not cancel.
            generator = torch.Generator(out.device).manual_seed(0)
            self.gradient = torch.rand(out.shape, generator=generator,
                                       device=out.device).to(out.dtype)
        return [value.detach() for value in (
            *tree_flatten(out)[0], *self.backward(out)) if value is not None]

    def time(self) -> dict[str, float]:
        """Return mean seconds.

        ``forward``; with gradients also ``both`` and, on the CPU,
        ``backward``. A GPU gets all calls without a wait between them, as in
        a training; ``host`` is what the CPU takes to issue a forward.
        """
        times = (self.time_cuda if self.device.type == 'cuda' else
                 self.time_cpu)()
        return {name: total / self.calls for name, total in times.items()}

    def time_cpu(self) -> dict[str, float]:
        forward = backward = 0.0
        for _ in range(self.calls):
            start = perf_counter()
            out = self.form.call(*self.args)
            middle = perf_counter()
            # Gradients and graph are freed inside of the measurement, as
            # between two steps of a training.
            self.backward(out)
            del out
            forward += middle - start
            backward += perf_counter() - middle
        if not self.leaves:
            return dict(forward=forward)
        return dict(forward=forward, backward=backward,
                    both=forward + backward)

    def time_cuda(self) -> dict[str, float]:
        synchronize(self.device)
        start = perf_counter()
        for _ in range(self.calls):
            self.form.call(*self.args)
        issued = perf_counter()
        synchronize(self.device)
        times = dict(forward=perf_counter() - start, host=issued - start)
        if self.leaves:
            start = perf_counter()
            for _ in range(self.calls):
                self.step()
            synchronize(self.device)
            times['both'] = perf_counter() - start
        return times


def device_seconds(step: Callable[[], Any]) -> list[float]:
    """Return the quartiles of a GPU's own time, from a CUDA graph of steps."""
    from triton.testing import do_bench_cudagraph
    torch.cuda.synchronize()
    # Nodes of autograd that are left over belong to another stream.
    gc.collect()
    # A graph cannot hold what waits for the GPU, and the attempt could leave
    # torch in a broken state.
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    return [ms / 1e3 for ms in do_bench_cudagraph(
        step, quantiles=[0.25, 0.5, 0.75])]


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def mark(device: torch.device) -> Any:
    """Mark a moment: on a GPU, when it has done what it was given so far."""
    if device.type != 'cuda':
        return perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(begin: Any, end: Any) -> float:
    """Return the seconds between two marks that have passed."""
    if isinstance(begin, float):
        return end - begin
    return begin.elapsed_time(end) / 1e3


def error_text(error: Exception) -> str:
    """Return the type of an error and the first line of what it says."""
    reason = (str(error).strip() or '-').splitlines()[0]
    return f'failed: {type(error).__name__}: {reason}'


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector out of a measurement."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def measure(work: Work, repeat: int,
            device: torch.device) -> list[dict[str, Any]]:
    """Compare the answers of the forms, then time them in turn.

    Where the ``status`` of a form is ``'ok'``, its row has the quartiles of
    what ``Timer.time`` measures, on a GPU with those of ``device_seconds`` as
    ``device``. A form whose answer is wrong is not timed.
    """
    rows, running, expected = [], [], {}
    for form in work.forms:
        timer = Timer(form, work.args, device)
        row = dict(form=form.name, same_function=form.answer == '',
                   status='ok')
        rows.append(row)
        try:
            answer = timer.answer()
        # A compiler may fail in any way; the others still count.
        except Exception as error:
            row['status'] = error_text(error)
            continue
        difference = compare(expected.setdefault(form.answer, answer), answer)
        if difference > work.tolerance:
            row['status'] = (f'wrong answer: differs by {difference:.1e}, '
                             f'more than {work.tolerance:g}')
            continue
        running.append((timer, row, []))
    # The first answers must not take up caches and memory.
    expected.clear()
    for timer, row, _ in running:
        row['extra_bytes'] = extra_memory(timer.step, device)
        first = timer.time()
        seconds = max(first.get('both', first['forward']), 1e-9)
        timer.calls = max(1, min(MAX_CALLS, round(MIN_SECONDS / seconds)))
    with no_garbage_collection():
        for _ in range(repeat):
            # In turn, so that a change of the machine's pace affects all.
            for timer, _, times in running:
                times.append(timer.time())
    for _, row, times in running:
        row |= {name: quartiles([time[name] for time in times])
                for name in times[0]}
    if device.type == 'cuda':
        for timer, row, _ in running:
            try:
                row['device'] = device_seconds(timer.step)
            except Exception as error:
                row['device_status'] = error_text(error)
    return rows


def compare(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest value."""
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return math.inf
    differences = [
        ((x.double() - y.double()).abs().max()
         / x.double().abs().max().clamp(min=1e-30)).item()
        for x, y in zip(expected, actual) if x.numel()]
    # NaN is a difference as well.
    return max((math.inf if math.isnan(d) else d for d in differences),
               default=0.0)


def quartiles(values: Sequence[float]) -> list[float]:
    return np.quantile(values, [0.25, 0.5, 0.75]).tolist()


def extra_memory(step: Callable[[], Any], device: torch.device) -> int:
    """Return the most bytes that torch allocates at once in a step.

    On the CPU this is the running sum over the profiler's records of each
    allocation and release.
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
    # Older versions of torch count microseconds.
    events.sort(key=lambda event: getattr(event, 'start_ns',
                                          getattr(event, 'start_us', None))())
    held = most = 0
    for event in events:
        held += event.nbytes()
        most = max(most, held)
    return most
