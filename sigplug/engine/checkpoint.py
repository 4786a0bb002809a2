"""Reading mmengine's checkpoints with ``weights_only=True``."""
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

_ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'


def _one_cycle() -> None:
    """Stand for ``OneCycleParamScheduler``, which nobody has to build.

    A checkpoint only names the class to reach its annealing function, and
    importing it would cost ``import sigplug`` more than a second.
    """
    raise TypeError('OneCycleParamScheduler cannot be built by a checkpoint.')


# The attributes that mmengine's checkpoints refer to, and no others.
_ATTRIBUTES = {
    HistoryBuffer: ('min', 'max', 'current', 'mean'),
    _one_cycle: ('_annealing_cos', '_annealing_linear'),
}


def _getattr(owner: Any, name: str) -> Callable:
    """Stand for ``builtins.getattr``, limited to :data:`_ATTRIBUTES`.

    Pickle writes a function that lives in a class as ``getattr(cls, name)``.
    The real ``getattr`` would lead from there to the globals of a module, and
    so around the whole protection.
    """
    if not any(owner is known and name in names
               for known, names in _ATTRIBUTES.items()):
        raise AttributeError(
            f'A checkpoint may not read the attribute {name!r} of {owner!r}.')
    if owner is _one_cycle:
        from mmengine.optim.scheduler import param_scheduler
        owner = param_scheduler.OneCycleParamScheduler
    return getattr(owner, name)


class _NDArray(np.ndarray):
    """Stand for ``numpy.ndarray`` where a checkpoint names it.

    Called with a buffer, the real class takes bytes for pointers to objects.
    A subclass, so that it also serves numpy's own ``_reconstruct``, should
    somebody else have allowed that one.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError('numpy.ndarray cannot be called by a checkpoint.')


def _reconstruct(*args: Any) -> np.ndarray:
    """Stand for numpy's ``_reconstruct``: the array that pickle then fills."""
    return np.empty(0)


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    Since torch 2.6 ``weights_only=True`` is the default, and it refuses the
    objects that mmengine stores beside the weights: the logged values
    (``HistoryBuffer``, which holds numpy arrays), a numpy scalar as best
    score, nested dicts of a dataset's ``metainfo`` (``ConfigDict``) and the
    annealing function of ``OneCycleLR``. They are allow-listed one by one;
    the safety stays on for everything else. Older versions of torch need
    nothing, and nothing is done there.
    """
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        return
    allowed = [
        HistoryBuffer,
        ConfigDict,
        (_getattr, 'builtins.getattr'),
        (_one_cycle, _ONE_CYCLE),
        (_NDArray, 'numpy.ndarray'),
        _NDArray,
        # Pickle may fill such an object, but no checkpoint can name the
        # class: all names there have a dot.
        (np.ndarray, 'ndarray'),
        np.dtype,
        type(np.dtype('float64')),
        type(np.dtype('int64')),
    ]
    scalar = np.float64(0).__reduce__()[0]
    # numpy 2 renamed the module; a checkpoint may come from either side.
    for core in ('numpy.core', 'numpy._core'):
        allowed += [(_reconstruct, f'{core}.multiarray._reconstruct'),
                    (scalar, f'{core}.multiarray.scalar')]
    torch.serialization.add_safe_globals(allowed)
