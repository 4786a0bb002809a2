"""What the command-line tools share, ``tools/train.py`` most of all."""
import os
import os.path as osp
import signal
import textwrap
from argparse import ArgumentParser, Namespace
from datetime import timedelta
from glob import escape, glob
from typing import Any

import torch.distributed
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import Runner, load_checkpoint
from torch import nn

from sigplug.errors import UserError

from .hooks.checkpoint import find_checkpoint_dir
from .optim_wrapper import cpu_amp_dtype
from .preflight import check_checkpoint
from .process import end_with_parent, print_once, use_launcher

CPU_AMP = 'sigplug.engine.optim_wrapper.CPUAmpOptimWrapper'
CHECKPOINT_HOOK = 'sigplug.CheckpointHook'


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
    """Parse the command line; a local rank goes to the environment.

    With a launcher messages are printed by the first process alone from here
    on.

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
    if 'local_rank' in args:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
        use_launcher(args.launcher)
    return args


def set_work_dir(cfg: Config, work_dir: str | None, config: str) -> None:
    """Decide on the work dir: the argument, the config, or a default.

    Args:
        cfg (Config): The config, changed in place.
        work_dir (str, optional): The value of ``--work-dir``.
        config (str): Path of the config; its name is the default's name.
    """
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(config))[0]
        cfg.work_dir = osp.join('./work_dirs', name)


def set_launcher(cfg: Config, launcher: str) -> None:
    """Prepare a distributed run, on the CPU with gloo.

    mmengine initialises GPUs only, so that without one the process group is
    created here and the model is wrapped without a device.

    When a process dies, torch.distributed.run ends the others within a
    second, and their data loaders' workers follow within five. For a process
    that only stops to answer the others wait ``env_cfg.dist_cfg.timeout``
    seconds of the config, without it torch's 30 minutes (an evaluation by
    the first process must end in that time), and torch.distributed.run
    another 30 seconds. When torch.distributed.run itself is killed, so are
    its processes (on Linux).

    Args:
        cfg (Config): The config, changed in place.
        launcher (str): The value of ``--launcher``.
    """
    cfg.launcher = launcher
    if launcher == 'none':
        return
    # One process may wait for another in C++, where no handler of Python
    # runs: there SIGTERM ends each at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise UserError(
            '--launcher pytorch needs the processes to be started by '
            'torch.distributed.run: use tools/dist_train.sh or '
            'tools/dist_test.sh.')
    if launcher == 'pytorch':
        end_with_parent()
    if get_device() != 'cpu':
        return
    if launcher != 'pytorch':
        raise UserError(
            f'--launcher {launcher} needs a GPU, and torch finds none. On '
            'the CPU, start the processes by tools/dist_train.sh or '
            'tools/dist_test.sh (--launcher pytorch).')
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    # torch 2.1 takes no None.
    options: dict[str, Any] = (
        dict(timeout=timedelta(seconds=timeout)) if timeout else {})
    torch.distributed.init_process_group('gloo', **options)
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)


def enable_amp(cfg: Config) -> None:
    """Switch to mixed precision: float16 on a GPU, bfloat16 on the CPU.

    A ``dtype`` in ``cfg.optim_wrapper`` takes the place of these.

    Args:
        cfg (Config): The config, changed in place.

    Raises:
        UserError: The config has another optimizer wrapper, or the CPU
            has no mixed precision of that type.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    name = kind if isinstance(kind, str) else kind.__name__
    if name == 'AmpOptimWrapper' and get_device() != 'cpu':
        print_once('--amp: the config has mixed precision already.')
    elif name not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(
            "--amp needs optim_wrapper.type = 'OptimWrapper' in the config, "
            f'but it is {name!r}.')
    elif get_device() == 'cpu':
        # Settings of AmpOptimWrapper alone.
        for key in ('loss_scale', 'use_fsdp'):
            wrapper.pop(key, None)
        wrapper.type = CPU_AMP
        # AmpOptimWrapper takes None for its default.
        if wrapper.get('dtype') is None:
            wrapper.pop('dtype', None)
            return
        try:
            dtype = cpu_amp_dtype(wrapper.dtype)
        except ValueError as error:
            raise UserError(f'--amp: optim_wrapper.{error}.') from error
        if dtype == torch.float16:
            print_once('--amp: float16 on the CPU, as optim_wrapper.dtype '
                       'says; on most processors bfloat16 is much faster.')
    else:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.loss_scale = 'dynamic'


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate to the actual batch size.

    Args:
        cfg (Config): The config, changed in place.
    """
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise UserError(
            '--auto-scale-lr needs the batch size that the learning rate of '
            'the config is meant for: auto_scale_lr = dict(enable=False, '
            'base_batch_size=...).')
    cfg.auto_scale_lr.enable = True


def use_safe_checkpoints(cfg: Config) -> None:
    """Put sigplug's checkpoint hook in the place of mmengine's.

    A hook of another type stays.

    Args:
        cfg (Config): The config, changed in place.
    """
    hooks = cfg.get('default_hooks') or {}
    # As mmengine has it by default; None switches it off.
    hook = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
    if hook is not None and hook.get('type') in (
            'CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook):
        cfg.default_hooks = dict(
            hooks, checkpoint=dict(hook, type=CHECKPOINT_HOOK))


def set_resume(cfg: Config, resume: str) -> None:
    """Continue from a checkpoint.

    Args:
        cfg (Config): The config with its work dir, changed in place.
        resume (str): The value of ``--resume``: a checkpoint, or ``'auto'``
            for the last one in the work dir (or the ``out_dir`` of the
            checkpoint hook) that can be read. Where there is none, training
            starts from the beginning.

    Raises:
        UserError: Training cannot continue from the checkpoint, or from
            none of those in the work dir.
    """
    path = _last_checkpoint(cfg) if resume == 'auto' else resume
    if path is None:
        print_once(f'--resume: no checkpoint in {cfg.work_dir!r}, so '
                   'training starts from the beginning.')
        return
    checkpoint = check_checkpoint(path, '--resume', resume=True)
    print_once(f'--resume: training continues from {path}.')
    cfg.resume = True
    cfg.load_from = path
    # Runner.resume restores a random seed too late for the order of the data.
    randomness = cfg.get('randomness', {})
    if checkpoint and randomness.get('seed') is None:
        cfg.randomness = dict(
            randomness, seed=checkpoint['meta'].get('seed'))


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config describes.

    Args:
        cfg (Config): The config.

    Returns:
        Runner: The runner.

    Raises:
        UserError: It describes no model.
    """
    if 'model' not in cfg:
        raise UserError(
            f'The config {cfg.filename!r} has no model: choose one that '
            'describes a whole experiment, not a part in _base_.')
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


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
    model = MODELS.build(cfg.model)
    try:
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    except RuntimeError as error:
        raise UserError(
            f'The checkpoint {checkpoint!r} does not fit the model of the '
            f'config {cfg.filename!r}. {textwrap.shorten(str(error), 400)}'
        ) from error
    return model.to(device).eval()


