"""Make a config with stock heatmap heads use sigplug.

Prints, or writes to --out, a config on top of the given one. What it changes
goes to the standard error.
"""
import argparse
import sys
from contextlib import redirect_stdout

from sigplug.engine import process
from sigplug.engine.migration import migrate


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config',
        help='config file, or a name such as mmdet3d::centerpoint/NAME.py')
    parser.add_argument('--out', metavar='FILE.py', help='the new config')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace FILE.py')
    parser.add_argument(
        '--loss',
        choices=['logits'],
        help='take the Gaussian focal loss of the logits, exactly and without '
        'a clip (default: the same losses as before)')
    parser.add_argument(
        '--pillar',
        choices=['gem'],
        help='reduce the points of a pillar by a generalised mean with a '
        'trained power')
    args = parser.parse_args()
    if args.overwrite and args.out is None:
        parser.error('--overwrite replaces the file of --out: name it')
    return args


def main() -> None:
    """Migrate."""
    args = parse_args()
    # What is imported for the config may print.
    with redirect_stdout(sys.stderr):
        text, changes, notes = migrate(
            args.config,
            args.out,
            logits=args.loss == 'logits',
            gem=args.pillar == 'gem',
            overwrite=args.overwrite)
        if not text:
            print(f'Nothing to do: {args.config} uses sigplug already.')
            return
        print('\n'.join([*changes, *(f'note: {note}' for note in notes)]))
    print(text if args.out is None else args.out,
          end='' if args.out is None else '\n')


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
