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
# What a runtime reads of a description; of a list, what it has at least.
KEYS: dict[str, tuple] = dict(
    tasks=(0, ), points=('load_dim', 'columns'),
    voxels=('voxel_size', 'point_cloud_range', 'max_points', 'max_voxels'),
    encoder=('with_cluster_center', 'with_voxel_center', 'with_distance',
             'legacy', 'voxel_size', 'offset'),
    map_size=(0, 1), heatmap=(), box_size=(),
    coder=('pc_range', 'voxel_size', 'out_size_factor', 'max_num',
           'score_threshold', 'post_center_range', 'norm_bbox'),
    nms=('nms_type', 'min_radius', 'nms_thr', 'score_threshold',
         'pre_max_size', 'post_max_size', 'post_center_limit_range'))


def checksum(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


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
        if about['format'] != FORMAT:
            raise UserError(
                f'{path} has the format {about["format"]}, this sigplug reads '
                f'{FORMAT}: export the model again, or install the other '
                'version.')
        for key, names in KEYS.items():
            value = about[key]
            for name in names:
                value[name]
        files = dict(about['files'])
        if set(files) != {ENCODER, DENSE}:
            raise ValueError(f'its files are {sorted(files)}')
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f'There is no {path}: give the folder that '
            'tools/deployment/export_onnx.py has written.') from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f'{path} is damaged ({type(error).__name__}: {error})'
                        ': export the model again.') from error
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
