"""Drive through a scene, scan it, and annotate the key frames."""
import hashlib
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .config import DIFFICULTIES, GeneratorConfig
from .lidar import Scan, scan, sensor_pose
from .raycast import Body
from .scenario import make_scenario
from .solids import join, rotate, triangulate

ANNOTATION_RANGE = 60.0  # metres around the ego vehicle
MOVING_SPEED = 0.2  # m/s, above it an object counts as moving
FIRST_TIMESTAMP_US = 1_530_000_000_000_000  # some day in 2018


def make_token(seed: int, *parts: Any) -> str:
    """Return 32 hexadecimal digits that depend on the arguments alone."""
    text = '/'.join(map(str, (seed, *parts)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Box(NamedTuple):
    """One object in one key frame, in the global frame."""

    track: int  # its index in the scene
    translation: list[float]  # of the centre
    yaw: float
    attribute: str  # of nuScenes, empty for none
    visibility: float  # share of the rays towards it that arrive
    num_lidar_pts: int


class Scene:
    """One scene, ready to be scanned at any of its sweep times.

    Sweeps do not depend on each other: each has its own random numbers.
    """

    def __init__(self, name: str, config: GeneratorConfig) -> None:
        self.name, self.config = name, config
        self.number = int(name.split('-')[1])
        self.offsets = config.sweep_offsets_us
        self.times = np.array(self.offsets) / 1e6
        self.difficulty = DIFFICULTIES[config.difficulty]
        self.scenario = make_scenario(
            self.times[-1], np.random.default_rng([config.seed, self.number]),
            self.difficulty.spacing)
        self.road, self.tracks = self.scenario.road, self.scenario.tracks
        self.ego = self.scenario.ego_poses(self.times)
        self.poses = np.stack(
            [track.poses(self.road, self.times) for track in self.tracks], 1)
        self.key_frames = range(0, len(self.times), config.sweeps_per_sample)
        self.moving = self._speeds() > MOVING_SPEED
        self.annotated = self._annotated()

    def token(self, *parts: Any) -> str:
        return make_token(self.config.seed, self.name, *parts)

    def timestamp(self, index: int) -> int:
        return (FIRST_TIMESTAMP_US + self.number * 1_000_000_000 +
                self.offsets[index])

    def filename(self, index: int) -> str:
        folder = 'samples' if index in self.key_frames else 'sweeps'
        return (f'{folder}/LIDAR_TOP/synthetic-{self.name}__LIDAR_TOP__'
                f'{self.timestamp(index)}.pcd.bin')

    def scan(self, index: int) -> Scan:
        rng = np.random.default_rng(
            [self.config.seed, self.number, 1, self.offsets[index]])
        poses = np.concatenate([self.poses[index], np.zeros((1, 4))])
        return scan(self.road, self._bodies, poses, self.ego[index], rng,
                    self.difficulty)

    def write_sweep(self, index: int, root: Path) -> list[Box]:
        """Scan at one sweep time, write the points, annotate a key frame."""
        sweep = self.scan(index)
        sweep.points.tofile(root / self.filename(index))
        return self._annotate(index, sweep)

    @cached_property
    def _bodies(self) -> list[Body]:
        """Build the objects, and all clutter in the global frame."""
        clutter = [triangulate(*item) for item in self.scenario.clutter]
        return [Body(mesh) for mesh in (
            *(triangulate(track.solids) for track in self.tracks),
            join(clutter))]

    def _speeds(self) -> np.ndarray:
        """Return the objects' speed at all sweeps, (T, num_objects)."""
        index = np.arange(len(self.times))
        before = np.maximum(index - 1, 0)
        after = np.minimum(index + 1, index[-1])
        travel = self.poses[after, :, :2] - self.poses[before, :, :2]
        duration = self.times[after] - self.times[before]
        return np.linalg.norm(travel, axis=2) / duration[:, None]

    def _annotated(self) -> np.ndarray:
        """Find which objects are annotated when, (T, num_objects).

        An object is annotated without a gap from the first to the last key
        frame that has it in range, if these are at least two: a velocity is a
        difference of positions.
        """
        key = np.zeros((len(self.times), 1), bool)
        key[self.key_frames] = True
        offset = self.poses[:, :, :2] - self.ego[:, None, :2]
        near = key & (np.linalg.norm(offset, axis=2) <= ANNOTATION_RANGE)
        since = np.logical_or.accumulate(near)
        until = np.logical_or.accumulate(near[::-1])[::-1]
        out = since & until & key
        return out & (out.sum(0) >= 2)

    def _annotate(self, index: int, sweep: Scan) -> list[Box]:
        out = []
        for i in np.flatnonzero(self.annotated[index]):
            track, pose = self.tracks[i], self.poses[index, i]
            center = pose[:3] + np.array([0, 0, track.size[2] / 2])
            center, yaw = np.round(center, 3), float(np.round(pose[3], 6))
            out.append(
                Box(int(i), center.tolist(), yaw,
                    track.moving if self.moving[index, i] else track.idle,
                    float(sweep.seen[i] / max(sweep.alone[i], 1)),
                    count_points(sweep.points, self.ego[index], center,
                                 track.size, yaw)))
        return out


# A process works on the sweeps of one scene at a time.
cached_scene = lru_cache(maxsize=2)(Scene)


def count_points(points: np.ndarray, ego: np.ndarray, center: np.ndarray,
                 size: np.ndarray, yaw: float) -> int:
    """Count the points inside a box, those on its surface included.

    The points are in the sensor frame, (N, 3 or more), pose and box in the
    global one; ``size`` is width, length, height.
    """
    position, sensor_yaw = sensor_pose(ego)
    offset = center - position
    offset[:2] = rotate(offset[:2], -sensor_yaw)
    reach = np.hypot(size[0], size[1]) / 2 + 0.01
    near = (np.abs(points[:, 0] - offset[0]) <= reach) & (
        np.abs(points[:, 1] - offset[1]) <= reach)
    local = points[near, :3] - offset
    local[:, :2] = rotate(local[:, :2], sensor_yaw - yaw)
    return int((np.abs(local) <= size[[1, 0, 2]] / 2).all(1).sum())
