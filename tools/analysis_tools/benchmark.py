"""Time operations, training iterations and predictions against stock forms.

Without a name, all three are timed. All forms of a case run in turn in one
process, after their answers were compared. Each table is printed as it comes,
and the results are written to cpu.json or cuda.json in --out-dir.
"""
import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.utils import get_git_hash
from pages import performance

from sigplug.cli import process
from sigplug.cli.machine import describe_machine, list_versions
from sigplug.errors import UserError
from sigplug.ops import backends

REPEAT, QUICK_REPEAT = 15, 5

Measure = Callable[[], dict[str, Any]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'what', nargs='?', choices=performance.PARTS,
        help='the operations, training iterations, or predictions of frames '
        '(default: all)')
    parser.add_argument(
        '--quick', action='store_true',
        help='fewer cases and repetitions, for a first look')
    parser.add_argument(
        '--device', type=torch.device, default='cpu',
        help='cpu, cuda or cuda:N (default: %(default)s)')
    parser.add_argument(
        '--threads', type=int, default=2, metavar='N',
        help='threads of torch on the CPU (default: %(default)s)')
    parser.add_argument(
        '--repeat', type=int, metavar='N',
        help=f'repetitions of each measurement (default: {REPEAT}, '
        f'{QUICK_REPEAT} with --quick)')
    parser.add_argument(
        '--filter', default='', metavar='REGEX',
        help='only the cases in whose name this is found')
    parser.add_argument(
        '--out-dir', '--out', type=Path, metavar='DIR',
        default=performance.RESULTS,
        help='folder of the results (default: %(default)s)')
    parser.add_argument(
        '--page', action='store_true',
        help='also rewrite the pages of performance in docs/ from the results '
        'in --out-dir')
    args = parser.parse_args()
    args.repeat = args.repeat or (QUICK_REPEAT if args.quick else REPEAT)
    if args.device.type == 'cuda':
        index = args.device.index or 0
        if index >= (count := torch.cuda.device_count()):
            parser.error(f'--device {args.device}: torch finds '
                         f'{count or "no"} GPU here')
        # Where kernels are launched, and whose memory is counted.
        torch.cuda.set_device(index)
    return args


def describe(args: argparse.Namespace) -> dict[str, Any]:
    machine, versions = describe_machine(), list_versions()
    if args.device.type == 'cuda':
        machine['gpu'] = torch.cuda.get_device_name(args.device)
        versions['cuda'] = torch.version.cuda
    return dict(
        command=' '.join(['python tools/analysis_tools/benchmark.py',
                          *sys.argv[1:]]),
        commit=get_git_hash(digits=7), date=f'{date.today()}',
        threads=args.threads, repeat=args.repeat, machine=machine,
        # Not available_backends(), which compiles those for the CPU.
        backends=[name for name, (device, _) in backends.BACKENDS.items()
                  if device == args.device.type
                  and not backends._load(name).problem],
        versions=versions)


def find_cases(what: str, args: argparse.Namespace) -> dict[str, Measure]:
    if what == 'ops':
        from benchmarks.operations import CASES
        from benchmarks.timing import measure
        return {case.name: lambda case=case: dict(rows=measure(
            case.build(args.device), args.repeat, args.device))
            for case in CASES if args.device.type in case.devices
            and (case.quick or not args.quick)}
    from benchmarks.detectors import find_settings, measure
    return {name: lambda setting=setting: measure(
        setting, what == 'train', args.repeat, args.device)
        for name, setting in find_settings(
            what == 'train', args.device, args.quick).items()}


def choose(args: argparse.Namespace) -> dict[str, dict[str, Measure]]:
    cases = {what: find_cases(what, args) for what in (
        [args.what] if args.what else performance.PARTS)}
    chosen = {what: {name: measure for name, measure in part.items()
                     if re.search(args.filter, name)}
              for what, part in cases.items()}
    if not any(chosen.values()):
        raise UserError(f'--filter {args.filter!r} finds none of\n  ' +
                        '\n  '.join(sum(map(list, cases.values()), [])))
    return chosen


def run(cases: dict[str, Measure],
        device: torch.device) -> Iterator[dict[str, Any]]:
    """Measure cases; one that fails says why."""
    from benchmarks.timing import error_text
    for name, measure in cases.items():
        torch.manual_seed(0)
        start = time.perf_counter()
        try:
            case = measure()
        except Exception as error:
            case = dict(rows=[], error=error_text(error))
        if device.type == 'cuda':
            torch.cuda.empty_cache()
        yield dict(case=name, seconds=round(time.perf_counter() - start, 1),
                   **case)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    # mmengine logs a line for each parameter that is initialised.
    MMLogger.get_instance('mmengine').setLevel('WARNING')
    chosen, about = choose(args), describe(args)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    path = args.out_dir / f'{args.device.type}.json'
    parts = performance.read(args.out_dir, args.device.type)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # Code that earlier runs have compiled must not count.
        os.environ['TORCHINDUCTOR_CACHE_DIR'] = folder
        for what, cases in chosen.items():
            if cases:
                parts[what] = dict(about, results=[])
            for case in run(cases, args.device):
                parts[what]['results'].append(case)
                # After each case: what a run has measured outlasts it.
                path.write_text(json.dumps(parts, indent=1) + '\n')
                print(performance.describe_case(case),
                      f"({case['seconds']} s)\n", sep='\n\n', flush=True)
    print(path)
    if args.page:
        print(*performance.write(args.out_dir), sep='\n')


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
