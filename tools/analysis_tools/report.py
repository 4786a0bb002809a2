"""Write a page of docs/ from measurements.

``numerics`` measures the operations in every dtype on the CPU, which takes
about a minute; ``performance`` takes the results of benchmark.py.
"""
import argparse
import sys
from pathlib import Path

from pages import numerics, performance

from sigplug.cli import process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    pages = parser.add_subparsers(dest='page', required=True)
    for page, module in (('numerics', numerics),
                         ('performance', performance)):
        pages.add_parser(page).add_argument(
            '--out', type=Path, metavar='FILE.md', default=module.PAGE,
            help=f'the page (default: docs/{page}.md of this repository)')
    pages.choices['numerics'].add_argument(
        '--values', type=int, default=2**24, metavar='N',
        help='float32 logits to try; half-precision dtypes are always '
        'covered whole (default: %(default)s)')
    pages.choices['performance'].add_argument(
        '--results', type=Path, default=performance.RESULTS, metavar='DIR',
        help='folder of the results (default: %(default)s)')
    args = parser.parse_args()
    if args.page == 'performance':
        print(*performance.write(args.results, args.out), sep='\n')
    else:
        print(numerics.write(args.values, args.out))


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