def warn_of_earlier_run(cfg: Config) -> None:
    """Say so when a training begins among the checkpoints of another.

    Args:
        cfg (Config): The config with its work dir.
    """
    earlier = _checkpoints(cfg)
    if earlier and not cfg.get('resume'):
        print_once(
            f'The work dir {cfg.work_dir!r} holds checkpoints of an earlier '
            f'training (the last one: {earlier[0]}), which this one '
            'overwrites one by one. To continue the earlier one, use '
            '--resume; to keep it, another --work-dir.')


def _checkpoints(cfg: Config) -> list[str]:
    """The checkpoints that a training has written, the newest first."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    folders = {cfg.work_dir,
               find_checkpoint_dir(hook.get('out_dir'), cfg.work_dir)}
    return sorted((path for folder in folders
                   for path in glob(osp.join(escape(folder), '*.pth'))),
                  key=osp.getmtime, reverse=True)


def _last_checkpoint(cfg: Config) -> str | None:
    """The last checkpoint that training can continue from.

    That is the one that mmengine's file ``last_checkpoint`` names or, where
    it cannot be read or does not exist, the newest of the others.
    """
    work_dir = cfg.work_dir
    candidates = _checkpoints(cfg)
    failures = []
    record = osp.join(work_dir, 'last_checkpoint')
    if osp.isfile(record):
        with open(record) as file:
            path = file.read().strip()
        # The work dir may have been moved since.
        moved = osp.join(work_dir, osp.basename(path))
        # In a remote storage, or a folder of DeepSpeed: left to mmengine.
        if '://' in path or (osp.isdir(path) and os.listdir(path)):
            return path
        if osp.isfile(path) or osp.isfile(moved):
            path = path if osp.isfile(path) else moved
            candidates = [path, *(c for c in candidates if c != path)]
        else:
            failures = [f'--resume: {record} names the checkpoint {path!r}, '
                        'which does not exist.']
    for candidate in candidates:
        try:
            check_checkpoint(candidate, '--resume', resume=True)
        except UserError as error:
            failures.append(str(error))
            continue
        if failures:
            print_once(f'{failures[0]}\n--resume: instead, the newest '
                       f'checkpoint that can be read: {candidate}.')
        return candidate
    if failures:
        raise UserError(
            f'{failures[0]}\nThere is no other one in {work_dir!r} to '
            'continue from. Name one with --resume CHECKPOINT, or train '
            'without --resume.')
    return None
