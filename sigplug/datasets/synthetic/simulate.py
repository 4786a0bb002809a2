"""Drives through a scene, scans it, and annotates the key frames."""
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from .config import DIFFICULTIES, GeneratorConfig
from .lidar import Scan, scan, sensor_pose
from .primitives import join, moved, rotate
from .road import KERB
from .scenario import REACH, make_scenario

ANNOTATION_RANGE = 60.0  # metres around the ego vehicle
MOVING_SPEED = 0.2  # m/s, above it an object counts as moving
FIRST_TIMESTAMP_US = 1_530_000_000_000_000  # some day in 2018


@dataclass
class Annotation:
    """One object in one key frame.

    Args:
        track (int): Which of the scene's objects.
        translation (list[float]): Centre of the box in the global frame.
        yaw (float): Yaw of the box in the global frame, in radians.
        attribute (str): nuScenes attribute, empty for none.
        visibility (float): Share of the rays towards it that arrive.
        num_lidar_pts (int): Points of the sweep inside the box.
    """

    track: int
    translation: list[float]
    yaw: float
    attribute: str
    visibility: float
    num_lidar_pts: int


@dataclass
class Frame:
    """One sweep.

    Args:
        timestamp (int): Time in microseconds.
        filename (str): Path of its points under the data root.
        is_key_frame (bool): Whether it is annotated.
        ego (list[float]): x, y, z, yaw of the ego vehicle.
        num_points (int): Number of its points.
        annotations (list[Annotation]): The objects, if a key frame.
    """

    timestamp: int
    filename: str
    is_key_frame: bool
    ego: list[float]
    num_points: int
    annotations: list[Annotation] = field(default_factory=list)


@dataclass
class SceneRecord:
    """What the tables say about one scene.

    Args:
        name (str): Its name.
        categories (list[str]): nuScenes category of every object.
        sizes (list[list[float]]): Width, length and height of every object.
        outline (list): Polygon of the road between its kerbs, shape (N, 2).
        frames (list[Frame]): Its sweeps in order of time.
    """

    name: str
    categories: list[str]
    sizes: list[list[float]]
    outline: list[list[float]]
    frames: list[Frame]


