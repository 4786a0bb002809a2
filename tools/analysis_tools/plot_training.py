"""Draw the losses and the validation metrics of a training."""
import argparse
import sys
from pathlib import Path

from sigplug.engine import process
from sigplug.errors import UserError
from sigplug.visualization import draw_training, read_training_log, save_png


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'work_dir',
        type=Path,
        help='work dir of the training; resumed parts are joined')
    parser.add_argument(
        '--out',
        type=Path,
        required=True,
        metavar='FILE.png',
        help='the picture')
    parser.add_argument(
        '--metrics',
        nargs='+',
        metavar='NAME',
        help='validation metrics, without their prefix (default: mAP NDS, '
        'where they were logged)')
    parser.add_argument('--title', help='default: the name of the work dir')
    args = parser.parse_args()
    if args.out.suffix.lower() != '.png':
        parser.error(f'--out must end in .png, got {str(args.out)!r}')
    return args


def main() -> None:
    """Draw."""
    args = parse_args()
    try:
        figure = draw_training(
            read_training_log(args.work_dir),
            metrics=args.metrics,
            title=args.title or args.work_dir.resolve().name)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error
    save_png(figure, args.out)
    print(args.out)


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
