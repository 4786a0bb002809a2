"""Print a config with its bases and options merged, as training takes it."""
import argparse
import sys

from sigplug.cli import arguments, preflight, process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file, or a name such as mmdet3d::PATH')
    arguments.add_cfg_options(parser)
    args = arguments.parse_args(parser)
    print(preflight.load_config(args.config, args.cfg_options).pretty_text)


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
