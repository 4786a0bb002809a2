"""Changes to a config that ``tools/train.py`` and ``tools/test.py`` make."""
import os
import os.path as osp
import signal
import sys
from argparse import Namespace
from datetime import timedelta
from glob import escape, glob
from typing import Any

import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook

from sigplug.errors import UserError

from .preflight import check_checkpoint
from .process import print_on_rank_zero

CPU_AMP = 'sigplug.engine.optim_wrapper.CPUAmpOptimWrapper'
CHECKPOINT_HOOK = 'sigplug.CheckpointHook'


def set_work_dir(cfg: Config, args: Namespace) -> None:
    """Take the work dir of the command line, of the config, or a default."""
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('./work_dirs', name)


def set_amp(cfg: Config, amp: bool) -> None:
    """Switch to mixed precision: float16 on a GPU, bfloat16 on the CPU.

    A ``dtype`` in ``cfg.optim_wrapper`` overrides these. On the CPU mmengine's
    ``AmpOptimWrapper`` does not work, and is replaced also without ``--amp``.

    Raises:
        UserError: The wrapper does not go with it.
    """
    wrapper: Any = cfg.get('optim_wrapper') or {}
    kind = wrapper.get('type', 'OptimWrapper')
    name = kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__
    if not amp and name != 'AmpOptimWrapper':
        return
    if not wrapper or name not in (
            'OptimWrapper', 'AmpOptimWrapper', 'CPUAmpOptimWrapper'):
        raise UserError(
            "--amp needs an optim_wrapper of type 'OptimWrapper' in the "
            f'config, but it is {dict(wrapper)}.')
    if get_device() != 'cpu':
        if name == 'OptimWrapper':
            wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
        return
    wrapper.type = CPU_AMP
    # Settings of AmpOptimWrapper alone.
    for key in ('loss_scale', 'use_fsdp'):
        wrapper.pop(key, None)
    if wrapper.get('dtype') is None:
        wrapper.pop('dtype', None)


def use_safe_checkpoint_hook(cfg: Config) -> None:
    """Replace mmengine's checkpoint hook by sigplug's.

    A hook of another type stays.
    """
    hooks = cfg.get('default_hooks') or {}
    # As mmengine has it by default; None switches it off.
    hook = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
    if hook is not None and hook.get('type') in (
            'CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook):
        cfg.default_hooks = dict(
            hooks, checkpoint=dict(hook, type=CHECKPOINT_HOOK))


def set_resume(cfg: Config, resume: str | None) -> None:
    """Find the checkpoint that the training starts from.

    The value of ``--resume`` is a checkpoint, or ``'auto'`` for the last one
    in the work dir that can be read. Where there is none, training starts
    from the beginning.

    Raises:
        UserError: Training cannot continue from the checkpoint, or from
            none of those in the work dir; or ``load_from`` cannot be read.
    """
    if cfg.get('resume'):
        resume = resume or cfg.get('load_from') or 'auto'
    path = None
    if resume == 'auto':
        path, meta = _find_last_checkpoint(cfg.work_dir)
        if path is None:
            print_on_rank_zero(
                f'--resume: no checkpoint in {cfg.work_dir!r}, so training '
                'starts from the beginning.')
    elif resume:
        path, meta = resume, _read_meta(resume)
    if path is None:
        if cfg.get('load_from'):
            check_checkpoint(cfg.load_from, 'load_from of the config')
        return
    print_on_rank_zero(f'--resume: training continues from {path}.')
    cfg.resume = True
    cfg.load_from = path
    # Runner.resume restores a random seed too late for the order of the data.
    randomness = cfg.get('randomness', {})
    if randomness.get('seed') is None:
        cfg.randomness = dict(randomness, seed=meta.get('seed'))


def _read_meta(path: str) -> dict:
    """Return the ``meta`` of a checkpoint to continue from."""
    return check_checkpoint(path, '--resume', (
        'meta', 'message_hub', 'optimizer')).get('meta', {})


def _find_last_checkpoint(work_dir: str) -> tuple[str | None, dict]:
    """Return the last checkpoint to continue from, and its ``meta``.

    mmengine's file ``last_checkpoint`` names it. If it does not exist or
    cannot be read, the newest other one in the work dir is taken.
    """
    candidates = sorted(glob(osp.join(escape(work_dir), '*.pth')),
                        key=osp.getmtime, reverse=True)
    record = osp.join(work_dir, 'last_checkpoint')
    if osp.isfile(record):
        with open(record) as file:
            last = file.read().strip()
        if '://' in last or osp.isfile(last):
            candidates.insert(0, last)
    failures = []
    for path in candidates:
        try:
            meta = _read_meta(path)
        except UserError as error:
            failures.append(str(error))
            continue
        if failures:
            print_on_rank_zero(f'{failures[0]}\n--resume: instead, the newest '
                               f'checkpoint that can be read: {path}.')
        return path, meta
    if failures:
        raise UserError(f'{failures[0]}\nThere is no other one to continue '
                        f'from in {work_dir!r}: train without --resume.')
    return None, {}


def enable_visualization(cfg: Config, args: Namespace) -> None:
    """Switch mmdet3d's visualization hook on."""
    if sys.platform == 'linux' and 'DISPLAY' not in os.environ:
        raise UserError(
            '--show and --show-dir draw in an Open3D window, which needs a '
            'display. Pictures without one: python '
            f'tools/analysis_tools/visualize_bev.py {args.config} '
            f'{args.checkpoint} --out-dir DIR')
    hooks = cfg.get('default_hooks') or {}
    cfg.default_hooks = dict(hooks, visualization=dict(
        hooks.get('visualization') or dict(type='Det3DVisualizationHook'),
        draw=True,
        show=args.show,
        wait_time=args.wait_time,
        score_thr=args.score_thr,
        vis_task=args.task,
        test_out_dir=args.show_dir))


def write_predictions(cfg: Config, path: str) -> None:
    """Add a metric that writes the predictions to a file."""
    evaluators = cfg.test_evaluator
    if not isinstance(evaluators, list):
        evaluators = [evaluators]
    cfg.test_evaluator = [
        *evaluators, dict(type='DumpResults', out_file_path=path)
    ]


def set_launcher(cfg: Config, launcher: str) -> None:
    """Prepare a distributed run, on the CPU with gloo.

    mmengine initialises GPUs only, so that without one the process group is
    created here and the model is wrapped without a device. The processes wait
    for one another as long as ``env_cfg.dist_cfg.timeout`` allows, in
    seconds; by default that is torch's 30 minutes, within which an evaluation
    by the first process must end.

    Raises:
        UserError: The processes were started in another way, or need a GPU.
    """
    cfg.launcher = launcher
    if launcher == 'none':
        return
    # A process may wait for another in C++, where no Python handler runs: let
    # SIGTERM end each at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise UserError(
            '--launcher pytorch needs the processes to be started by '
            'torch.distributed.run: use tools/dist_train.sh or '
            'tools/dist_test.sh.')
    if get_device() != 'cpu':
        return
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
