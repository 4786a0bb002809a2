"""What upstream leaves no other way for.

``import sigplug`` calls :func:`allow_mmengine_checkpoints`, as the loading of
a checkpoint is mmengine's, and :func:`import_mmdet3d_beside_onedl` where it is
asked to; the command-line tools call the others.
"""
import os
import os.path as osp
import sys
import traceback
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch

from .checkpoint import HAS_ALLOW_LIST, allowed_globals, read_checkpoint


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    Since torch 2.6 ``weights_only=True`` is the default, and it refuses the
    objects that mmengine stores beside the weights
    (https://github.com/open-mmlab/mmengine/issues/1655). They are
    allow-listed one by one, see :func:`.checkpoint.allowed_globals`;
    everything else is still refused. Older versions of torch have no such
    list, and nothing is done there.
    """
    if HAS_ALLOW_LIST:
        torch.serialization.add_safe_globals([
            (value, name) for name, value in allowed_globals().items()])


def load_checkpoints_safely() -> None:
    """Let mmengine read files and URLs without running code from them.

    mmengine's own loaders are unsafe before torch 2.6, and later still for
    what they download
    (https://github.com/open-mmlab/mmengine/issues/1655). These loaders
    replace them, through mmengine's register. ``torch.load`` itself is left
    alone, and so are the names of mmengine's model zoos (``torchvision://``,
    ``open-mmlab://``).
    """
    from mmengine.runner import CheckpointLoader
    CheckpointLoader.register_scheme('', load_from_file, force=True)
    CheckpointLoader.register_scheme(
        ('http://', 'https://'), load_from_url, force=True)


# mmengine logs the end of these names.
def load_from_file(path: str, map_location: Any = None) -> dict[str, Any]:
    """Read a file, as mmengine's ``load_from_local`` does."""
    return read_checkpoint(osp.expanduser(path), map_location)


def load_from_url(url: str, map_location: Any = None) -> dict[str, Any]:
    """Download a file to the cache of torch's hub, once, and read it."""
    from mmengine.dist import barrier, is_main_process
    path = osp.join(torch.hub.get_dir(), 'checkpoints',
                    osp.basename(urlparse(url).path))
    if is_main_process() and not osp.isfile(path):
        os.makedirs(osp.dirname(path), exist_ok=True)
        torch.hub.download_url_to_file(url, path)
    barrier()
    return read_checkpoint(path, map_location)


def find_built_config(error: Exception) -> tuple[dict, Any] | None:
    """Return the config and the class that mmengine was building.

    An error in its registry says where in the code it happened, and nothing
    of the config (https://github.com/open-mmlab/mmengine/pull/1088). That is
    in the frames of the traceback alone. Those of the innermost part are
    returned; None for an error elsewhere.
    """
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get('__name__') == (
                'mmengine.registry.build_functions'):
            names = frame.f_locals
            cls = names.get('obj_cls', names.get('scheduler_cls'))
            if cls is not None:
                found = names['cfg'], cls
    return found


def supply_numpy_long() -> None:
    """Give numpy the ``long`` that mmdet3d's ``ObjectSample`` needs.

    numpy 1.24 removed it; since 2.0 it is this very type again
    (https://github.com/open-mmlab/mmdetection3d/issues/2821).
    """
    vars(np).setdefault('long', np.int_)


def import_mmdet3d_beside_onedl() -> None:
    """Import mmdet3d 1.4 beside OneDL's forks of mmcv and mmdet.

    It runs with them, but its import ends where they are newer than mmcv 2.1
    and mmdet 3.3 (https://github.com/open-mmlab/mmdetection/issues/11763).
    For that import alone they pass for those.
    """
    import mmcv
    import mmdet
    versions = mmcv.__version__, mmdet.__version__
    mmcv.__version__, mmdet.__version__ = '2.1.0', '3.3.0'
    try:
        import mmdet3d  # noqa: F401
    finally:
        mmcv.__version__, mmdet.__version__ = versions


def train_spconv_on_cpu() -> None:
    """Let the CPU build of spconv compute gradients.

    Its backward asks torch for a CUDA stream, which a torch without a GPU
    refuses, and then does without
    (https://github.com/traveller59/spconv/issues/366). mmdet3d has imported
    spconv if it is there.
    """
    ops = sys.modules.get('spconv.pytorch.ops')
    if ops is not None and not torch.cuda.is_available():
        vars(ops).update(get_current_stream=lambda: 0)
