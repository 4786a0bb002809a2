import numpy as np
import pytest
from nuscenes.eval.detection.utils import category_to_detection_name
from synthetic_nuscenes.infos import CLASSES
from synthetic_nuscenes.shapes import (
    MARGIN,
    OBJECT_CLASSES,
    build_solids,
    sample_size,
)
from synthetic_nuscenes.solids import triangulate


def test_all_detection_classes_with_their_categories():
    assert {kind.name for kind in OBJECT_CLASSES.values()} == set(CLASSES)
    for kind in OBJECT_CLASSES.values():
        assert category_to_detection_name(kind.category) == kind.name


@pytest.mark.parametrize('key', OBJECT_CLASSES)
def test_solids_fill_the_box_from_within(key):
    kind, rng = OBJECT_CLASSES[key], np.random.default_rng(5)
    for _ in range(5):
        size = sample_size(kind, rng)
        mesh = triangulate(build_solids(kind, size, rng))
        half = size[[1, 0]] / 2 - MARGIN
        low, high = mesh.vertices.min(0), mesh.vertices.max(0)
        # Round bodies of few facets reach out by some millimetres.
        assert (high[:2] <= half + 0.02).all()
        assert (low[:2] >= -half - 0.02).all()
        assert low[2] == pytest.approx(0, abs=1e-9)
        assert high[2] <= size[2] - MARGIN + 0.01
        assert (high - low >= 0.9 * size[[1, 0, 2]] - 2 * MARGIN).all()
