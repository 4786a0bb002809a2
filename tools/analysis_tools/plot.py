"""Draw a training, its stages, the operations, or a scene over time."""
import argparse
import json
import re
import sys
from pathlib import Path

from PIL import Image

from sigplug.cli import process
from sigplug.visualization import save_png


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='what', required=True)
    training = commands.add_parser(
        'training', help='losses and validation metrics of a training')
    training.add_argument(
        'work_dir', type=Path,
        help='work dir of the training; resumed parts are joined')
    training.add_argument(
        '--out', type=Path, required=True, metavar='FILE.png',
        help='the picture')
    training.add_argument(
        '--metrics', nargs='+', metavar='NAME',
        help='validation metrics, without their prefix (default: mAP NDS, '
        'where they were logged)')
    training.add_argument('--title', help='default: the name of the work dir')
    curves = commands.add_parser(
        'curves', help='the pictures of docs/numerics.md')
    curves.add_argument(
        '--out-dir', type=Path, required=True, help='folder of the pictures')
    stages = commands.add_parser(
        'stages', help='where the time of an iteration or a frame goes')
    stages.add_argument(
        'results', type=Path, metavar='DEVICE.json',
        help='written by benchmark.py')
    stages.add_argument(
        '--filter', default='', metavar='REGEX',
        help='only the cases in whose name this is found')
    stages.add_argument(
        '--out', type=Path, required=True, metavar='FILE.png',
        help='the picture')
    movie = commands.add_parser(
        'movie', help='join pictures, in the order of their names')
    movie.add_argument(
        'folder', type=Path, help='its PNG files, all of one size')
    movie.add_argument(
        '--out', type=Path, required=True, metavar='FILE.gif',
        help='the moving picture')
    movie.add_argument(
        '--seconds', type=float, default=0.25,
        help='how long a picture is shown (default: %(default)s)')
    args = parser.parse_args()
    suffix = '.gif' if args.what == 'movie' else '.png'
    if args.what != 'curves' and args.out.suffix.lower() != suffix:
        parser.error(f'--out must end in {suffix}, got {str(args.out)!r}')
    return args


def main() -> None:
    """Draw the chosen picture."""
    args = parse_args()
    if args.what == 'training':
        from plots.training import draw_training, read_training_log
        figure = draw_training(
            *read_training_log(args.work_dir), args.metrics,
            args.title or args.work_dir.resolve().name)
        save_png(figure, args.out)
        print(args.out)
        return
    if args.what == 'stages':
        from plots.stages import draw_stages
        parts = json.loads(args.results.read_text())
        save_png(draw_stages([
            case for name in ('train', 'frame') if name in parts
            for case in parts[name]['results']
            if re.search(args.filter, case['case'])]), args.out)
        print(args.out)
        return
    if args.what == 'movie':
        from plots.movie import write_movie
        print(write_movie(args.folder, args.out, args.seconds))
        return
    from plots.curves import PICTURES
    for name, draw in PICTURES.items():
        path = args.out_dir / name
        save_png(draw(), path)
        # Few colours are enough for lines, and make a third of the file.
        Image.open(path).convert('RGB').quantize(64).save(path, optimize=True)
        print(path)


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
