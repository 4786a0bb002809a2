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
        '--merged', action='store_true',
        help='the cloud has just the columns that the model takes, the last '
        'with the ages of merged sweeps (default: those of a file of the '
        'training, and 0 as the ages)')
    parser.add_argument(
        '--score-thr', type=float, default=0.3,
        help='print and draw boxes of at least this score (default: 0.3)')
    parser.add_argument(
        '--picture', type=Path, metavar='FILE.png',
        help='draw points and boxes from above; needs matplotlib')
    return parser.parse_args()


def main() -> None:
    """Detect, print and draw."""
    args = parse_args()
    detector = Detector(args.folder)
    about = detector.about
    load_dim = args.load_dim or (
        len(about['points']['columns']) if args.merged else
        about['points']['load_dim'])
    points = read_points(args.cloud, load_dim)
    if not args.merged:
        points = detector.adapt(points)
    found = detector(points)
    found = Detections(
        *(values[found.scores >= args.score_thr] for values in found))
    names = ('x', 'y', 'z', 'dx', 'dy', 'dz', 'yaw', 'vx', 'vy')
    print(f'{"class":22s} score' + ''.join(
        f'{name:>8s}' for name in names[:about['box_size']]))
    for box, score, label in zip(*found):
        print(f'{detector.classes[label]:22s} {score:.3f}'
              + ''.join(f'{value:8.2f}' for value in box))
    print(f'{len(found.boxes)} boxes in {len(points)} points')
    if not args.picture:
        return
    try:
        from sigplug.visualization import draw_bev, save_png
        limits = about['voxels']['point_cloud_range']
        save_png(draw_bev(
            points, pred_bboxes=found.boxes, pred_labels=found.labels,
            pred_scores=found.scores, class_names=detector.classes,
            bev_range=[limits[i] for i in (0, 1, 3, 4)],
            title=f'{args.cloud.name}: score \u2265 {args.score_thr:g}'),
            args.picture)
    # Another suffix, or no matplotlib.
    except (ImportError, ValueError) as error:
        raise UserError(f'--picture {args.picture}: {error}') from error
    print(args.picture)


if __name__ == '__main__':
    try:
        main()
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
