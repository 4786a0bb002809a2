"""Read mmengine's checkpoints without running code that they may contain."""
import codecs
import pickle
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

from sigplug.errors import UserError

# From this version on torch.load is safe by default, and takes exceptions.
HAS_ALLOW_LIST = digit_version(torch.__version__) >= digit_version('2.6.0')


def load_safely(path: str, map_location: Any = None,
                mmap: bool = False) -> Any:
    """Read a checkpoint, with every version of torch as safe as 2.6.

    Args:
        path (str): The file.
        map_location (optional): As for ``torch.load``.
        mmap (bool): Whether tensors are only read once they are used, as for
            ``torch.load``. Defaults to ``False``.

    Returns:
        Any: The content.

    Raises:
        pickle.UnpicklingError: It names something that mmengine's checkpoints
            never name.
    """
    options: dict[str, Any] = dict(weights_only=True)
    if not HAS_ALLOW_LIST:
        options = dict(weights_only=False, pickle_module=_restricted_pickle())
    return torch.load(str(path), map_location, mmap=mmap or None, **options)


def read_checkpoint(path: str, map_location: Any = None,
                    mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint for a tool, as :func:`load_safely` does.

    Raises:
        UserError: It cannot be read, or would run code, or is not a dict.
    """
    try:
        checkpoint = load_safely(path, map_location, mmap)
    # Whatever goes wrong here, this file is of no use to the run.
    except Exception as error:
        raise UserError(f'The checkpoint {path!r} '
                        f'{_explain_failure(error)}') from error
    if not isinstance(checkpoint, dict):
        raise UserError(
            f'{path!r} is no checkpoint, which is a dict with the weights, '
            f'but a {type(checkpoint).__name__}.')
    return checkpoint


def _explain_failure(error: Exception) -> str:
    name = re.search(r'(?i)unsupported global:?(?: GLOBAL)? ([\w.]+)',
                     str(error))
    if name:
        return (f'holds {name[1]}, which torch does not trust: loading it '
                'might execute any code. Only if you trust the source of the '
                'file, load it by torch.load(..., weights_only=False) and '
                'save its state_dict alone.')
    return ('cannot be loaded. It is no checkpoint, or damaged by an '
            f'interrupted write or download ({type(error).__name__}).')


class _OneCycle:
    """Stand for ``OneCycleParamScheduler``.

    A checkpoint names it only to reach its annealing function, and importing
    it would cost ``import sigplug`` more than a second.
    """


def _getattr(owner: Any, name: str) -> Callable:
    """Stand for ``builtins.getattr``, limited to what mmengine refers to.

    Pickle writes a function that lives in a class as ``getattr(cls, name)``.
    The real ``getattr`` would lead from there to the globals of a module, and
    so around the whole protection.
    """
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    if owner is _OneCycle and name in ('_annealing_cos', '_annealing_linear'):
        from mmengine.optim.scheduler import param_scheduler
        return getattr(param_scheduler.OneCycleParamScheduler, name)
    raise AttributeError(
        f'A checkpoint may not read the attribute {name!r} of {owner!r}.')


class _NDArray(np.ndarray):
    """Stand for ``numpy.ndarray`` where a checkpoint names it.

    Called with a buffer, the real class takes bytes for pointers to objects.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError('numpy.ndarray cannot be called by a checkpoint.')


def _reconstruct(*args: Any) -> np.ndarray:
    """Stand for numpy's ``_reconstruct``: the array that pickle then fills."""
    return np.empty(0)


def allowed_globals() -> dict[str, Any]:
    """Return the objects that mmengine's checkpoints refer to, by name.

    These are the logged values (``HistoryBuffer``, which holds numpy arrays),
    a numpy scalar as best score, nested dicts of a dataset's ``metainfo``
    (``ConfigDict``) and the annealing function of ``OneCycleLR``.
    """
    allowed = {
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'mmengine.config.config.ConfigDict': ConfigDict,
        'builtins.getattr': _getattr,
        'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler':
            _OneCycle,
        'numpy.ndarray': _NDArray,
        'numpy.dtype': np.dtype,
        # For what pickle may fill. No checkpoint can name these classes: a
        # name there has a dot.
        'ndarray': np.ndarray,
        'float64': type(np.dtype('float64')),
        'int64': type(np.dtype('int64')),
    }
    scalar = np.float64(0).__reduce__()[0]
    # numpy 2 renamed the module; a checkpoint may come from either side.
    for core in ('numpy.core', 'numpy._core'):
        allowed[f'{core}.multiarray._reconstruct'] = _reconstruct
        allowed[f'{core}.multiarray.scalar'] = scalar
    return allowed


def _restricted_pickle() -> SimpleNamespace:
    """Return a ``pickle_module`` that loads only what is allowed.

    Like torch's own, it is written in Python to check what a checkpoint sets.
    """
    from torch._weights_only_unpickler import _get_allowed_globals
    # Later versions of torch know how pickle writes bytes themselves.
    known = {'_codecs.encode': codecs.encode, **_get_allowed_globals(),
             **allowed_globals()}
    fillable = (torch.Tensor, np.ndarray, np.dtype, HistoryBuffer, dict)

    # Not among the type hints of pickle.
    unpickler: Any = pickle._Unpickler

    class Unpickler(unpickler):
        dispatch = dict(unpickler.dispatch)

        def find_class(self, module: str, name: str) -> Any:
            # The name in protocol 2, which torch writes.
            name = f'{module.replace("__builtin__", "builtins")}.{name}'
            if name not in known:
                raise pickle.UnpicklingError(f'Unsupported global: {name}')
            return known[name]

        def load_build(self) -> None:
            # Else a checkpoint may change the attributes of functions.
            if not isinstance(self.stack[-2], fillable):
                raise pickle.UnpicklingError(
                    f'A checkpoint may not change {self.stack[-2]!r}.')
            super().load_build()

        dispatch[pickle.BUILD[0]] = load_build

    return SimpleNamespace(
        __name__='sigplug_pickle', Unpickler=Unpickler,
        load=lambda file, **kwargs: Unpickler(file, **kwargs).load())
