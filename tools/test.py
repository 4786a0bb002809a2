"""Test and evaluate a model."""
import argparse
import sys

from sigplug.cli import arguments, build, explain, preflight, prepare, process
from sigplug.engine.hooks import CheckpointFitHook


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out', metavar='FILE.pkl',
        help='also write the predictions to this pickle file')
    parser.add_argument(
        '--show', action='store_true',
        help='show the predictions in an Open3D window')
    parser.add_argument(
        '--show-dir',
        help='write pictures of the Open3D window to this folder below '
        '<work dir>/<time stamp>/')
    parser.add_argument(
        '--score-thr', type=float, default=0.1,
        help='show predictions with at least this score (default: 0.1)')
    parser.add_argument(
        '--wait-time', type=float, default=2,
        help='seconds for which a sample is shown (default: 2)')
    parser.add_argument(
        '--task', default='lidar_det', choices=(
            'lidar_det', 'mono_det', 'multi-view_det', 'multi-modality_det'),
        help='what is shown (default: lidar_det)')
    arguments.add_common_arguments(parser)
    return arguments.parse_args(parser)


def main() -> None:
    args = parse_args()
    cfg = preflight.load_config(args.config, args.cfg_options)
    preflight.check_data(cfg, 'test')
    preflight.check_checkpoint(args.checkpoint, 'checkpoint')
    cfg.load_from, cfg.resume = args.checkpoint, False
    prepare.set_work_dir(cfg, args)
    if args.show or args.show_dir:
        prepare.enable_visualization(cfg, args)
    if args.out:
        prepare.write_predictions(cfg, args.out)
    prepare.set_launcher(cfg, args.launcher)
    if not process.is_rank_zero():
        # mmengine's LoggerHook writes the metrics from every process, all
        # into one file, which then may not be readable.
        cfg.default_hooks = dict(cfg.get('default_hooks', {}), logger=None)
    preflight.check_stack(cfg)
    with explain.explain_build_errors(cfg):
        runner = build.build_runner(cfg, 'test')
        runner.register_hook(CheckpointFitHook())
        runner.test()


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
