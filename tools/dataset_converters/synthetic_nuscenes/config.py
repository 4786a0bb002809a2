"""The options of the synthetic data set."""
from dataclasses import dataclass
from typing import NamedTuple

# Scene names of the official mini splits (nuscenes.utils.splits).
TRAIN_SCENES = ('scene-0061', 'scene-0553', 'scene-0655', 'scene-0757',
                'scene-0796', 'scene-1077', 'scene-1094', 'scene-1100')
VAL_SCENES = ('scene-0103', 'scene-0916')
SCENES = TRAIN_SCENES + VAL_SCENES

VERSION = 'v1.0-mini'
KEY_FRAME_INTERVAL_US = 500_000  # nuScenes key frames come at 2 Hz


class Difficulty(NamedTuple):
    """Settings that make objects hard to find.

    Attributes:
        beams (int): Beams of the LiDAR, evenly chosen from its 32; with fewer,
            small and far objects get few points or none.
        loss (float): Share of the returns that rain or dirt takes away.
        fade_range (float): Distance in metres beyond which more and more
            returns get lost, all of them at the LiDAR's range of 100 m.
        spacing (float): Factor on the gaps between neighbours along the
            street; where it is narrow, they hide each other.
    """

    beams: int
    loss: float
    fade_range: float
    spacing: float


DIFFICULTIES = dict(
    standard=Difficulty(beams=32, loss=0.0, fade_range=60.0, spacing=1.0),
    hard=Difficulty(beams=16, loss=0.1, fade_range=40.0, spacing=0.6))


@dataclass(frozen=True)
class GeneratorConfig:
    """Arguments that determine every byte of the data set.

    Args:
        seed (int): Seed of all random numbers, at least 0.
        samples_per_scene (int): Key frames (at 2 Hz) per scene, at least 2.
        intermediate_sweeps (int): Sweeps without annotations between two key
            frames, 0 to 9. The real data set has about 9.
        scenes (tuple[str]): The scenes to make, of the ten official mini
            scenes and in any order.
        difficulty (str): ``'standard'``, or ``'hard'``: half the beams, lost
            returns, and crowded streets.

    Raises:
        ValueError: If an argument is out of range.
    """

    seed: int = 0
    samples_per_scene: int = 40
    intermediate_sweeps: int = 1
    scenes: tuple[str, ...] = SCENES
    difficulty: str = 'standard'

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f'seed must be at least 0, got {self.seed}')
        if self.samples_per_scene < 2:
            raise ValueError('samples_per_scene must be at least 2 (velocity '
                             'is a difference of key frames), got '
                             f'{self.samples_per_scene}')
        if not 0 <= self.intermediate_sweeps <= 9:
            raise ValueError('intermediate_sweeps must be in [0, 9], got '
                             f'{self.intermediate_sweeps}')
        unknown = sorted(set(self.scenes) - set(SCENES))
        if unknown or not self.scenes:
            raise ValueError(f'scenes must name some of {", ".join(SCENES)}; '
                             f'got {", ".join(unknown) or "none"}')
        if self.difficulty not in DIFFICULTIES:
            raise ValueError('difficulty must be one of '
                             f'{", ".join(DIFFICULTIES)}; got '
                             f'{self.difficulty!r}')
        ordered = tuple(name for name in SCENES if name in self.scenes)
        object.__setattr__(self, 'scenes', ordered)

    @property
    def sweeps_per_sample(self) -> int:
        """Return the number of sweeps from one key frame to the next."""
        return self.intermediate_sweeps + 1

    @property
    def sweep_offsets_us(self) -> list[int]:
        """Return the sweeps' times after the scene's start in microseconds."""
        steps = self.sweeps_per_sample
        count = (self.samples_per_scene - 1) * steps + 1
        return [i * KEY_FRAME_INTERVAL_US // steps for i in range(count)]
