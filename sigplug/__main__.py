"""The command line: ``sigplug``, or ``python -m sigplug``."""
import argparse
import runpy
import sys

from .files import TOOLS
from .version import __version__

# What each command does, and the tool behind it.
COMMANDS = {
    'doctor': ('check packages, kernels and GPU; say what is missing', ''),
    'predict': ('print and draw the boxes in a cloud, from an exported model',
                ''),
    'migrate': ('make a config with stock heads use sigplug',
                'misc/migrate_config.py'),
    'bench': ('time the operations and a training iteration',
              'analysis_tools/benchmark.py'),
    'export': ('export a trained detector to ONNX',
               'deployment/export_onnx.py'),
}


def main() -> int:
    """Run a command, which takes all arguments behind it.

    Returns:
        int: Its exit code.
    """
    parser = argparse.ArgumentParser(
        prog='sigplug', usage='sigplug COMMAND [arguments of the command]',
        description='commands (`sigplug COMMAND --help` has their '
        'arguments):\n' + '\n'.join(
            f'  {name:9s}{text}' for name, (text, _) in COMMANDS.items()),
        epilog='To train and test: mim train sigplug CONFIG, mim test sigplug '
        'CONFIG,\nor tools/train.py and tools/test.py of a checkout.',
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--version', action='version', version=__version__)
    parser.add_argument('command', choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument('arguments', nargs=argparse.REMAINDER,
                        help=argparse.SUPPRESS)
    args = parser.parse_args(sys.argv[1:] or ['--help'])
    sys.argv = [f'sigplug {args.command}', *args.arguments]
    # Each needs other packages than the others.
    if args.command == 'doctor':
        from .cli.doctor import main as doctor
        return doctor()
    if args.command == 'predict':
        from .deploy.__main__ import main as predict
        predict()
        return 0
    tool = TOOLS / COMMANDS[args.command][1]
    # As for a script, whose folder comes first.
    sys.path.insert(0, str(tool.parent))
    # A tool ends by itself, with its exit code.
    runpy.run_path(str(tool), run_name='__main__')
    return 0


if __name__ == '__main__':
    sys.exit(main())
