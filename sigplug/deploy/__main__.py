"""Detect the objects in the point cloud of a file."""
import argparse
import sys
from pathlib import Path

from sigplug.errors import UserError

from .detector import Detections, Detector
from .points import read_points


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m sigplug.deploy', description=__doc__)
    parser.add_argument(
        'folder', help='what tools/deployment/export_onnx.py has written')
    parser.add_argument('cloud', type=Path, help='a .bin, .npy or .pcd file')
    parser.add_argument(
        '--load-dim', type=int, metavar='N',
        help='values of a point in a .bin (default: as in the training)')
    parser.add_argument(
        '--score-thr', type=float, default=0.3,
        help='print and draw boxes of at least this score (default: 0.3)')
    parser.add_argument(
        '--picture', type=Path, metavar='FILE.png',
        help='draw points and boxes from above; needs matplotlib')
    args = parser.parse_args()
    if args.picture and args.picture.suffix != '.png':
        parser.error(f'--picture must end with .png, got {args.picture}')
    return args


def run(args: argparse.Namespace) -> None:
    """Detect, print and draw."""
    detector = Detector(args.folder)
    points = detector.adapt(read_points(
        args.cloud, args.load_dim or detector.about['points']['load_dim']))
    found = detector(points)
    keep = found.scores >= args.score_thr
    found = Detections(*(values[keep] for values in found))
    names = ('x', 'y', 'z', 'dx', 'dy', 'dz', 'yaw', 'vx', 'vy')
    print(f'{"class":22s} score' + ''.join(
        f'{name:>8s}' for name in names[:detector.about['box_size']]))
    for box, score, label in zip(*found):
        print(f'{detector.classes[label]:22s} {score:.3f}'
              + ''.join(f'{value:8.2f}' for value in box))
    times = '  '.join(f'{step} {ms:.1f}'
                      for step, ms in detector.milliseconds.items())
    print(f'{len(found.boxes)} boxes in {len(points)} points. ms: {times}')
    if args.picture:
        draw(args.picture, detector, points, found,
             f'{args.cloud.name}: score \u2265 {args.score_thr:g}')


def draw(path: Path, detector: Detector, points, found: Detections,
         title: str) -> None:
    """Draw the boxes from above."""
    try:
        from sigplug.visualization import draw_bev, save_png
    except ImportError as error:
        raise UserError(f'{error}. --picture needs matplotlib: pip install '
                        'matplotlib') from error
    limits = detector.about['voxels']['point_cloud_range']
    save_png(draw_bev(
        points, pred_bboxes=found.boxes, pred_labels=found.labels,
        pred_scores=found.scores, class_names=detector.classes,
        bev_range=[limits[i] for i in (0, 1, 3, 4)], title=title), path)
    print(path)


def main() -> int:
    """Return the exit code: 2 after a problem that the user can solve."""
    args = parse_args()
    try:
        run(args)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
