"""Make up one street scene: who is where, and when."""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from . import clutter
from . import road as cross_section
from .footprints import Footprints
from .road import Road
from .shapes import OBJECT_CLASSES, build_solids, sample_size
from .solids import Solid
from .tracks import Track, clock, speed_profile

REACH = 75.0  # the street is filled this far around the ego vehicle
CHECK_EVERY = 5  # table entries (0.25 s) between two overlap checks
# Ranges of the nuScenes detection task in metres, and how many objects of
# each class a scene has within them on average, at least.
EVALUATION_RANGE = dict(
    car=50, truck=50, bus=50, trailer=50, construction_vehicle=50,
    pedestrian=40, motorcycle=40, bicycle=40, traffic_cone=30, barrier=30)
MIN_MEAN_COUNT = 0.6
MAX_DRAWS = 30
CROSSING_ATTEMPTS = 60
EGO_HALF = (2.3, 0.95)
EGO_CENTER = 1.4  # the ego frame's origin is the rear axle

# Cards of each deck are dealt in random order until the street is full, which
# keeps the classes' shares alike in all scenes.
LANE_DECK = ('car', 'car', 'car', 'car', 'car', 'car', 'truck', 'bus',
             'motorcycle_rider', 'semi')
PARKING_DECK = ('car', 'car', 'car', 'car', 'car', 'car', 'car', 'car',
                'truck', 'trailer', 'motorcycle_parked', 'motorcycle_parked',
                'bus')
FURNITURE_DECK = ('pole', 'pole', 'pole', 'tree', 'tree', 'tree', 'bush',
                  'bin', 'cabinet', 'bollard', 'bollard', 'shelter',
                  'bicycle_parked')
SIDEWALK_DECK = ('adult', 'adult', 'adult', 'adult', 'adult', 'child')

# Attributes that change while the object stands still.
IDLE = {'vehicle.moving': 'vehicle.stopped',
        'pedestrian.moving': 'pedestrian.standing'}


@dataclass
class Scenario:
    """A street scene."""

    road: Road
    ego: np.ndarray  # arc length of the ego vehicle at every instant
    tracks: list[Track]  # the annotated objects
    # Everything else: solids, and the x, y, z, yaw of their frame.
    clutter: list[tuple[list[Solid], np.ndarray]]

    def ego_poses(self, times: np.ndarray) -> np.ndarray:
        """Return x, y, z, yaw of the ego vehicle, shape (T, 4)."""
        return _ego_track(self.ego).poses(self.road, times)


def make_scenario(duration: float, rng: np.random.Generator,
                  spacing: float = 1.0) -> Scenario:
    """Draw one scene of ``duration`` seconds.

    ``spacing`` is a factor on the gaps between neighbours along the street.

    A scene is drawn again, up to ``MAX_DRAWS`` times, until every class is
    often enough near the ego vehicle to be trained and tested.
    """
    for _ in range(MAX_DRAWS):
        scenario = _Builder(duration, rng, spacing).build()
        counts = mean_counts(scenario, np.arange(0, duration + 0.25, 0.5))
        if min(counts.values()) >= MIN_MEAN_COUNT:
            break
    return scenario


def mean_counts(scenario: Scenario, times: np.ndarray) -> dict[str, float]:
    """Count each class within its evaluation range, mean over time."""
    ego = scenario.ego_poses(times)
    counts = dict.fromkeys(EVALUATION_RANGE, 0.0)
    for track in scenario.tracks:
        offset = (track.poses(scenario.road, times) - ego)[:, :2]
        near = np.hypot(*offset.T) < EVALUATION_RANGE[track.kind.name]
        counts[track.kind.name] += float(near.mean())
    return counts


def _ego_track(s: np.ndarray) -> Track:
    return Track(OBJECT_CLASSES['car'], np.zeros(3), s,
                 -cross_section.LANE, 0.0)


def _room(key: str) -> float:
    """Return the length that a card of a deck takes up, in metres."""
    if key == 'semi':
        return _room('truck') + _room('trailer')
    kind = OBJECT_CLASSES[key]
    return kind.mean[1] + 2 * kind.std[1]


