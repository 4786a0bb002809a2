"""A road of constant curvature and its cross-section."""
from dataclasses import dataclass

import numpy as np

# Distances from the road's axis in metres, to either side.
LANE = 1.75
BICYCLE_LANE = 4.3
PARKING_EDGE = 5.4
PARKING_STRIP = 7.1
KERB = 8.9
FURNITURE_STRIP = 9.6
SIDEWALK = (10.2, 12.8)
BUILDING_LINE = 14.0

KERB_HEIGHT = 0.14


def ground_height(lateral: float | np.ndarray) -> np.ndarray:
    """Return the ground's height: 0 on the road, a kerb beside it."""
    return np.where(np.abs(lateral) < KERB, 0.0, KERB_HEIGHT)


@dataclass(frozen=True)
class Road:
    """Circular arc in the global x-y plane."""

    start: tuple[float, float]  # of arc length 0, in metres
    heading: float  # there, in radians
    curvature: float  # 1 / radius, positive to the left; 0 is straight

    def to_global(
            self, s: float | np.ndarray, lateral: float | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float | np.ndarray]:
        """Map road coordinates to global x, y and the heading there.

        ``s`` is the arc length along the axis, ``lateral`` the distance to the
        left of it.
        """
        heading = self.heading + self.curvature * s
        # Chord of an arc of angle a: s * sin(a / 2) / (a / 2).
        chord = s * np.sinc(self.curvature * s / (2 * np.pi))
        middle = self.heading + self.curvature * s / 2
        x = self.start[0] + chord * np.cos(middle) - lateral * np.sin(heading)
        y = self.start[1] + chord * np.sin(middle) + lateral * np.cos(heading)
        return x, y, heading

    def lateral(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the signed distance of points to the axis, left positive.

        With a, b the coordinates along and left of the start's tangent, the
        distance to a circle of curvature k is
        ``(1 - sqrt((k a)^2 + (1 - k b)^2)) / k``, here without division by k.
        """
        dx, dy = x - self.start[0], y - self.start[1]
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        a, b, k = cos * dx + sin * dy, cos * dy - sin * dx, self.curvature
        root = np.sqrt((k * a)**2 + (1 - k * b)**2)
        return (2 * b - k * (a * a + b * b)) / (1 + root)
