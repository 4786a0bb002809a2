"""Point clouds from files."""
import os
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from sigplug.errors import UserError


def read_points(path: str | os.PathLike, load_dim: int = 5) -> np.ndarray:
    """Read a point cloud from a ``.bin``, ``.npy`` or ``.pcd`` file.

    A ``.pcd`` gives x, y, z and then its other fields in their order; points
    whose x, y or z is NaN, the missing returns of the format, are left out.

    Args:
        path (str | os.PathLike): The file.
        load_dim (int): Values of a point in a ``.bin``, which has rows of
            float32 values without a header. Defaults to 5, as in nuScenes;
            KITTI has 4.

    Returns:
        np.ndarray: Shape ``(N, C)``, float32: x, y, z in metres, ...

    Raises:
        UserError: The file is missing, of another kind, or damaged.
    """
    path = Path(path)
    readers = {'.bin': _read_bin, '.pcd': _read_pcd,
               '.npy': lambda path, _: np.asarray(np.load(path))}
    if path.suffix.lower() not in readers:
        raise UserError(f'{str(path)!r} is no point cloud that can be read: '
                        'give a .bin, .npy or .pcd file.')
    try:
        points = readers[path.suffix.lower()](path, load_dim)
    except (OSError, EOFError, ValueError, LookupError, TypeError,
            BadZipFile) as error:
        raise UserError(f'Cannot read the point cloud {str(path)!r}: '
                        f'{error}') from error
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in (
            'fiu'):
        raise UserError(
            f'The point cloud {str(path)!r} must be numbers of the shape '
            f'(N, at least 3), but has the shape {points.shape} and the '
            f'dtype {points.dtype}.')
    return points.astype(np.float32)


def _read_bin(path: Path, load_dim: int) -> np.ndarray:
    size = path.stat().st_size
    if load_dim < 3 or size % (4 * load_dim):
        raise ValueError(
            f'its {size / 4:.15g} values do not divide into points of '
            f'{load_dim}: give the values of a point as load_dim (--load-dim)')
    return np.fromfile(path, dtype=np.float32).reshape(-1, load_dim)


def _read_pcd(path: Path, _: int) -> np.ndarray:
    """Read the format of the Point Cloud Library, version 0.7."""
    header: dict[str, list[str]] = {}
    with path.open('rb') as file:
        while 'DATA' not in header and (line := file.readline()):
            key, *values = line.decode('ascii', 'replace').split() or ['']
            header[key] = values
        body = file.read()
    for key in ('FIELDS', 'SIZE', 'TYPE', 'POINTS', 'DATA'):
        if not header.get(key):
            raise ValueError(f'its header gives no {key}')
    fields, kind = header['FIELDS'], header['DATA'][0]
    number = int(header['POINTS'][0])
    counts = [(int(n), ) for n in header.get('COUNT', ['1'] * len(fields))]
    if missing := [name for name in 'xyz' if name not in fields]:
        raise ValueError(f'it has no field {missing[0]} among {fields}')
    if kind not in ('binary', 'ascii'):
        raise ValueError(
            f'its data is {kind}, not binary or ascii; convert it by '
            'pcl_convert_pcd_ascii_binary IN.pcd OUT.pcd 1')
    types = [f'<{letter.lower()}{size}' if kind == 'binary' else '<f8'
             for letter, size in zip(header['TYPE'], header['SIZE'])]
    row = np.dtype([(str(i), *about) for i, about in enumerate(
        zip(types, counts, strict=True))])
    if kind == 'ascii':
        body = np.array(body.split(), '<f8').tobytes()
    found = len(body) / row.itemsize
    if not 0 <= number <= found or (kind == 'ascii' and found > number):
        raise ValueError(f'its header gives POINTS {number}, but it has '
                         f'{found:.15g}')
    table = np.frombuffer(body, row, number)
    # Fields named '_' are padding.
    names = ['x', 'y', 'z', *(name for name in fields
                              if name not in ('x', 'y', 'z', '_'))]
    points = np.stack([
        table[str(fields.index(name))][:, 0] for name in names], axis=1)
    return points[~np.isnan(points[:, :3]).any(axis=1)]
