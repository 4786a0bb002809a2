"""Read an exported folder."""
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from sigplug.errors import UserError

# The layout of deploy.json; a change that old readers misread raises it.
FORMAT = 1
DESCRIPTION = 'deploy.json'
# The names that Autoware's lidar_centerpoint reads.
ENCODER = 'pts_voxel_encoder_centerpoint.onnx'
DENSE = 'pts_backbone_neck_head_centerpoint.onnx'


def checksum(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_description(folder: str | os.PathLike) -> dict[str, Any]:
    """Return ``deploy.json``, if the models beside it are those it describes.

    Raises:
        UserError: They are not, or a file is missing or damaged.
    """
    path = Path(folder) / DESCRIPTION
    try:
        about = json.loads(path.read_text())
        version, files = about['format'], about['files']
        wanted = {path.with_name(name): files[name]
                  for name in (ENCODER, DENSE)}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f'There is no {path}: give the folder that '
            'tools/deployment/export_onnx.py has written.') from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f'{path} is damaged, {error!r}: export the model '
                        'again.') from error
    if version != FORMAT:
        raise UserError(f'{path} has the format {version}, this sigplug reads '
                        f'{FORMAT}: export the model again.')
    for model, digest in wanted.items():
        try:
            found = checksum(model)
        except OSError as error:
            raise UserError(f'{path} lists {model.name}, which cannot be '
                            f'read: {error}') from error
        if found != digest:
            raise UserError(
                f'{model} is not the file that {path} describes: its SHA-256 '
                f'is {found}, not {digest}. Copy the whole folder again.')
    return about
