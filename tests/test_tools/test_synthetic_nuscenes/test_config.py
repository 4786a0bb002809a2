from nuscenes.utils.splits import mini_train, mini_val
from synthetic_nuscenes import SCENES, GeneratorConfig


def test_scene_names_are_those_of_the_official_splits():
    assert set(SCENES) == set(mini_train + mini_val)


def test_sweep_times():
    config = GeneratorConfig(samples_per_scene=3, intermediate_sweeps=4)
    assert config.sweep_offsets_us == list(range(0, 1_000_001, 100_000))
