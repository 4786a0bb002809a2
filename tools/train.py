"""Train a model."""
import argparse
import sys

from sigplug.engine import cli, preflight, process
from sigplug.engine.hooks import CheckpointFitHook
from sigplug.engine.model_check import check_model
from sigplug.engine.prepare import prepare_training


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
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
    cli.add_common_arguments(parser)
    return cli.parse_args(parser)


def main() -> None:
    """Train."""
    args = parse_args()
    cfg = preflight.load_config(args.config, args.cfg_options)
    preflight.check_data(cfg, 'train', 'val')
    check_model(cfg)
    prepare_training(cfg, args)
    preflight.check_stack(cfg)
    with preflight.explain_registry_errors(cfg):
        runner = cli.build_runner(cfg, 'train', 'val')
        runner.register_hook(CheckpointFitHook(partial=not cfg.get('resume')))
        runner.train()


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
