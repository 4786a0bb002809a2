"""Arguments of the segments' mean; its values: test_properties.py."""
import pytest
import torch

from sigplug.ops import segment_generalized_mean


@pytest.mark.parametrize('kwargs, error, words', [
    (dict(index=torch.zeros(4)), TypeError, 'index.*float32'),
    (dict(index=torch.zeros(4).bool()), TypeError, 'index.*bool'),
    (dict(index=torch.zeros(5).long()), ValueError, r'index.*\(5,\)'),
    (dict(index=torch.zeros(4, 3).long()), ValueError, r'index.*\(4, 3\)'),
    (dict(index=torch.tensor([0, -1, 1, 2])), ValueError, 'index.*-1 to 2'),
    (dict(index=torch.tensor([0, 4, 1, 2])), ValueError, 'index.*0 to 4'),
    (dict(num_segments=-1), ValueError, 'num_segments.*-1'),
    (dict(p=0.0), ValueError, 'p must.*0.0'),
    (dict(p=torch.ones(5)), ValueError, r'p of shape \(5,\)'),
    (dict(p=torch.ones(4, 1) * 2), ValueError, r'p of shape \(4, 1\)'),
    (dict(eps=0.0), ValueError, 'eps.*0.0'),
])
def test_bad_arguments(kwargs, error, words):
    good = dict(x=torch.ones(4, 3), index=torch.zeros(4).long(),
                num_segments=4)
    with pytest.raises(error, match=words):
        segment_generalized_mean(**good | kwargs)
