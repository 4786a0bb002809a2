"""Time the operations and a training iteration against the stock forms.

Without a name, both are timed. All forms of a case run in turn in one process,
after their answers were compared. The tables are printed, and the results
written to --out-dir as JSON.
"""
import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from pages import performance
from tqdm import tqdm

from sigplug.cli import process
from sigplug.cli.machine import describe_machine, list_versions
from sigplug.errors import UserError
from sigplug.ops import available_backends

REPEAT, QUICK_REPEAT = 15, 5


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'what', nargs='?', choices=('ops', 'train'),
        help='the operations, or a training iteration (default: both)')
    parser.add_argument(
        '--quick', action='store_true',
        help='fewer cases and repetitions, for a first look')
    parser.add_argument(
        '--device', default='cpu',
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
        help='only the operations in whose name this is found')
    parser.add_argument(
        '--out-dir', '--out', type=Path, metavar='DIR',
        default=performance.RESULTS,
        help='folder of the results (default: %(default)s)')
    parser.add_argument(
        '--page', action='store_true',
        help='also rewrite docs/performance.md from the results in --out-dir')
    args = parser.parse_args()
    args.repeat = args.repeat or (QUICK_REPEAT if args.quick else REPEAT)
    if min(args.threads, args.repeat) < 1:
        parser.error('--threads and --repeat must be at least 1')
    if not re.fullmatch(r'cpu|cuda(:\d+)?', args.device):
        parser.error(f'--device must be cpu, cuda or cuda:N, got '
                     f'{args.device!r}')
    args.device = torch.device(args.device)
    if args.device.type == 'cuda':
        args.device = torch.device('cuda', args.device.index or 0)
        if args.device.index >= (count := torch.cuda.device_count()):
            parser.error(f'--device {args.device}: torch finds '
                         f'{count or "no"} GPU here')
        # Where kernels are launched, and whose memory is counted.
        torch.cuda.set_device(args.device)
    return args


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Return machine, versions and settings of a run."""
    machine = describe_machine()
    if args.device.type == 'cuda':
        machine['gpu'] = torch.cuda.get_device_name(args.device)
    return dict(
        command=' '.join(['python tools/analysis_tools/benchmark.py',
                          *sys.argv[1:]]),
        threads=args.threads, repeat=args.repeat, machine=machine,
        backends=[name for name in available_backends()
                  if name not in ('auto', 'eager')],
        versions=list_versions())


def run_operations(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the chosen cases."""
    from benchmarks.operations import CASES
    from benchmarks.timing import measure
    cases = [case for case in CASES if re.search(args.filter, case.name)
             and (case.quick or not args.quick)]
    if not cases:
        raise UserError(f'--filter {args.filter!r} finds none of\n  ' +
                        '\n  '.join(case.name for case in CASES))
    measured = []
    for case in tqdm(cases, unit='case'):
        torch.manual_seed(0)
        rows = measure(case.build(args.device), args.repeat, args.device)
        measured.append(dict(case=case.name, rows=rows))
    return measured


def run_training(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the quickstart and, unless it is quick, the full-size model."""
    from benchmarks.training import FULL_SIZE, QUICKSTART, time_training
    # mmengine logs a line for each parameter that is initialised.
    MMLogger.get_instance('mmengine').setLevel('WARNING')
    groups = [QUICKSTART] if args.quick else [QUICKSTART, FULL_SIZE]
    return [time_training(group, args.repeat, args.device,
                          1 if args.quick else None)
            for group in tqdm(groups, unit='model')]


def main() -> None:
    """Measure, print and write."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    about = describe(args)
    for name, run in (('ops', run_operations), ('train', run_training)):
        if args.what in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                # Code that earlier runs have compiled must not count.
                os.environ['TORCHINDUCTOR_CACHE_DIR'] = folder
                measured = dict(about, results=run(args))
            print('\n\n'.join(performance.TEXTS[name](measured).values()))
            path = args.out_dir / f'{name}.json'
            path.write_text(json.dumps(measured, indent=1) + '\n')
            print(f'\n{path}')
    if args.page:
        print(performance.write(args.out_dir))


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
