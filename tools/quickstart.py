"""Run the main job: data, training, evaluation and pictures.

Every stage is a tool of its own, started as a user would start it. The
results are gathered in WORK_DIR/summary.json.
"""
import argparse
import os
import sys
from pathlib import Path
from typing import Any

from sigplug.cli import preflight, process
from sigplug.cli.machine import describe_machine, list_versions
from sigplug.cli.results import read_nuscenes_metrics, write_json
from sigplug.cli.stages import hide_unusable_gpus, relative, run_stage

TOOLS = Path(__file__).resolve().parent
CONFIG = TOOLS.parent / (
    'configs/centerpoint/'
    'centerpoint_pillar04_second_secfpn_gem_1xb2-onecycle-5e_nus-mini-3d.py')
DATA_SEED = 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--config', type=Path, default=CONFIG,
        help=f'config to train (default: {CONFIG.name})')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/quickstart'),
        help='folder of the results (default: %(default)s)')
    parser.add_argument(
        '--data-root', type=Path, default=Path('data/synthetic_nuscenes'),
        help='folder of the data set, generated if it is not there (default: '
        '%(default)s)')
    parser.add_argument(
        '--samples-per-scene', type=int, metavar='N',
        help='key frames in each scene of the data set (default: that of the '
        'generator)')
    parser.add_argument(
        '--seed', type=int, default=0,
        help='seed of the training (default: 0)')
    parser.add_argument(
        '--amp', action='store_true',
        help='train in mixed precision, see tools/train.py')
    parser.add_argument(
        '--resume', action='store_true',
        help='continue an interrupted training')
    return parser.parse_args()


def report(summary: dict[str, Any]) -> None:
    metrics = summary['metrics']
    print(f'\nmAP {metrics["mAP"]:.3f}, NDS {metrics["NDS"]:.3f}, car AP '
          f'{metrics["class_AP"]["car"]:.3f}\n\nStages')
    for name, seconds in [*summary['stages'].items(),
                          ('total', summary['seconds'])]:
        print(f'  {name:10s}{seconds:8.1f} s')
    print(f'\nFigures, versions and files: {summary["files"]["summary"]}')


def main() -> None:
    args = parse_args()
    work_dir = args.work_dir
    summary_file = work_dir / 'summary.json'
    eval_dir, bev_dir = work_dir / 'eval', work_dir / 'bev'
    curve = work_dir / 'training_curve.png'
    # The configs read these, see configs/_base_/datasets.
    os.environ['SIGPLUG_DATA_ROOT'] = f'{args.data_root}/'
    os.environ['SIGPLUG_DATA_VERSION'] = 'v1.0-mini'
    os.environ[process.RESUME] = process.resume_command('quickstart')
    config = relative(args.config)
    preflight.load_config(config)
    # The results of an earlier run must not pass for those of this one.
    for old in (summary_file, curve, *bev_dir.glob('*.png')):
        old.unlink(missing_ok=True)
    hide_unusable_gpus()

    stages = {}

    def run(name: str, tool: str, *arguments: Any) -> None:
        stages[name] = run_stage(name, TOOLS / tool, *arguments)

    run('data', 'dataset_converters/create_synthetic_nuscenes.py',
        '--out', args.data_root, '--seed', DATA_SEED,
        *(['--samples-per-scene', args.samples_per_scene]
          if args.samples_per_scene else []))
    # The next stage evaluates.
    run('train', 'train.py', config, '--work-dir', work_dir,
        *(['--amp'] if args.amp else []),
        *(['--resume'] if args.resume else []),
        '--cfg-options', f'randomness.seed={args.seed}',
        'train_cfg.val_begin=1000')
    checkpoint = relative((work_dir / 'last_checkpoint').read_text())
    run('test', 'test.py', config, checkpoint, '--work-dir', eval_dir)
    run('pictures', 'analysis_tools/visualize_bev.py', config, checkpoint,
        '--out-dir', bev_dir, '--num', 4)
    run('curve', 'analysis_tools/plot.py', 'training', work_dir, '--out',
        curve)

    summary = dict(
        config=config,
        seed=args.seed,
        amp=args.amp,
        data_seed=DATA_SEED,
        data_root=str(args.data_root),
        metrics=read_nuscenes_metrics(eval_dir),
        seconds=round(sum(stages.values()), 1),
        stages=stages,
        machine=describe_machine(),
        versions=list_versions(),
        files=dict(
            checkpoint=checkpoint,
            pictures=sorted(map(str, bev_dir.glob('*.png'))),
            curve=str(curve),
            summary=str(summary_file)))
    write_json(summary_file, summary)
    report(summary)


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
