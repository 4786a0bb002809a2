"""A small training with a checkpoint or two in each epoch, and its killer.

Run as a script, so that the processes that it forks have a parent in which
nothing but imports has happened.
"""
import gc
import os
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

# An optimizer would import it in each process.
import torch._dynamo  # noqa: F401
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import sigplug  # noqa: F401
from sigplug.cli import prepare


class ToyModel(BaseModel):

    def __init__(self, mib=0):
        super().__init__()
        self.fc = nn.Linear(2, 1)
        self.register_buffer('ballast', torch.zeros(mib, 2**18))

    def forward(self, inputs, target=None, mode='tensor'):
        out = self.fc(torch.stack(inputs))
        if mode == 'loss':
            return dict(loss=(out - torch.stack(target)).square().mean())
        return list(out)


class ToyDataset(BaseDataset):

    def load_data_list(self):
        return [dict(index=i) for i in range(4)]

    def __getitem__(self, index):
        return dict(inputs=torch.full((2, ), float(index)),
                    target=torch.ones(1))


class ToyMetric(BaseMetric):
    """Better each time."""
    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results.append(time.time())

    def compute_metrics(self, results):
        return dict(score=np.max(results))


def make_runner(work_dir, mib=0, epochs=2, hook=None, metainfo=None,
                log_level='ERROR', **settings):
    """A training, with two checkpoints in each epoch: a last and a best."""
    loader = dict(
        dataset=ToyDataset(indices=2, serialize_data=False,
                           metainfo=metainfo),
        batch_size=2, num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True))
    checkpoint = dict(
        type='sigplug.CheckpointHook', interval=1, max_keep_ckpts=1,
        save_best='toy/score', rule='greater')
    return Runner(
        model=ToyModel(mib), work_dir=str(work_dir), train_dataloader=loader,
        val_dataloader=loader, val_evaluator=[ToyMetric()], val_cfg=dict(),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        default_hooks=dict(checkpoint={**checkpoint, **(hook or {})}),
        randomness=dict(seed=0), log_level=log_level,
        experiment_name=f'toy{time.time()}', **settings)


def train(work_dir, **kwargs):
    """Train, from where the last one ended."""
    cfg = Config(dict(work_dir=str(work_dir)))
    prepare.set_resume(cfg, 'auto')
    make_runner(work_dir, load_from=cfg.get('load_from'),
                resume=cfg.get('resume', False), **kwargs).train()


def fork(function, *args, **kwargs):
    """Call a function in another, silent process; return its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        function(*args, **kwargs)
        code = 0
    except OSError as error:
        code = error.errno
    finally:
        os._exit(code)


def exit_code(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def check(work_dir):
    """Check what must hold at every moment; return the epoch that is safe.

    From the second epoch on there is a best checkpoint.
    """
    work_dir = Path(work_dir)
    record = work_dir / 'last_checkpoint'
    # Whole, each of them.
    epochs = {path.name: torch.load(path)['meta']['epoch']
              for path in work_dir.glob('*.pth')}
    if not record.exists():
        return 0
    name = Path(record.read_text()).name
    assert name in epochs, (name, epochs)
    if epochs[name] > 1:
        assert any(name.startswith('best_') for name in epochs), epochs
    return epochs[name]


def die_at(step, work_dir, **kwargs):
    """Train; in front of a step that changes a checkpoint, die."""
    steps = 0

    def watch(event, args):
        nonlocal steps
        writes = event in ('os.rename', 'os.remove', 'os.truncate') or (
            event == 'open' and str(args[1])[:1] in 'wax')
        if writes and ('.pth' in str(args[0])
                       or 'last_checkpoint' in str(args[0])):
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    train(work_dir, **kwargs)


def kill_everywhere(work_dir):
    """Kill a training once in front of each of its steps; count them."""
    for step in range(1, 100):
        folder = Path(work_dir, str(step))
        code = exit_code(fork(die_at, step, folder, epochs=2))
        safe = check(folder)
        if code == 0:
            return step - 1
        assert code == -signal.SIGKILL, code
        # What is there serves to go on, up to the same end.
        assert exit_code(fork(train, folder, epochs=2)) == 0
        assert check(folder) == 2 >= safe
        assert not list(folder.glob('*.partial')), step


if __name__ == '__main__':
    torch.set_num_threads(1)
    # What is imported for it here is not imported in each process.
    with TemporaryDirectory() as folder:
        runner = make_runner(folder)
        runner.build_train_loop(runner._train_loop)
        runner.build_optim_wrapper(runner.optim_wrapper)
    gc.freeze()
    print(kill_everywhere(sys.argv[1]))
