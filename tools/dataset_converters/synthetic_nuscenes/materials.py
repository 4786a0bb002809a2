"""Surfaces, and how they reflect a LiDAR pulse."""
from enum import IntEnum

import numpy as np

# Mean and spread of the returned intensity (0..255), share of lost returns,
# and mean depth in metres that a pulse enters before it returns.
_TABLE = dict(
    ASPHALT=(8, 3, 0.05, 0.0),
    PAVEMENT=(16, 5, 0.04, 0.0),
    PAINT=(32, 18, 0.06, 0.0),
    GLASS=(10, 6, 0.45, 0.0),
    RUBBER=(5, 2, 0.20, 0.0),
    CLOTH=(22, 10, 0.03, 0.0),
    METAL=(40, 15, 0.05, 0.0),
    REFLECTIVE=(130, 45, 0.01, 0.0),
    CONCRETE=(28, 8, 0.02, 0.0),
    BRICK=(36, 12, 0.02, 0.0),
    FOLIAGE=(20, 9, 0.12, 0.10),
    WOOD=(18, 6, 0.03, 0.0))
# The index into the columns below.
Material = IntEnum('Material', list(_TABLE), start=0)
INTENSITY_MEAN, INTENSITY_STD, LOSS, DEPTH = np.array([*_TABLE.values()]).T
