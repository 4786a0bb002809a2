"""Train a model."""
import argparse
import sys

from sigplug.cli import arguments, build, explain, preflight, prepare, process
from sigplug.engine.hooks import CheckpointFitHook
from sigplug.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--amp', action='store_true',
        help='train in mixed precision: float16 on a GPU, bfloat16 on the '
        'CPU, or optim_wrapper.dtype of the config')
    parser.add_argument(
        '--auto-scale-lr', action='store_true',
        help='scale the learning rate to the actual batch size')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='continue from a checkpoint, by default the last one in the '
        'work dir')
    parser.add_argument(
        '--new-schedule', action='store_true',
        help='with --resume, take learning rate and schedules of the config '
        'where they differ from those in the checkpoint')
    arguments.add_common_arguments(parser)
    return arguments.parse_args(parser)


def main() -> None:
    args = parse_args()
    cfg = preflight.load_config(args.config, args.cfg_options)
    if args.new_schedule and not (args.resume or cfg.get('resume')):
        raise UserError('--new-schedule is for a training that continues: '
                        'add --resume.')
    preflight.check_data(cfg, 'train', 'val')
    prepare.set_work_dir(cfg, args)
    prepare.set_amp(cfg, args.amp)
    if args.auto_scale_lr:
        cfg.auto_scale_lr = dict(cfg.get('auto_scale_lr', {}), enable=True)
    prepare.use_safe_checkpoint_hook(cfg)
    prepare.set_resume(cfg, args.resume)
    process.advise_resume(cfg.work_dir, cfg.get('resume', False))
    prepare.set_launcher(cfg, args.launcher)
    preflight.check_stack(cfg)
    with explain.explain_build_errors(cfg):
        runner = build.build_runner(cfg, 'train', 'val')
        runner.register_hook(CheckpointFitHook(
            partial=not cfg.get('resume'), new_schedule=args.new_schedule))
        runner.train()


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
