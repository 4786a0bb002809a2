"""The schedules of a training that continues from a checkpoint."""
import logging
import warnings
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner

# What changes in a scheduler while it runs.
PROGRESS = ('last_step', '_global_step', '_last_value', 'verbose', 'best',
            'num_bad_epochs', 'cooldown_counter')


def compare_schedules(runner: Runner, checkpoint: dict[str, Any],
                      new_schedule: bool) -> None:
    """Say where a checkpoint has other schedules than the config.

    mmengine continues those of the checkpoint, so that a training that was
    made longer ends at a constant rate
    (https://github.com/open-mmlab/mmengine/issues/1565).

    It is called before the runner takes from the checkpoint. With
    ``new_schedule``, rates and schedules of the config take the place of
    those in the checkpoint, at the same iteration.
    """
    meta, loop = checkpoint['meta'], runner.train_loop
    epochs = isinstance(loop, EpochBasedTrainLoop)
    done, end, unit = (
        (meta['epoch'], loop.max_epochs, 'epochs') if epochs else
        (meta['iter'], getattr(loop, 'max_iters', None), 'iterations'))
    if end is not None and done >= end:
        print_log(f'Nothing left to do: {done} {unit} are done, and train_cfg '
                  f'asks for {end}.', logger='current')
        return
    new, old = runner.param_schedulers, checkpoint.get('param_schedulers')
    # Several optimizers have a dict of them.
    if not isinstance(new, list) or not isinstance(old, list):
        return
    differences = [
        f'param_scheduler.{i}.{key}: checkpoint {_short(before.get(key))}, '
        f'config {_short(value)}'
        for i, (scheduler, before) in enumerate(zip(new, old))
        for key, value in scheduler.state_dict().items()
        if key not in PROGRESS and before.get(key) != value]
    if len(new) != len(old):
        differences.append(
            f'number of schedules: checkpoint {len(old)}, config {len(new)}')
    if not differences:
        return
    print_log(
        'The checkpoint has other schedules than the config, counted in '
        f'epochs or iterations ({"; ".join(differences)}). ' +
        ('Those of the config are used.' if new_schedule else
         'Those of the checkpoint are used; --new-schedule takes those of '
         'the config.'), logger='current', level=logging.WARNING)
    if new_schedule:
        length = len(loop.dataloader)
        _replay(new, meta['epoch'] * length if epochs else done, length)
        checkpoint['param_schedulers'] = [
            scheduler.state_dict() for scheduler in new]
        for group, wanted in zip(checkpoint['optimizer']['param_groups'],
                                 runner.optim_wrapper.param_groups):
            group.update({key: value for key, value in wanted.items()
                          if key != 'params'})


def _replay(schedulers: list[Any], iterations: int, length: int) -> None:
    """Step as in a training of so many iterations, ``length`` an epoch."""
    # At the end of an epoch, those of its iterations come first; one that
    # waits for a metric starts over.
    stepped = sorted((scheduler for scheduler in schedulers
                      if not hasattr(scheduler, 'monitor')),
                     key=lambda scheduler: scheduler.by_epoch)
    with warnings.catch_warnings():
        # Of steps without those of the optimizer.
        warnings.simplefilter('ignore')
        for done in range(1, iterations + 1):
            for scheduler in stepped:
                if not scheduler.by_epoch or done % length == 0:
                    scheduler.step()


def _short(value: Any) -> Any:
    """Return the first of many values, one for each group of parameters."""
    return value[0] if isinstance(value, list) and value else value
