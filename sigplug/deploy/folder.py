"""Read and check an exported folder."""
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from sigplug.errors import UserError

# The layout of deploy.json; a change that old readers misread raises it.
FORMAT = 1
DESCRIPTION = 'deploy.json'
# The names that Autoware's lidar_centerpoint reads.
ENCODER = 'pts_voxel_encoder_centerpoint.onnx'
DENSE = 'pts_backbone_neck_head_centerpoint.onnx'


def _list_of(item: str, more: str = '*') -> str:
    """Return the pattern of a JSON list with one item and so many more."""
    return rf'\[({item})(, ({item})){more}\]'


WHOLE, NUMBER, NAME = r'\d+', r'-?\d[-+.e\d]*', '"[^"]*"'
NMS = '"circle"|"rotate"'
# What a runtime reads of a description: its kind, the pattern of its JSON
# text, and the names.
CONTENT = (
    ('true or false', 'true|false',
     'coder.norm_bbox encoder.legacy encoder.with_cluster_center '
     'encoder.with_distance encoder.with_voxel_center'),
    ('a whole number', WHOLE, 'box_size coder.max_num points.load_dim '
     'voxels.max_points voxels.max_voxels'),
    ('a whole number or null', f'{WHOLE}|null',
     'nms.post_max_size nms.pre_max_size'),
    ('a number', NUMBER, 'coder.out_size_factor'),
    ('a number or null', f'{NUMBER}|null',
     'coder.score_threshold nms.nms_thr nms.score_threshold'),
    ('2 or more numbers', _list_of(NUMBER, '+'),
     'coder.pc_range coder.voxel_size'),
    ('3 numbers', _list_of(NUMBER, '{2}'),
     'encoder.offset encoder.voxel_size voxels.voxel_size'),
    ('6 numbers', _list_of(NUMBER, '{5}'), 'voxels.point_cloud_range'),
    ('6 numbers or null', f'{_list_of(NUMBER, "{5}")}|null',
     'coder.post_center_range nms.post_center_limit_range'),
    ('numbers or null', f'{_list_of(NUMBER)}|null', 'nms.min_radius'),
    ('2 whole numbers', _list_of(WHOLE, '{1}'), 'map_size'),
    ('whole numbers, or null for the time',
     rf'(?=.*\d){_list_of(f"{WHOLE}|null")}', 'points.columns'),
    ('lists of names', _list_of(_list_of(NAME)), 'tasks'),
    ('"logits" or "probability"', '"logits"|"probability"', 'heatmap'),
    ('"circle", "rotate" or a list of these', f'{NMS}|{_list_of(NMS)}',
     'nms.nms_type'))


def checksum(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_description(folder: str | os.PathLike) -> dict[str, Any]:
    """Return ``deploy.json``; a ``UserError`` says what of it is damaged."""
    path = Path(folder) / DESCRIPTION
    try:
        about = json.loads(path.read_text())
        check_content(about)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f'There is no {path}: give the folder that '
            'tools/deployment/export_onnx.py has written.') from error
    except (OSError, ValueError) as error:
        raise UserError(
            f'{path} is damaged, {error}: export the model again.') from error
    for name in (ENCODER, DENSE):
        try:
            found = checksum(path.with_name(name))
        except OSError as error:
            raise UserError(f'{path} lists {name}, which cannot be read: '
                            f'{error}') from error
        if found != about['files'][name]:
            raise UserError(
                f'{path.with_name(name)} is not the file that {path} '
                f'describes: its SHA-256 is {found}, not '
                f'{about["files"][name]}. Copy the whole folder again.')
    return about


def check_content(about: Any) -> None:
    """Raise a ``ValueError`` where a value is missing or cannot be used."""
    found = _read(about, 'format')
    if found != FORMAT:
        raise ValueError(f'or of another version: its format is {found}, this '
                         f'sigplug reads {FORMAT}')
    for kind, pattern, names in CONTENT:
        for name in names.split():
            text = json.dumps(_read(about, *name.split('.')))
            if not re.fullmatch(pattern, text):
                raise ValueError(f'{name} must be {kind}, but is {text:.60}')
    for name in (ENCODER, DENSE):
        _read(about, 'files', name)
    voxels, nms, tasks = about['voxels'], about['nms'], len(about['tasks'])
    low, high = np.reshape(voxels['point_cloud_range'], (2, 3))
    size = np.array(voxels['voxel_size'])
    cells = [*about['map_size'][::-1], 1]
    if (abs(high - low - size * cells) >= size / 2).any():
        raise ValueError(f'map_size {about["map_size"]} is not that of voxels')
    kinds = nms['nms_type']
    kinds = kinds if isinstance(kinds, list) else [kinds] * tasks
    if len(kinds) < tasks or (
            'circle' in kinds and len(nms['min_radius'] or []) < tasks):
        raise ValueError('nms.nms_type and, for "circle", nms.min_radius must '
                         f'have an entry for each of {tasks} tasks')
    if 'rotate' in kinds and None in (nms['nms_thr'], nms['score_threshold']):
        raise ValueError('nms.nms_thr and nms.score_threshold must be numbers '
                         'for "rotate"')


def _read(about: Any, *keys: str) -> Any:
    """Return the value at a place of the description."""
    for key in keys:
        if not isinstance(about, dict) or key not in about:
            raise ValueError(f'it has no {".".join(keys)}')
        about = about[key]
    return about
