"""The arguments that tools share."""
import os
from argparse import ArgumentParser, Namespace

from mmengine.config import DictAction

# The variables that tell each process its number.
RANKS = dict(slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def add_cfg_options(parser: ArgumentParser) -> None:
    """Add ``--cfg-options``; :func:`parse_args` explains a wrong one."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override values of the config, for example '
        'optim_wrapper.optimizer.lr=0.001; lists as KEY=[a,b] or KEY=a,b, '
        'quoted and without blanks when nested: KEY="[(a,b),(c,d)]"')


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that training and testing have in common."""
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
    """Parse the command line; the ranks go to the environment."""
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
