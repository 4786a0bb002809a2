"""The arguments that tools share, and the objects built from a config."""
import os
import textwrap
from argparse import ArgumentParser, Namespace

from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import Runner, load_checkpoint
from torch import nn

from sigplug.errors import UserError

from . import preflight
from .upstream_fixes import load_checkpoints_safely, supply_numpy_long

# The variables that tell each process its number.
RANKS = dict(slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def add_cfg_options(parser: ArgumentParser) -> None:
    """Add ``--cfg-options``; :func:`parse_args` explains a wrong one.

    Args:
        parser (ArgumentParser): The parser of the tool.
    """
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override values of the config, for example '
        'optim_wrapper.optimizer.lr=0.001; lists as KEY=[a,b] or KEY=a,b, '
        'quoted and without blanks when nested: KEY="[(a,b),(c,d)]"')


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that training and testing have in common.

    Args:
        parser (ArgumentParser): The parser of the tool.
    """
    parser.add_argument(
        '--work-dir',
        help='folder for logs and results (default: work_dir of the config, '
        'else ./work_dirs/<name of the config>)')
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run are started')
    # torch.distributed.launch passes either spelling.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0,
        help='set by the launcher')


def parse_args(parser: ArgumentParser) -> Namespace:
    """Parse the command line; the ranks go to the environment.

    Args:
        parser (ArgumentParser): The parser of the tool.

    Returns:
        Namespace: The arguments.
    """
    try:
        args = parser.parse_args()
    # DictAction cannot split an option that has no '='.
    except ValueError:
        parser.error('--cfg-options takes KEY=VALUE pairs')
    if 'launcher' in args:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
        if args.launcher in RANKS:
            os.environ['RANK'] = os.environ.get(RANKS[args.launcher], '0')
    return args


def build_runner(cfg: Config, *splits: str) -> Runner:
    """Build the runner that the config describes, and its data sets.

    Args:
        cfg (Config): The config.
        *splits (str): The splits whose data sets are built: ``'train'``,
            ``'val'`` or ``'test'``.

    Returns:
        Runner: The runner.

    Raises:
        UserError: There is no model, or a data set cannot be read.
    """
    if 'model' not in cfg:
        raise UserError(
            f'The config {cfg.filename!r} has no model: choose one that '
            'describes a whole experiment, not a part in _base_.')
    load_checkpoints_safely()
    supply_numpy_long()
    runner = (RUNNERS.build(cfg) if 'runner_type' in cfg else
              Runner.from_cfg(cfg))
    for split in splits:
        with preflight.explain_data_errors(cfg.get(f'{split}_dataloader')):
            # The property builds the loop, with its data loader.
            getattr(runner, f'{split}_loop')
    return runner


def build_model(cfg: Config, checkpoint: str, device: str) -> nn.Module:
    """Build the model that the config describes and load all its weights.

    Args:
        cfg (Config): The config.
        checkpoint (str): The checkpoint file.
        device (str): Where the model goes.

    Returns:
        nn.Module: The model, in evaluation mode.

    Raises:
        UserError: The checkpoint belongs to another model.
    """
    load_checkpoints_safely()
    model = MODELS.build(cfg.model)
    try:
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    except RuntimeError as error:
        raise UserError(
            f'The checkpoint {checkpoint!r} does not fit the model of the '
            f'config {cfg.filename!r}. {textwrap.shorten(str(error), 400)}'
        ) from error
    return model.to(device).eval()
