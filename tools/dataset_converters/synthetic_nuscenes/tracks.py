"""Motion along the road, tabulated at 20 Hz and interpolated."""
from dataclasses import dataclass, field

import numpy as np

from .road import Road, ground_height
from .shapes import ObjectClass
from .solids import Solid

STEP = 0.05  # seconds between two entries of a table


def clock(duration: float) -> np.ndarray:
    """Return the tables' instants: 0 to at least ``duration`` seconds."""
    return np.arange(int(np.ceil(duration / STEP)) + 1) * STEP


def speed_profile(times: np.ndarray, cruise: float, rng: np.random.Generator,
                  stop_at: float | None = None) -> np.ndarray:
    """Draw the distance driven at every instant, in metres.

    The speed varies piecewise linearly around ``cruise`` (m/s); with
    ``stop_at`` (s) it falls to zero within 4 s, stays there for 4 s and
    recovers.
    """
    knots = np.arange(0, times[-1] + 8, 4.0)
    speeds = cruise * rng.uniform(0.75, 1.25, len(knots))
    if stop_at is not None:
        first = int(stop_at / 4)
        speeds[first:first + 2] = 0
    speed = np.interp(times, knots, speeds)
    steps = (speed[1:] + speed[:-1]) / 2 * STEP
    return np.concatenate([[0.0], np.cumsum(steps)])


@dataclass
class Track:
    """One object through a scene."""

    kind: ObjectClass
    size: np.ndarray  # annotated width, length, height in metres
    s: np.ndarray  # arc length along the road at every instant
    lateral: float | np.ndarray  # to the left, fixed or at every instant
    turn: float  # yaw relative to the road
    idle: str = ''  # attribute of nuScenes while it stands still
    moving: str = ''  # and while it moves
    solids: list[Solid] = field(default_factory=list)

    def poses(self, road: Road, times: np.ndarray) -> np.ndarray:
        """Return x, y, z on the ground and yaw, shape (T, 4)."""
        table = np.arange(len(self.s)) * STEP
        s = np.interp(times, table, self.s)
        lateral = np.broadcast_to(self.lateral, self.s.shape)
        lateral = np.interp(times, table, lateral)
        x, y, heading = road.to_global(s, lateral)
        z = ground_height(lateral)
        return np.stack([x, y, z, heading + self.turn], 1)
