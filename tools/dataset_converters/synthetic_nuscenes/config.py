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
    """Settings that make objects hard to find."""

    beams: int  # of the LiDAR's 32, evenly chosen
    loss: float  # share of the returns that rain or dirt takes away
    fade_range: float  # metres from which on more and more returns get lost
    spacing: float  # factor on the gaps between neighbours along the street


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
            frames. The real data set has about 9.
        scenes (tuple[str]): The scenes to make, of :data:`SCENES`.
        difficulty (str): A key of :data:`DIFFICULTIES`.
    """

    seed: int = 0
    samples_per_scene: int = 40
    intermediate_sweeps: int = 1
    scenes: tuple[str, ...] = SCENES
    difficulty: str = 'standard'

    def __post_init__(self) -> None:
        if self.samples_per_scene < 2:
            raise ValueError('samples_per_scene must be at least 2 (velocity '
                             'is a difference of key frames), got '
                             f'{self.samples_per_scene}')
        ordered = tuple(name for name in SCENES if name in self.scenes)
        object.__setattr__(self, 'scenes', ordered)

    @property
    def sweeps_per_sample(self) -> int:
        return self.intermediate_sweeps + 1

    @property
    def sweep_offsets_us(self) -> list[int]:
        """The sweeps' times after the scene's start in microseconds."""
        steps = self.sweeps_per_sample
        count = (self.samples_per_scene - 1) * steps + 1
        return [i * KEY_FRAME_INTERVAL_US // steps for i in range(count)]
