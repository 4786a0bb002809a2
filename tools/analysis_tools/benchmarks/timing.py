"""Time several forms of one computation in turn, on the CPU or a GPU."""
import gc
import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

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

    Args:
        name (str): Its name in the tables.
        call (Callable): Takes the arguments of the case.
        answer (str): Forms with the same answer are compared with each
            other. Any other than ``''`` is another function, there for scale.
        leaves (tuple, optional): Tensors to differentiate by, instead of the
            arguments that require a gradient.
    """

    name: str
    call: Callable[..., Any]
    answer: str = ''
    leaves: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class Work:
    """Forms with their common arguments; the first form is the stock one.

    Args:
        forms (list[Form]): The forms.
        args (tuple): Arguments of every form.
        tolerance (float): Largest accepted difference of two answers,
            relative to the largest value.
    """

    forms: list[Form]
    args: tuple
    tolerance: float = 1e-4


class Stepper:
    """Run the forms of a case, forward and backward.

    Args:
        work (Work): The case.
        device (torch.device): Where its arguments are.
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        self.work = work
        self.sync = synchronizer(device)
        self.gradients: dict[str, Tensor] = {}

    def leaves(self, form: Form) -> tuple[Tensor, ...]:
        """Return the tensors that a form is differentiated by."""
        if form.leaves is not None:
            return form.leaves
        return tuple(arg for arg in self.work.args
                     if isinstance(arg, Tensor) and arg.requires_grad)

    def answer(self, form: Form) -> list[Tensor]:
        """Return the result and the gradients of one call, flattened."""
        out = form.call(*self.work.args)
        values = [value.detach() for value in tree_flatten(out)[0]]
        if leaves := self.leaves(form):
            # All of one sign, so that the sum for p does not cancel.
            generator = torch.Generator(out.device).manual_seed(0)
            gradient = torch.rand(out.shape, generator=generator,
                                  device=out.device).to(out.dtype)
            values += torch.autograd.grad(out, leaves, gradient)
            self.gradients[form.name] = gradient
        self.sync()
        return values

    def time(self, form: Form, calls: int = 1) -> tuple[float, float]:
        """Return the seconds of forward and backward, means of some calls."""
        leaves = self.leaves(form)
        forward = backward = 0.0
        for _ in range(calls):
            self.sync()
            start = perf_counter()
            out = form.call(*self.work.args)
            self.sync()
            middle = perf_counter()
            # Gradients and graph are freed inside of the measurement, as
            # between two steps of a training.
            if leaves:
                torch.autograd.grad(out, leaves, self.gradients[form.name])
            del out
            self.sync()
            forward += middle - start
            backward += perf_counter() - middle
        return forward / calls, backward / calls


def synchronizer(device: torch.device) -> Callable[[], Any]:
    """Return a function that waits for a device."""
    if device.type == 'cuda':
        return torch.cuda.synchronize
    return lambda: None


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

    Args:
        work (Work): The case.
        repeat (int): Number of repetitions.
        device (torch.device): Where the case runs.

    Returns:
        list[dict]: For each form ``form``, ``same_function`` and ``status``;
        where that is ``'ok'`` also ``extra_bytes``, and ``forward``,
        ``backward`` and ``both`` as quartiles in seconds (without gradients
        only ``forward``). A form whose answer is wrong is not timed.
    """
    stepper = Stepper(work, device)
    rows, running, expected = [], [], {}
    for form in work.forms:
        row = dict(form=form.name, same_function=form.answer == '',
                   status='ok')
        rows.append(row)
        try:
            answer = stepper.answer(form)
        # A compiler may fail in any way; the others still count.
        except Exception as error:
            reason = (str(error).strip() or '-').splitlines()[0]
            row['status'] = f'failed: {type(error).__name__}: {reason}'
            continue
        difference = compare(expected.setdefault(form.answer, answer), answer)
        if difference > work.tolerance:
            row['status'] = (f'wrong answer: differs by {difference:.1e}, '
                             f'more than {work.tolerance:g}')
            continue
        running.append((form, row, []))
    # The first answers must not take up caches and memory.
    expected.clear()
    calls = {form.name: count_calls(sum(stepper.time(form)))
             for form, *_ in running}
    for form, row, _ in running:
        row['extra_bytes'] = extra_memory(
            lambda form=form: stepper.time(form), device)
    with no_garbage_collection():
        for _ in range(repeat):
            # In turn, so that a change of the machine's pace affects all.
            for form, _, times in running:
                times.append(stepper.time(form, calls[form.name]))
    for form, row, times in running:
        forward, backward = zip(*times)
        row['forward'] = quartiles(forward)
        if stepper.leaves(form):
            row['backward'] = quartiles(backward)
            row['both'] = quartiles([sum(pair) for pair in times])
    return rows


def compare(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest value."""
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return math.inf
    worst = 0.0
    for x, y in zip(expected, actual):
        if x.numel():
            scale = x.double().abs().max().item() or 1.0
            difference = (x.double() - y.double()).abs().max().item() / scale
            worst = max(worst, math.inf if math.isnan(difference)
                        else difference)
    return worst


def count_calls(seconds: float) -> int:
    """Return how many calls make up one repetition."""
    return max(1, min(MAX_CALLS, round(MIN_SECONDS / max(seconds, 1e-9))))


def quartiles(values: Sequence[float]) -> list[float]:
    """Return first quartile, median and third quartile."""
    if len(values) == 1:
        return [values[0]] * 3
    return statistics.quantiles(values, method='inclusive')


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
