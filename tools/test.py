"""Test and evaluate a model."""
import argparse
import os
import sys

from mmengine.config import Config

from sigplug.engine import cli, preflight, process
from sigplug.engine.hooks import CheckpointFitHook
from sigplug.errors import UserError


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        metavar='FILE.pkl',
        help='also write the predictions to this pickle file')
    parser.add_argument(
        '--show',
        action='store_true',
        help='show the predictions in an Open3D window')
    parser.add_argument(
        '--show-dir',
        help='write pictures of the Open3D window to this folder below '
        '<work dir>/<time stamp>/')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.1,
        help='show predictions with at least this score (default: 0.1)')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds for which a sample is shown (default: 2)')
    parser.add_argument(
        '--task',
        choices=[
            'lidar_det', 'mono_det', 'multi-view_det', 'multi-modality_det'
        ],
        default='lidar_det',
        help='what is shown (default: lidar_det)')
    cli.add_common_arguments(parser)
    args = cli.parse_args(parser)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end with .pkl or .pickle, got {args.out!r}')
    return args


def enable_visualization(cfg: Config, args: argparse.Namespace) -> None:
    """Switch mmdet3d's visualization hook on."""
    if sys.platform == 'linux' and 'DISPLAY' not in os.environ:
        raise UserError(
            '--show and --show-dir draw in an Open3D window, which needs a '
            'display. Pictures without one: python '
            f'tools/analysis_tools/visualize_bev.py {args.config} '
            f'{args.checkpoint} --out-dir DIR')
    if 'visualization' not in cfg.get('default_hooks', {}):
        raise UserError(
            '--show and --show-dir need the visualization hook in the '
            'config: default_hooks = dict(visualization=dict('
            "type='Det3DVisualizationHook'), ...).")
    cfg.default_hooks.visualization.update(
        draw=True,
        show=args.show,
        wait_time=args.wait_time,
        score_thr=args.score_thr,
        vis_task=args.task,
        test_out_dir=args.show_dir)


def write_predictions(cfg: Config, path: str) -> None:
    """Add a metric that writes the predictions to a file."""
    evaluators = cfg.test_evaluator
    if not isinstance(evaluators, list):
        evaluators = [evaluators]
    cfg.test_evaluator = [
        *evaluators, dict(type='DumpResults', out_file_path=path)
    ]


def main() -> None:
    """Test."""
    args = parse_args()
    cfg = preflight.load_config(args.config, args.cfg_options)
    preflight.check_data(cfg, 'test')
    preflight.check_model(cfg)
    preflight.check_checkpoint(args.checkpoint, 'checkpoint')
    cli.set_work_dir(cfg, args.work_dir, args.config)
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.show or args.show_dir:
        enable_visualization(cfg, args)
    if args.out:
        write_predictions(cfg, args.out)
    preflight.check_stack(cfg)
    cli.set_launcher(cfg, args.launcher)
    if not process.is_first_process():
        # mmengine's LoggerHook writes the metrics from every process, all
        # into one file, which then may not be readable.
        cfg.default_hooks = dict(cfg.get('default_hooks', {}), logger=None)
    with (preflight.explain_registry_errors(cfg),
          preflight.explain_data_errors()):
        runner = cli.build_runner(cfg)
        runner.register_hook(CheckpointFitHook())
        runner.test()


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
