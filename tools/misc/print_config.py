"""Print a config with its bases and options merged, as training takes it."""
import argparse
import sys
from pathlib import Path

from sigplug.cli import arguments, preflight, process


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file, or a name such as mmdet3d::PATH')
    parser.add_argument(
        '--out', type=Path, metavar='FILE',
        help='write it to a .py, .json or .yml file instead')
    arguments.add_cfg_options(parser)
    args = arguments.parse_args(parser)
    if args.out and args.out.suffix not in ('.py', '.json', '.yml', '.yaml'):
        parser.error(f'--out {args.out}: the name must end in .py, .json or '
                     '.yml')
    return args


def main() -> None:
    args = parse_args()
    cfg = preflight.load_config(args.config, args.cfg_options)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        cfg.dump(args.out)
        print(f'Wrote: {args.out}')
    else:
        print(cfg.pretty_text)


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
