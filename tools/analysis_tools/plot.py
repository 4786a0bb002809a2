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
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='what', required=True)
    training = commands.add_parser(
        'training', help='losses and validation metrics of a training')
    training.add_argument(
        'work_dir', type=Path,
        help='work dir of the training; resumed parts are joined')
    training.add_argument(
        '--metrics', nargs='+', metavar='NAME',
        help='validation metrics, without their prefix (default: mAP NDS)')
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
    movie = commands.add_parser(
        'movie', help='join pictures, in the order of their names')
    movie.add_argument(
        'folder', type=Path, help='its PNG files, all of one size')
    movie.add_argument(
        '--seconds', type=float, default=0.25,
        help='how long a picture is shown (default: %(default)s)')
    for command, suffix in ((training, 'png'), (stages, 'png'),
                            (movie, 'gif')):
        command.add_argument(
            '--out', type=Path, required=True, metavar=f'FILE.{suffix}',
            help='the picture')
    args = parser.parse_args()
    suffix = '.gif' if args.what == 'movie' else '.png'
    if 'out' in args and args.out.suffix != suffix:
        parser.error(f'--out must end in {suffix}, got {str(args.out)!r}')
    return args


def main() -> None:
    args = parse_args()
    if args.what == 'training':
        from plots.training import draw_training, read_training_log
        save_png(draw_training(
            *read_training_log(args.work_dir), args.metrics,
            args.work_dir.resolve().name), args.out)
    elif args.what == 'stages':
        from plots.stages import draw_stages
        parts = json.loads(args.results.read_text())
        save_png(draw_stages([
            case for name in ('train', 'frame') if name in parts
            for case in parts[name]['results']
            if re.search(args.filter, case['case'])]), args.out)
    elif args.what == 'movie':
        from plots.movie import write_movie
        write_movie(args.folder, args.out, args.seconds)
    else:
        from plots.curves import PICTURES
        for name, draw in PICTURES.items():
            path = args.out_dir / name
            save_png(draw(), path)
            # Few colours are enough for lines, and make a third of the file.
            Image.open(path).convert('RGB').quantize(64).save(
                path, optimize=True)
            print(path)
        return
    print(args.out)


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
