"""sigplug: ClipSigmoid and generalised-mean pooling for OpenMMLab.

Importing the package registers, under their bare names, the parts that need
nothing beyond mmengine; mmdet3d is only imported once a config asks for a
part that is built on it.
"""
import os
from importlib.util import find_spec
from typing import Any

from .version import __version__

# `sigplug.ops` is plain PyTorch and also serves where mmengine is missing.
if find_spec('mmengine') is not None:
    from . import models, registry  # noqa: F401
    from .cli.machine import warn_about_unsupported_versions
    from .engine import upstream_fixes
    registry.register_bare_hook_names()
    upstream_fixes.allow_mmengine_checkpoints()
    if os.environ.get('SIGPLUG_MMDET3D_BESIDE_ONEDL') == '1':
        upstream_fixes.import_mmdet3d_beside_onedl()
    warn_about_unsupported_versions()

__all__ = ['__version__', 'accelerate']


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch when it is asked for."""
    if name == 'accelerate':
        from .acceleration import accelerate
        return accelerate
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
