"""sigplug: ClipSigmoid and generalised-mean pooling for OpenMMLab.

Importing the package registers, under their bare names, the parts that need
nothing beyond mmengine; mmdet3d is only imported once a config asks for a
part that is built on it.
"""
from importlib.util import find_spec
from warnings import warn

from .version import __version__

# `sigplug.ops` is plain PyTorch and also serves where mmengine is missing.
if find_spec('mmengine') is not None:
    from . import models  # noqa: F401
    from .engine.checkpoint import allow_mmengine_checkpoints
    from .engine.versions import find_unsupported
    allow_mmengine_checkpoints()
    # No error: mmengine would turn that into "not in the registry".
    for sentence in find_unsupported():
        warn(sentence, stacklevel=2)

__all__ = ['__version__']