def _deal(deck: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    while True:
        yield from rng.permutation(deck)


class _Builder:
    """Fill a road with objects, each kept only if it fits."""

    def __init__(self, duration: float, rng: np.random.Generator,
                 spacing: float) -> None:
        self.rng = rng
        self.spacing = spacing
        self.times = clock(duration)
        self.tracks: list[Track] = []
        self.clutter: list[tuple[list[Solid], np.ndarray]] = []
        self.instants = len(self.times[::CHECK_EVERY])
        self.footprints = Footprints(self.instants)

        stop = rng.uniform(0.3, 0.7) * duration if rng.random() < 0.3 else None
        self.ego = speed_profile(self.times, rng.uniform(4, 8), rng, stop)
        self.oncoming = speed_profile(self.times, rng.uniform(5, 9), rng)
        self.low, self.high = -REACH, self.ego[-1] + REACH
        heading = rng.uniform(-np.pi, np.pi)
        curvature = rng.uniform(0.0005, 0.004) * rng.choice([-1, 1])
        x, y, _ = Road((0.0, 0.0), heading, curvature).to_global(
            np.linspace(self.low, self.high, 100), 0.0)
        # So that all coordinates are positive.
        start = (60 - x.min(), 60 - y.min())
        self.road = Road(start, heading, curvature)

    def build(self) -> Scenario:
        self._add_ego()
        self._fill_parking()
        self._fill_lanes()
        self._fill_bicycle_lanes()
        self._fill_furniture()
        self._fill_sidewalks()
        self._fill_crossings()
        self._fill_background()
        return Scenario(self.road, self.ego, self.tracks, self.clutter)

    def _gap(self, low: float, high: float) -> float:
        return self.spacing * self.rng.uniform(low, high)

    # -- one object ---------------------------------------------------------
    def _add_ego(self) -> None:
        poses = _ego_track(self.ego + EGO_CENTER).poses(
            self.road, self.times[::CHECK_EVERY])
        self.footprints.try_add(poses[:, [0, 1, 3]], EGO_HALF)

    def _add(self,
             key: str,
             s: float | np.ndarray,
             lateral: float | np.ndarray,
             turn: float = 0.0,
             attribute: str = '',
             size: np.ndarray | None = None,
             clearance: float = 0.0) -> Track | None:
        """Add an object if it fits; ``s`` is a number if it stands still."""
        kind = OBJECT_CLASSES[key]
        if size is None:
            size = sample_size(kind, self.rng)
        track = Track(kind, size, np.broadcast_to(s, self.times.shape),
                      lateral, turn, IDLE.get(attribute, attribute), attribute,
                      build_solids(kind, size, self.rng))
        poses = track.poses(self.road, self.times[::CHECK_EVERY])
        if not self.footprints.try_add(poses[:, [0, 1, 3]],
                                       size[[1, 0]] / 2 + clearance):
            return None
        self.tracks.append(track)
        return track

    # -- traffic ------------------------------------------------------------
    def _fill_lanes(self) -> None:
        """Add convoys around the ego vehicle and opposite to it."""
        rng, lane = self.rng, cross_section.LANE
        # The leading vehicles pull away, the following ones fall back.
        ahead, behind = rng.uniform(1.0, 1.25), rng.uniform(0.8, 1.0)
        self._fill_lane(-lane, self.ego * ahead, 1, (9.0, REACH), 26.0)
        self._fill_lane(-lane, self.ego * behind, 1, (-REACH, -9.0), 26.0)
        meeting = self.ego[-1] + self.oncoming[-1]
        self._fill_lane(lane, self.oncoming, -1, (-REACH, meeting + REACH),
                        16.0)

    def _fill_lane(self, lateral: float, driven: np.ndarray, direction: int,
                   span: tuple[float, float], gap: float) -> None:
        """Add vehicles of a common speed with small variations.

        They start within ``span`` (arc lengths), ``gap`` metres apart on
        average, and drive ``driven`` metres.
        """
        rng = self.rng
        deck = _deal(LANE_DECK, rng)
        s = span[0] + rng.uniform(0, 15)
        while s < span[1]:
            key = next(deck)
            phase = rng.uniform(0, 2 * np.pi)
            sway = 1.2 * (np.sin(0.1 * driven + phase) - np.sin(phase))
            room = _room(key)
            path = s + room / 2 + direction * (driven + sway)
            self._add_mover(key, path, lateral + rng.uniform(-0.2, 0.2),
                            direction)
            s += room + gap * self._gap(0.5, 1.5)

    def _add_mover(self, key: str, path: np.ndarray, lateral: float,
                   direction: int) -> None:
        """Add one vehicle of a lane, or a truck with its trailer."""
        turn = 0.0 if direction > 0 else np.pi
        if key != 'semi':
            attribute = 'cycle.with_rider' if key == 'motorcycle_rider' \
                else 'vehicle.moving'
            self._add(key, path, lateral, turn, attribute)
            return
        trailer_size = sample_size(OBJECT_CLASSES['trailer'], self.rng)
        front = path + direction * trailer_size[1] / 2
        truck = self._add('truck', front, lateral, turn, 'vehicle.moving')
        if truck is not None:
            gap = (truck.size[1] + trailer_size[1]) / 2 + 0.6
            self._add('trailer', front - direction * gap, lateral, turn,
                      'vehicle.moving', trailer_size)

    def _fill_bicycle_lanes(self) -> None:
        rng = self.rng
        for direction in (1, -1):
            driven = speed_profile(self.times, rng.uniform(3, 5.5), rng)
            relative = self.ego - direction * driven
            s = relative.min() - REACH + rng.uniform(0, 30)
            while s < relative.max() + REACH:
                lateral = -direction * cross_section.BICYCLE_LANE + \
                    rng.uniform(-0.15, 0.15)
                self._add('bicycle_rider', s + direction * driven, lateral,
                          0.0 if direction > 0 else np.pi, 'cycle.with_rider')
                s += self._gap(55, 120)

    # -- parking strip ------------------------------------------------------
    def _fill_parking(self) -> None:
        """Add parked vehicles with gaps, and road works now and then."""
        rng = self.rng
        first_works = self.low + rng.uniform(20, 60)
        for side in (-1, 1):
            deck = _deal(PARKING_DECK, rng)
            s = self.low + rng.uniform(0, 20)
            next_works = first_works + (0 if side < 0 else 60)
            while s < self.high:
                if s + 13 > next_works:
                    s += self._add_works(s, side)
                    next_works += rng.uniform(110, 130)
                else:
                    s += self._park(next(deck), s, side)
                crowded = rng.random() < 0.65
                s += self._gap(3, 7) if crowded else self._gap(10, 18)

    def _park(self, key: str, s: float, side: int) -> float:
        """Put something into the strip from ``s`` on; return its length."""
        rng = self.rng
        room = _room(key)
        lateral = side * (cross_section.PARKING_STRIP + rng.uniform(-.1, .1))
        turn = np.pi if side > 0 else 0.0
        attribute = 'vehicle.parked'
        if key == 'motorcycle_parked':
            attribute = 'cycle.without_rider'
            turn += rng.uniform(-0.6, 0.6)
        elif key == 'bus':  # waits at its stop
            attribute = 'vehicle.moving'
        else:
            turn += rng.normal(0, 0.02) + np.pi * (rng.random() < 0.15)
        self._add(key, s + room / 2, lateral, turn, attribute)
        return room

    def _add_works(self, s: float, side: int) -> float:
        """Add road works from ``s`` on; return their length.

        A construction vehicle behind a row of barriers, cones at both ends.
        """
        rng = self.rng
        edge, kerb = cross_section.PARKING_EDGE, cross_section.KERB - 0.4
        barriers, pitch = int(rng.integers(2, 5)), 2.75
        taper = rng.uniform(2.5, 4.0)
        length = 2 * taper + max(7.5, barriers * pitch + 0.6)
        for i in range(barriers):
            along = s + length / 2 + (i - (barriers - 1) / 2) * pitch
            self._add('barrier', along, side * edge,
                      side * np.pi / 2 + rng.normal(0, 0.03))
        self._add('construction_vehicle', s + length / 2, side * (edge + 2.05),
                  rng.normal(0, 0.015) + np.pi * (rng.random() < 0.5),
                  'vehicle.parked')
        for end in (0, 1):
            for share in np.linspace(0.1, 0.9, int(rng.integers(2, 4))):
                along = share * taper if end == 0 else length - share * taper
                lateral = kerb + share * (edge - kerb) + rng.uniform(-.1, .1)
                self._add('traffic_cone', s + along, side * lateral,
                          rng.uniform(-np.pi, np.pi))
        self._add('worker', s + rng.uniform(0.2, 0.8) * length,
                  side * rng.uniform(edge + 0.8, kerb),
                  rng.uniform(-np.pi, np.pi), 'pedestrian.moving')
        return length

    # -- sidewalk -----------------------------------------------------------
    def _fill_sidewalks(self) -> None:
        rng = self.rng
        for side in (-1, 1):
            deck = _deal(SIDEWALK_DECK, rng)
            s = self.low + rng.uniform(0, 20)
            while s < self.high:
                if rng.random() < 0.25:
                    s = self._add_group(s, side)
                else:
                    self._add_walker(next(deck), s, side)
                s += self._gap(12, 36)

    def _add_group(self, s: float, side: int) -> float:
        """Add people who stand together; return where they end."""
        rng = self.rng
        lateral = side * rng.uniform(*cross_section.SIDEWALK)
        for _ in range(int(rng.integers(2, 4))):
            self._add('adult', s, lateral + rng.uniform(-0.5, 0.5),
                      rng.uniform(-np.pi, np.pi), 'pedestrian.moving')
            s += rng.uniform(1.0, 1.4)
        return s

    def _add_walker(self, key: str, s: float, side: int) -> None:
        rng = self.rng
        direction = rng.choice([-1, 1])
        path = s + direction * rng.uniform(0.8, 1.7) * self.times
        self._add(key, path, side * rng.uniform(*cross_section.SIDEWALK),
                  0.0 if direction > 0 else np.pi, 'pedestrian.moving')

    def _fill_crossings(self) -> None:
        """Add people who cross where the traffic leaves them room."""
        rng = self.rng
        wanted = 1 + int(self.times[-1] / 8)
        for _ in range(CROSSING_ATTEMPTS):
            side = rng.choice([-1, 1])
            walked = rng.uniform(1.1, 1.7) * (
                self.times - rng.uniform(-8, self.times[-1]))
            edge = cross_section.SIDEWALK[0]
            lateral = side * np.clip(edge - walked, -edge, edge)
            where = rng.uniform(0, self.ego[-1] + 40)
            wanted -= self._add('adult', where, lateral, -side * np.pi / 2,
                                'pedestrian.moving', clearance=0.8) is not None
            if wanted == 0:
                break

    def _fill_furniture(self) -> None:
        rng = self.rng
        for side in (-1, 1):
            deck = _deal(FURNITURE_DECK, rng)
            s = self.low + rng.uniform(0, 5)
            while s < self.high:
                key = next(deck)
                lateral = side * cross_section.FURNITURE_STRIP
                if key == 'bicycle_parked':
                    self._add(key, s, lateral, rng.uniform(-0.5, 0.5),
                              'cycle.without_rider')
                else:
                    item = clutter.FURNITURE[key]
                    pose = self._clutter_pose(s, lateral)
                    if self.footprints.try_add(
                            np.tile(pose[[0, 1, 3]], (self.instants, 1)),
                            item.half):
                        self.clutter.append((item.build(rng), pose))
                s += self._gap(3.0, 9.0)

    def _fill_background(self) -> None:
        """Add building fronts and hedges behind the sidewalks."""
        rng = self.rng
        for side in (-1, 1):
            s = self.low
            while s < self.high:
                length = rng.uniform(8, 28)
                lateral = side * (cross_section.BUILDING_LINE +
                                  rng.uniform(0, 4))
                make = clutter.facade if rng.random() < 0.65 else clutter.hedge
                # The front is drawn from x = 0 on, in its own direction.
                start = s if side > 0 else s + length
                self.clutter.append(
                    (make(length, rng), self._clutter_pose(start, lateral)))
                s += length + rng.uniform(1, 9)

    def _clutter_pose(self, s: float, lateral: float) -> np.ndarray:
        """Return x, y, z, yaw with y towards the buildings."""
        x, y, heading = self.road.to_global(s, lateral)
        z = cross_section.ground_height(lateral)
        return np.array([x, y, z, heading + np.pi * (lateral < 0)])
