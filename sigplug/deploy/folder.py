"""Read and write an exported folder."""
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


def write_description(folder: Path, about: dict[str, Any]) -> None:
    """Write ``deploy.json``, with the checksums of the two models.

    Args:
        folder (Path): The folder, which has the models.
        about (dict[str, Any]): What a runtime needs.
    """
    files = {name: checksum(folder / name) for name in (ENCODER, DENSE)}
    text = json.dumps(dict(about, format=FORMAT, files=files), indent=2)
    (folder / DESCRIPTION).write_text(f'{text}\n')


def read_description(folder: str | os.PathLike) -> dict[str, Any]:
    """Read ``deploy.json`` and check the files that it lists.

    Args:
        folder (str | os.PathLike): What ``export_onnx.py`` has written.

    Returns:
        dict[str, Any]: The description.

    Raises:
        UserError: Something is missing, damaged or of another version.
    """
    path = Path(folder) / DESCRIPTION
    try:
        about = json.loads(path.read_text())
        layout, files = about['format'], about['files']
    except FileNotFoundError as error:
        raise UserError(
            f'There is no {path}: give the folder that '
            'tools/deployment/export_onnx.py has written.') from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is damaged ({type(error).__name__}: {error})'
                        ': export the model again.') from error
    if layout != FORMAT:
        raise UserError(
            f'{path} has the format {layout}, this sigplug reads {FORMAT}: '
            'export the model again, or install the other version.')
    for name, digest in files.items():
        try:
            found = checksum(path.with_name(name))
        except OSError as error:
            raise UserError(f'{path} lists {name}, which cannot be read: '
                            f'{error}') from error
        if found != digest:
            raise UserError(
                f'{path.with_name(name)} is not the file that {path} '
                f'describes: its SHA-256 is {found}, not {digest}. Copy the '
                'whole folder again.')
    return about
