"""Reading mmengine's checkpoints without running what they may hold."""
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch

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

    def __new__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError('numpy.ndarray cannot be called by a checkpoint.')


def _reconstruct(*args: Any) -> np.ndarray:
    """Stand for numpy's ``_reconstruct``: the array that pickle then fills."""
    return np.empty(0)


def _encode(text: str, encoding: str) -> bytes:
    """Stand for ``codecs.encode``, by which pickle writes bytes."""
    if encoding != 'latin1':
        raise ValueError(f'A checkpoint may not encode as {encoding!r}.')
    return text.encode(encoding)


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    Since torch 2.6 ``weights_only=True`` is the default, and it refuses the
    objects that mmengine stores beside the weights: the logged values
    (``HistoryBuffer``, which holds numpy arrays), a numpy scalar as best
    score, nested dicts of a dataset's ``metainfo`` (``ConfigDict``) and the
    annealing function of ``OneCycleLR``. They are allow-listed one by one;
    the safety stays on for everything else. Older versions of torch have no
    such list, and nothing is done there: see :func:`load_safely`.
    """
    if _has_allow_list():
        torch.serialization.add_safe_globals(_allowed())


def load_safely(path: str, map_location: Any = None) -> Any:
    """Read a checkpoint, with every version of torch as safe as 2.6.

    Args:
        path (str): The file.
        map_location (optional): As for ``torch.load``.

    Returns:
        Any: The content.

    Raises:
        pickle.UnpicklingError: It names what no checkpoint of mmengine names.
    """
    return _safe(torch.load)(path, map_location=map_location)


@contextmanager
def safe_loading() -> Iterator[None]:
    """Let no ``torch.load`` run what a file holds.

    For a tool: mmengine loads checkpoints in several places, all of them
    unsafe before torch 2.6, and later still those that it downloads. Every
    call is as by :func:`load_safely`, also one with ``weights_only=False``,
    which is how torch's hub calls it. Code that trusts its own files names a
    ``pickle_module``: such a call is left alone. With torch's
    ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`` in the environment all are.
    """
    trusting = os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '')
    if trusting.lower() in ('1', 'y', 'yes', 'true'):
        yield
        return
    with patch.object(torch, 'load', _safe(torch.load)):
        yield


def _safe(load: Callable) -> Callable:
    """``torch.load``, safe unless a ``pickle_module`` is named."""

    @wraps(load)
    def wrapper(f: Any, map_location: Any = None, pickle_module: Any = None,
                **kwargs: Any) -> Any:
        if pickle_module is None and _has_allow_list():
            kwargs['weights_only'] = True
        elif pickle_module is None and not kwargs.get('weights_only'):
            pickle_module, kwargs['weights_only'] = _restricted_pickle(), False
        return load(f, map_location, pickle_module, **kwargs)

    return wrapper


def _has_allow_list() -> bool:
    """Whether ``torch.load`` is safe by default, and takes exceptions."""
    return digit_version(torch.__version__) >= digit_version('2.6.0')


def _allowed() -> list:
    """What mmengine's checkpoints name: classes, or pairs with the name."""
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
    return allowed


def _restricted_pickle() -> SimpleNamespace:
    """A ``pickle_module`` for ``torch.load`` that knows what is allowed.

    As torch's own, it is written in Python to watch what a checkpoint sets.
    """
    from torch._weights_only_unpickler import _get_allowed_globals
    known = dict(_get_allowed_globals())
    known['_codecs.encode'] = _encode
    for item in _allowed():
        value, name = item if isinstance(item, tuple) else (
            item, f'{item.__module__}.{item.__qualname__}')
        known[name] = value
    fillable = (torch.Tensor, torch.nn.Parameter, np.ndarray, np.dtype,
                HistoryBuffer, ConfigDict, dict)

    # Not among the type hints of pickle.
    written_in_python: Any = pickle._Unpickler

    class Unpickler(written_in_python):
        dispatch = dict(written_in_python.dispatch)

        def find_class(self, module: str, name: str) -> Any:
            # The name in protocol 2, which torch writes.
            module = module.replace('__builtin__', 'builtins')
            if f'{module}.{name}' not in known:
                raise pickle.UnpicklingError(
                    f'Unsupported global: {module}.{name}')
            return known[f'{module}.{name}']

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
