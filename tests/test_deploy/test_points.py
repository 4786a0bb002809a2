"""Point clouds in the three formats, and damaged ones."""
import numpy as np
import pytest

from sigplug.deploy import read_points
from sigplug.errors import UserError

POINTS = np.arange(20, dtype=np.float32).reshape(4, 5) / 3
HEADER = """# .PCD v0.7
VERSION 0.7
FIELDS intensity x _ y z ring
SIZE 4 4 1 4 4 2
TYPE F F U F F U
COUNT 1 1 3 1 1 1
WIDTH 2
HEIGHT 2
VIEWPOINT 0 0 0 1 0 0 0
POINTS 4
DATA """


def pcd(kind):
    """A cloud with padding, other orders, and a missing return."""
    row = np.dtype([('i', '<f4'), ('x', '<f4'), ('_', '<u1', 3), ('y', '<f4'),
                    ('z', '<f4'), ('ring', '<u2')])
    table = np.zeros(4, row)
    for i, name in enumerate(('x', 'y', 'z', 'i')):
        table[name] = POINTS[:, i]
    table['ring'] = 7
    table['y'][2] = np.nan
    if kind == 'binary':
        return (HEADER + 'binary\n').encode() + table.tobytes()
    lines = [' '.join(map(repr, (
        float(r['i']), float(r['x']), 0, 0, 0, float(r['y']), float(r['z']),
        7))) for r in table]
    return (HEADER + 'ascii\n' + '\n'.join(lines)).encode()


@pytest.mark.parametrize('kind', ['ascii', 'binary'])
def test_pcd(tmp_path, kind):
    (tmp_path / 'a.pcd').write_bytes(pcd(kind))
    wanted = np.concatenate([POINTS[:, :4], np.full((4, 1), 7)], axis=1)
    found = read_points(tmp_path / 'a.pcd')
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted[[0, 1, 3]].astype('f'))


def test_bin_and_npy(tmp_path):
    POINTS.tofile(tmp_path / 'a.bin')
    np.save(tmp_path / 'a.npy', POINTS.astype(np.float64))
    for found in (read_points(tmp_path / 'a.bin'),
                  read_points(tmp_path / 'a.npy')):
        np.testing.assert_array_equal(found, POINTS)
    assert read_points(tmp_path / 'a.bin', 4).shape == (5, 4)


@pytest.mark.parametrize('name, content, words', [
    ('a.bin', POINTS.tobytes()[:-4], '19 values do not divide into points of'),
    ('a.bin', POINTS.tobytes() + b'\n', '20.25 values do not divide'),
    ('a.las', b'', 'give a .bin, .npy or .pcd'),
    ('a.npy', b'no array', "Cannot read the point cloud '.*a.npy'"),
    ('a.npy', b'', "Cannot read the point cloud '.*a.npy'"),
    ('a.npy', b'PK\3\4 and no archive', 'not a zip file'),
    ('a.pcd', HEADER.encode(), 'header gives no DATA'),
    ('a.pcd', b'DATA ascii\n', 'header gives no FIELDS'),
    ('a.pcd', pcd('binary').replace(b'POINTS 4', b'POINTS'), 'no POINTS'),
    ('a.pcd', pcd('binary').replace(b'POINTS 4', b'POINTS -1'), 'POINTS -1'),
    ('a.pcd', pcd('ascii')[:-3], 'gives POINTS 4, but it has 3.875'),
    ('a.pcd', pcd('ascii') + b' 1', 'gives POINTS 4, but it has 4.125'),
    ('a.pcd', pcd('binary')[:-9], 'gives POINTS 4, but it has 3.57'),
    ('a.pcd', pcd('binary').replace(b'DATA binary', b'DATA binary_compressed'),
     'pcl_convert_pcd_ascii_binary'),
    ('a.pcd', pcd('ascii').replace(b' x ', b' u '), 'no field x among'),
    (None, b'', 'No such file')])
def test_bad_clouds_get_one_sentence(tmp_path, name, content, words):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_points(tmp_path / (name or 'missing.bin'))


@pytest.mark.parametrize('array', [
    np.zeros(3), np.zeros((4, 2)), np.array([['a', 'b', 'c']]),
    dict(several=POINTS)])
def test_arrays_that_are_no_points(tmp_path, array):
    with (tmp_path / 'a.npy').open('wb') as file:
        if isinstance(array, dict):
            np.savez(file, **array)
        else:
            np.save(file, array)
    with pytest.raises(UserError, match='must be numbers of the shape'):
        read_points(tmp_path / 'a.npy')


@pytest.mark.parametrize('kind', ['ascii', 'binary'])
def test_a_cloud_without_points_is_empty(tmp_path, kind):
    (tmp_path / 'a.pcd').write_text(
        HEADER.replace('POINTS 4', 'POINTS 0') + f'{kind}\n')
    assert read_points(tmp_path / 'a.pcd').shape == (0, 5)
