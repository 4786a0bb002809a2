"""Surfaces, and how they reflect a LiDAR pulse."""
from enum import IntEnum

import numpy as np


class Material(IntEnum):
    """Surface materials, the index into the tables below."""
    ASPHALT = 0
    PAVEMENT = 1
    PAINT = 2
    GLASS = 3
    RUBBER = 4
    CLOTH = 5
    METAL = 6
    REFLECTIVE = 7
    CONCRETE = 8
    BRICK = 9
    FOLIAGE = 10
    WOOD = 11


# Mean and spread of the returned intensity (0..255), share of lost returns,
# and mean depth in metres that a pulse enters before it returns.
_TABLE = np.array([
    (8, 3, 0.05, 0.0),
    (16, 5, 0.04, 0.0),
    (32, 18, 0.06, 0.0),
    (10, 6, 0.45, 0.0),
    (5, 2, 0.20, 0.0),
    (22, 10, 0.03, 0.0),
    (40, 15, 0.05, 0.0),
    (130, 45, 0.01, 0.0),
    (28, 8, 0.02, 0.0),
    (36, 12, 0.02, 0.0),
    (20, 9, 0.12, 0.10),
    (18, 6, 0.03, 0.0),
])
INTENSITY_MEAN, INTENSITY_STD, LOSS, DEPTH = _TABLE.T
