"""Synthetic scans for the benchmarks, made by the converter tool."""
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GENERATOR = (Path(__file__).resolve().parents[2] /
             'dataset_converters/create_synthetic_nuscenes.py')


def make_data(root: Path, samples: int, sweeps: int = 1) -> None:
    """Write a data set of one scene.

    Args:
        root (Path): Its folder.
        samples (int): Number of key frames.
        sweeps (int): Sweeps between two of them.
    """
    subprocess.run(
        [sys.executable, str(GENERATOR), '--out', str(root), '--scenes',
         'scene-0061', '--samples-per-scene', str(samples),
         '--intermediate-sweeps', str(sweeps)],
        check=True, stdout=subprocess.DEVNULL)


@cache
def lidar_points() -> list[Tensor]:
    """Return two scans, each of shape ``(M, 5)``, inside of 51.2 m."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / 'data'
        make_data(root, samples=2)
        scans = [torch.from_numpy(np.fromfile(path, np.float32)).view(-1, 5)
                 for path in sorted((root / 'samples/LIDAR_TOP').iterdir())]
    return [scan[(scan[:, :2].abs() < 51.2).all(1)] for scan in scans]
