"""A hook that refuses checkpoints of another model."""
import logging
import re
from collections import OrderedDict
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from sigplug.engine.schedules import compare_schedules
from sigplug.errors import UserError
from sigplug.registry import HOOKS

STATISTICS = ('running_mean', 'running_var')
SHOWN = 4


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuse a checkpoint that leaves weights of the model as they were.

    mmengine loads what fits and logs the rest, so that the checkpoint of
    another model gives random predictions. Only parameters and running
    statistics count; entries that the model does not use are ignored.

    Args:
        partial (bool): Take a checkpoint that has at least one parameter of
            the model, with a warning, as for training another number of
            classes. Defaults to ``False``.
        new_schedule (bool): Where training continues from a checkpoint, take
            learning rate and schedules of the config if they differ; else
            the difference is only logged. Defaults to ``False``.
    """

    # After EMAHook, which exchanges the weights.
    priority = 'LOWEST'

    def __init__(self, partial: bool = False,
                 new_schedule: bool = False) -> None:
        self.partial = partial
        self.new_schedule = new_schedule

    def after_load_checkpoint(self, runner: Runner,
                              checkpoint: dict[str, Any]) -> None:
        """Compare the checkpoint with the model of the runner.

        Raises:
            UserError: It does not fit, or training would continue from
                one that holds Python code.
        """
        path = runner._load_from
        # mmengine never writes this entry, but would execute it.
        if runner._resume and 'config' in checkpoint.get('meta', {}):
            raise UserError(
                f"{path!r} holds a config in meta['config'], which mmengine "
                'would execute. Remove it if you trust the file.')
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        missing, misshapen = load_what_fits(model, checkpoint)
        # A fixed p counts as well, where it has another shape.
        learnt = {name for name, _ in model.named_parameters()} | {
            name for name in model.state_dict() if name.endswith(STATISTICS)
        } | set(misshapen)
        missing = [*misshapen.values(), *(
            f'{name} (missing)' for name in missing if name in learnt)]
        if missing:
            shown = missing[:SHOWN] + ['...'] * (len(missing) > SHOWN)
            what = (f'The checkpoint {path!r} lacks {len(missing)} of the '
                    f'{len(learnt)} weights of the model, or has them in '
                    f'another shape: {", ".join(shown)}.')
            if not self.partial or len(missing) == len(learnt):
                raise UserError(
                    f'{what} It belongs to another model: give the config '
                    'that it was trained with, or another checkpoint.')
            print_log(
                f'{what} THESE WEIGHTS START FROM THEIR INITIAL VALUES.',
                logger='current', level=logging.WARNING)
        if runner._resume:
            compare_schedules(runner, checkpoint, self.new_schedule)


def load_what_fits(
        model: nn.Module,
        checkpoint: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Load the weights that fit, and return the names of the others.

    Those of another shape come with a text each.
    """
    state: Any = checkpoint.get('state_dict', checkpoint)
    metadata = getattr(state, '_metadata', None)
    # The prefix of torch's wrappers, as in Runner.load_checkpoint.
    state = OrderedDict((re.sub(r'^module\.', '', name), value)
                        for name, value in state.items()
                        if isinstance(value, Tensor))
    state._metadata = metadata
    misshapen: dict[str, str] = {}
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    # Only the modules' own loading knows which shapes it takes.
    except RuntimeError as error:
        for name, found, wanted in re.findall(
                r'size mismatch for (\S+): .*?shape torch\.Size\(\[(.*?)\]\) '
                r'.*?torch\.Size\(\[(.*?)\]\)', str(error)):
            misshapen[name] = f'{name} (({found}) in place of ({wanted}))'
            state.pop(name, None)
        if not misshapen:
            raise
        missing = model.load_state_dict(state, strict=False).missing_keys
    return [name for name in missing if name not in misshapen], misshapen