class SceneSimulator:
    """One scene, ready to be scanned at any of its sweep times.

    Sweeps do not depend on each other: each has its own random numbers.

    Args:
        name (str): Name of the scene, ``scene-`` and a number.
        config (GeneratorConfig): What to make.
    """

    def __init__(self, name: str, config: GeneratorConfig) -> None:
        self.name, self.config = name, config
        self.number = int(name.split('-')[1])
        self.offsets = config.sweep_offsets_us
        self.difficulty = DIFFICULTIES[config.difficulty]
        self.scenario = make_scenario(
            self.offsets[-1] / 1e6,
            np.random.default_rng([config.seed, self.number]),
            self.difficulty.spacing)
        tracks = self.scenario.tracks
        self.times = np.array(self.offsets) / 1e6
        self.ego = self.scenario.ego_poses(self.times)
        self.poses = np.stack(
            [t.poses(self.scenario.road, self.times) for t in tracks], 1)
        self.speeds = self._speeds()
        self.annotated = self._annotated()
        self.solids = join([t.solids for t in tracks])
        self.owner = np.repeat(
            np.arange(len(tracks)), [len(t.solids) for t in tracks])

    def record(self, frames: list[Frame]) -> SceneRecord:
        """Describe the scene."""
        s = np.linspace(-REACH, self.scenario.ego[-1] + REACH, 200)
        left, right = (
            np.stack(self.scenario.road.to_global(s, edge)[:2], 1)
            for edge in (KERB, -KERB))
        tracks = self.scenario.tracks
        return SceneRecord(self.name, [t.kind.category for t in tracks],
                           [t.size.tolist() for t in tracks],
                           np.concatenate([left, right[::-1]]).tolist(),
                           frames)

    def write_sweep(self, index: int, root: Path) -> Frame:
        """Scan at one sweep time, write the points, describe the sweep."""
        offset = self.offsets[index]
        is_key_frame = index % self._sweeps_per_sample == 0
        timestamp = FIRST_TIMESTAMP_US + self.number * 1_000_000_000 + offset
        folder = 'samples' if is_key_frame else 'sweeps'
        filename = (f'{folder}/LIDAR_TOP/synthetic-{self.name}__LIDAR_TOP__'
                    f'{timestamp}.pcd.bin')
        sweep = self._scan(index)
        sweep.points.tofile(root / filename)
        boxes = self._annotate(index, sweep) if is_key_frame else []
        return Frame(timestamp, filename, is_key_frame,
                     self.ego[index].tolist(), len(sweep.points), boxes)

    @property
    def _sweeps_per_sample(self) -> int:
        return self.config.intermediate_sweeps + 1

    def _speeds(self) -> np.ndarray:
        """Speed of all objects at all sweeps, shape (T, num_objects)."""
        index = np.arange(len(self.times))
        before = np.maximum(index - 1, 0)
        after = np.minimum(index + 1, index[-1])
        travel = self.poses[after, :, :2] - self.poses[before, :, :2]
        duration = self.times[after] - self.times[before]
        return np.linalg.norm(travel, axis=2) / duration[:, None]

    def _annotated(self) -> np.ndarray:
        """Which object is annotated at which sweep, (T, num_objects).

        An object is annotated without a gap from the first to the last key
        frame that has it in range, if these are at least two: a velocity is a
        difference of positions.
        """
        offset = self.poses[:, :, :2] - self.ego[:, None, :2]
        key = np.arange(len(self.times)) % self._sweeps_per_sample == 0
        near = np.linalg.norm(offset, axis=2) <= ANNOTATION_RANGE
        near &= key[:, None]
        since = np.logical_or.accumulate(near)
        until = np.logical_or.accumulate(near[::-1])[::-1]
        out = since & until & key[:, None]
        return out & (out.sum(0) >= 2)

    def _scan(self, index: int) -> Scan:
        clutter, pose = self.scenario.clutter, self.poses[index, self.owner]
        rng = np.random.default_rng(
            [self.config.seed, self.number, 1, self.offsets[index]])
        return scan(
            self.scenario.road,
            join([moved(self.solids, pose[:, :3], pose[:, 3]), clutter]),
            np.append(self.owner, np.full(len(clutter), -1)),
            self.poses.shape[1], self.ego[index], rng,
            self.difficulty)

    def _annotate(self, index: int, sweep: Scan) -> list[Annotation]:
        out = []
        for i in np.flatnonzero(self.annotated[index]):
            track, pose = self.scenario.tracks[i], self.poses[index, i]
            center = pose[:3] + np.array([0, 0, track.size[2] / 2])
            center, yaw = np.round(center, 3), float(np.round(pose[3], 6))
            moves = self.speeds[index, i] > MOVING_SPEED
            out.append(
                Annotation(
                    int(i), center.tolist(), yaw,
                    track.moving if moves else track.idle,
                    float(sweep.seen[i] / max(sweep.alone[i], 1)),
                    count_points(sweep.points, self.ego[index], center,
                                 track.size, yaw)))
        return out


# A process works on the sweeps of one scene at a time.
cached_simulator = lru_cache(maxsize=2)(SceneSimulator)


def write_sweeps(name: str, config: GeneratorConfig, root: Path,
                 indices: range) -> list[Frame]:
    """Scan a part of a scene and write the points under ``root``."""
    simulator = cached_simulator(name, config)
    return [simulator.write_sweep(i, root) for i in indices]


def count_points(points: np.ndarray, ego: np.ndarray, center: np.ndarray,
                 size: np.ndarray, yaw: float) -> int:
    """Count the points inside a box, those on its surface included.

    Args:
        points (np.ndarray): In the sensor frame, shape (N, 3 or more).
        ego (np.ndarray): x, y, z, yaw of the ego vehicle.
        center (np.ndarray): Centre of the box in the global frame.
        size (np.ndarray): Width, length, height in metres.
        yaw (float): Yaw of the box in the global frame.

    Returns:
        int: The count.
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
