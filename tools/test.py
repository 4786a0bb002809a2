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
    arguments.add_common_arguments(parser)
    return arguments.parse_args(parser)


def main() -> None:
    args = parse_args()
    cfg = preflight.load_config(args.config, args.cfg_options)
    preflight.check_data(cfg, 'test')
    preflight.check_checkpoint(args.checkpoint, 'checkpoint')
    cfg.load_from, cfg.resume = args.checkpoint, False
    prepare.set_work_dir(cfg, args)
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
