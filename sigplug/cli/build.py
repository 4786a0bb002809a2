"""The objects that a config describes."""
import logging
import textwrap
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import Runner as BaseRunner
from mmengine.runner import load_checkpoint
from torch import nn

from sigplug.engine.hooks.interval import unwrap
from sigplug.engine.upstream_fixes import (
    load_checkpoints_safely,
    supply_numpy_long,
    train_spconv_on_cpu,
)
from sigplug.errors import UserError
from sigplug.files import relative

from . import preflight
from .explain import explain_data_errors, iter_dicts
from .model_check import check_model
from .screen import quieten


class Runner(BaseRunner):
    """mmengine's runner, which shows news alone on the screen.

    Stages, iterations, losses, the time that is left and warnings are; the
    config, the environment and the order of the hooks go to the log file. The
    setting ``log_level='DEBUG'`` shows all.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger, and name its file."""
        logger = super().build_logger(*args, **kwargs)
        quieten(logger)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                # That takes some ten seconds.
                logger.info('Model and data are prepared. The whole log is in '
                            f'{relative(handler.baseFilename)}')
        return logger


def build_runner(cfg: Config, *splits: str) -> Runner:
    """Build the runner that the config describes, and its data sets.

    Raises:
        UserError: There is no model, a data set cannot be read, or the parts
            do not fit together.
    """
    if 'model' not in cfg:
        raise UserError(
            f'The config {cfg.filename!r} has no model: choose one that '
            'describes a whole experiment, not a part in _base_.')
    load_checkpoints_safely()
    supply_numpy_long()
    runner = (RUNNERS.build(cfg) if 'runner_type' in cfg else
              Runner.from_cfg(cfg))
    train_spconv_on_cpu()
    datasets: dict[str, Any] = {}
    for split in splits:
        name = f'{split}_dataloader'
        with explain_data_errors(cfg.get(name), name):
            # The property builds the loop, with its data loader.
            loop = getattr(runner, f'{split}_loop')
        loader = getattr(loop, 'dataloader', None)
        dataset = datasets[split] = getattr(loader, 'dataset', None)
        preflight.check_tables(cfg, split, dataset)
    model = unwrap(runner.model)
    check_model(model, datasets)
    if 'train' in splits:
        check_pretrained(cfg, model)
    compile_parts(runner.cfg, model)
    return runner


def compile_parts(cfg: Config, model: nn.Module) -> None:
    """Compile backbones and necks where the config asks for a compilation.

    mmengine would compile the training step as a whole, where torch's
    compiler stops at the data samples.
    """
    options = cfg.pop('compile', None)
    if options is None or options is False:
        return
    for name, part in model.named_children():
        if name.endswith(('backbone', 'neck')):
            part.compile(**({} if options is True else options))


def check_pretrained(cfg: Config, model: nn.Module) -> None:
    """Check the checkpoints that ``init_cfg`` takes parts of a model from.

    mmengine loads what fits, even if that is nothing. A part with an
    ``init_weights`` of its own may read a checkpoint in its own way.

    Raises:
        UserError: One is missing, or has no weight of its part.
    """
    parts = dict(model.named_modules())
    for key, node in iter_dicts(cfg.model, ''):
        place, found, _ = key.partition('init_cfg')
        if not found or node.get('type') != 'Pretrained':
            continue
        path = str(node.get('checkpoint'))
        weights = preflight.check_checkpoint(path, f'model.{key}.checkpoint')
        part: Any = parts.get(place.rstrip('.'))
        own_way = getattr(type(part), 'init_weights', None) is not (
            BaseModule.init_weights)
        if not weights or own_way:
            continue
        prefix = (node.get('prefix') or '').rstrip('.')
        names = {f'{prefix}.{name}'.removeprefix('.')
                 for name in part.state_dict()}
        if names.isdisjoint(weights.get('state_dict', weights)):
            raise UserError(
                f'model.{key}: no weight in {path!r} has the name of one of '
                f'{type(part).__name__}. Weights of a whole detector need '
                'prefix=..., the name of the part.')


def build_model(cfg: Config, checkpoint: str, device: str) -> nn.Module:
    """Build the model that the config describes, for evaluation.

    It takes all its weights from the checkpoint.

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
