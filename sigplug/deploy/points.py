"""Point clouds from files."""
import os
from pathlib import Path

import numpy as np

from sigplug.errors import UserError


def read_points(path: str | os.PathLike, load_dim: int = 5) -> np.ndarray:
    """Read a point cloud from a ``.bin``, ``.npy`` or ``.pcd`` file.

    A ``.pcd`` gives x, y, z and then its other fields in their order; points
    whose x, y or z is NaN, the missing returns of the format, are left out.

    Args:
        path (str | os.PathLike): The file.
        load_dim (int): Values of a point in a ``.bin``, which is a row of
            float32 values after the other and does not tell. Defaults to 5,
            as in nuScenes; KITTI has 4.

    Returns:
        np.ndarray: Shape ``(N, C)``, float32: x, y, z in metres, ...

    Raises:
        UserError: The file is missing, of another kind, or damaged.
    """
    path = Path(path)
    reader = {'.bin': _read_bin, '.npy': _read_npy, '.pcd': _read_pcd}.get(
        path.suffix.lower())
    if reader is None:
        raise UserError(f'{str(path)!r} is no point cloud that can be read: '
                        'give a .bin, .npy or .pcd file.')
    try:
        points = (_read_bin(path, load_dim) if reader is _read_bin else
                  reader(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'Cannot read the point cloud {str(path)!r}: '
                        f'{error}') from error
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in (
            'fiu'):
        raise UserError(
            f'The point cloud {str(path)!r} must be numbers of the shape '
            f'(N, at least 3), but has the shape {points.shape} and the '
            f'dtype {points.dtype}.')
    return points.astype(np.float32)


def _read_bin(path: Path, load_dim: int = 5) -> np.ndarray:
    values = np.fromfile(path, dtype=np.float32)
    if load_dim < 3 or values.size % load_dim:
        raise ValueError(
            f'its {values.size} values are no points of {load_dim}: give the '
            'values of a point as load_dim (--load-dim)')
    return values.reshape(-1, load_dim)


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _read_pcd(path: Path) -> np.ndarray:
    """Read the format of the Point Cloud Library, version 0.7."""
    header: dict[str, list[str]] = {}
    with path.open('rb') as file:
        while 'DATA' not in header:
            line = file.readline()
            if not line:
                raise ValueError('its header has no DATA line')
            key, *values = line.decode('ascii', 'replace').split() or ['']
            header[key] = values
        body = file.read()
    fields, kind = header['FIELDS'], header['DATA'][0]
    counts = [int(n) for n in header.get('COUNT', ['1'] * len(fields))]
    row = np.dtype([
        (str(i), f'<{letter.lower()}{size}', (count, ))
        for i, (letter, size, count) in enumerate(
            zip(header['TYPE'], header['SIZE'], counts, strict=True))])
    number = int(header['POINTS'][0])
    if kind == 'binary':
        table = np.frombuffer(body, row, number)
        columns = {name: table[str(i)][:, 0]
                   for i, name in enumerate(fields)}
    elif kind == 'ascii':
        text = np.array(body.split(), dtype=np.float64).reshape(number, -1)
        starts = np.cumsum([0, *counts])
        columns = {name: text[:, start]
                   for name, start in zip(fields, starts)}
    else:
        raise ValueError(
            f'its data is {kind}, not binary or ascii; convert it by '
            'pcl_convert_pcd_ascii_binary IN.pcd OUT.pcd 1')
    # Fields named '_' are padding.
    names = ['x', 'y', 'z', *(name for name in fields
                              if name not in ('x', 'y', 'z', '_'))]
    points = np.stack([columns[name] for name in names], axis=1)
    return points[~np.isnan(points[:, :3]).any(axis=1)]
