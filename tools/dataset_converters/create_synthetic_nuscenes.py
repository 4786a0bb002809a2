"""Write a synthetic nuScenes v1.0-mini data set with mmdet3d info files.

Example:
    python tools/dataset_converters/create_synthetic_nuscenes.py \
        --out data/synthetic_nuscenes --seed 0
"""
import argparse
import os
import signal
import sys

try:
    from synthetic_nuscenes import (
        DIFFICULTIES,
        SCENES,
        GeneratorConfig,
        generate_synthetic_nuscenes,
    )
except ModuleNotFoundError as error:
    sys.exit(f'error: {error}; the rays are cast by a library: '
             'pip install embreex')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out', required=True, help='data root to create')
    parser.add_argument('--seed', type=int, default=0, help='random seed')
    parser.add_argument(
        '--samples-per-scene', type=int, default=40, metavar='N',
        help='key frames per scene, two per second')
    parser.add_argument(
        '--intermediate-sweeps', type=int, default=1, metavar='N',
        help='sweeps between two key frames (the real data set has about 9)')
    parser.add_argument(
        '--scenes', nargs='+', choices=SCENES, default=SCENES, metavar='NAME',
        help='which of the official mini scenes to make')
    parser.add_argument(
        '--difficulty', choices=DIFFICULTIES, default='standard',
        help='hard: half the beams, lost returns, crowded streets')
    parser.add_argument(
        '--workers', type=int, default=os.cpu_count() or 1, metavar='N',
        help='processes; the result does not depend on their number')
    parser.add_argument(
        '--force', action='store_true',
        help='replace a synthetic data set that is already there')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # SIGTERM cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        config = GeneratorConfig(
            seed=args.seed, samples_per_scene=args.samples_per_scene,
            intermediate_sweeps=args.intermediate_sweeps,
            scenes=tuple(args.scenes), difficulty=args.difficulty)
        made = generate_synthetic_nuscenes(args.out, config, args.workers,
                                           args.force)
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}; nothing was written to {args.out}')
    except KeyboardInterrupt:
        sys.exit(f'interrupted; nothing was written to {args.out}')
    state = 'Wrote' if made else 'Nothing to do: already complete'
    print(f'{state}: {args.out} (seed {args.seed})')


if __name__ == '__main__':
    main()
