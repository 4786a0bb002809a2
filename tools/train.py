"""Train a model."""
import argparse
import sys

from sigplug.engine import cli, preflight, process
from sigplug.engine.hooks import CheckpointFitHook


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train in mixed precision: float16 on a GPU, bfloat16 on the '
        'CPU, or optim_wrapper.dtype of the config')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the actual batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from a checkpoint, by default the last one in the '
        'work dir')
    cli.add_common_arguments(parser)
    return cli.parse_args(parser)


def main() -> None:
    """Train."""
    args = parse_args()
    cfg = preflight.load_config(args.config, args.cfg_options)
    preflight.check_data(cfg, 'train', 'val')
    preflight.check_model(cfg)
    cli.set_work_dir(cfg, args.work_dir, args.config)
    if args.amp:
        cli.enable_amp(cfg)
    if args.auto_scale_lr:
        cli.enable_auto_scale_lr(cfg)
    cli.use_safe_checkpoints(cfg)
    if args.resume or cfg.get('resume'):
        cli.set_resume(cfg, args.resume or cfg.get('load_from') or 'auto')
    cli.warn_of_earlier_run(cfg)
    if cfg.get('load_from') and not cfg.get('resume'):
        preflight.check_checkpoint(cfg.load_from, 'load_from of the config')
    preflight.check_stack(cfg)
    cli.set_launcher(cfg, args.launcher)
    with (preflight.explain_registry_errors(cfg),
          preflight.explain_data_errors()):
        runner = cli.build_runner(cfg)
        runner.register_hook(CheckpointFitHook(partial=not cfg.get('resume')))
        runner.train()


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
