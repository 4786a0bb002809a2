import pytest
from nuscenes.utils.splits import mini_train, mini_val
from synthetic_nuscenes import SCENES, GeneratorConfig


def test_scene_names_are_those_of_the_official_splits():
    assert set(SCENES) == set(mini_train + mini_val)


@pytest.mark.parametrize('arguments, message', [
    (dict(seed=-1), 'seed.*-1'),
    (dict(samples_per_scene=1), 'samples_per_scene.*1'),
    (dict(intermediate_sweeps=10), 'intermediate_sweeps.*10'),
    (dict(scenes=('scene-0001', )), 'scene-0061.*got scene-0001'),
    (dict(difficulty='easy'), "standard, hard; got 'easy'"),
])
def test_bad_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**arguments)


def test_sweep_times():
    config = GeneratorConfig(samples_per_scene=3, intermediate_sweeps=4)
    assert config.sweep_offsets_us == list(range(0, 1_000_001, 100_000))
